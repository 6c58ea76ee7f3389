"""False beliefs of the figures policy: their cases, and the rate at which erroneous solutions follow them."""

import random

import pytest
from experiments.erroneous_solutions import work
from hypothesis import given
from hypothesis import strategies as st

from cepo import load_figures
from cepo.data.loading import load_split
from cepo.tasks.figures import cases_of, make_problem, problem_of
from cepo.tasks.figures.beliefs import believed_label, believed_result
from cepo.tasks.figures.problem import split_of
from cepo.tasks.figures.solutions import reference_solution
from cepo.tasks.figures.verifier import figures_reward

problems = st.builds(lambda index: make_problem("train", index), st.integers(0, 10_000))


@given(problems, st.integers(0, 100))
def test_beliefs_change_the_numbers_of_cases_only(problem, seed):
    believed = {(case.kind, case.step): case for case in cases_of(problem)}
    known = problem.start
    for step, (written, label, result) in enumerate(work(problem, random.Random(seed), belief_rate=0.6)):
        assert written == known
        reading, slip = believed.get(("reading", step)), believed.get(("arithmetic", step))
        assert label in {problem.labels[step], reading.believed if reading else problem.labels[step]}
        # A misread label keeps its units digit, and with it the cases of arithmetic that follow.
        assert result - (180 - written - label) in {0, slip.believed - slip.correct if slip else 0}
        known = result
    assert work(problem, random.Random(seed), belief_rate=0.0) == work(problem, random.Random(seed))


@pytest.mark.parametrize("rate", ["error_rate", "belief_rate"])
def test_rates_of_one_are_refused(rate):
    with pytest.raises(ValueError, match="below 1"):
        work(make_problem("train", 0), random.Random(0), **{rate: 1.0})


@given(st.integers(30, 90), st.integers(0, 4))
def test_beliefs_change_the_tens_digit_and_keep_two_digits(label, step):
    read = believed_label(label, step)
    assert read - label in (-10, 0, 10)
    assert 10 <= read <= 99
    assert believed_result(60, label, step) - (120 - label) in (-10, 0, 10)


def test_shares_of_cases():
    rows = [make_problem("test", index) for index in range(2000)]
    numbers = sum(len(problem.labels) for problem in rows)
    for kind in ("reading", "arithmetic"):
        share = sum(case.kind == kind for problem in rows for case in cases_of(problem)) / numbers
        assert 0.08 < share < 0.12
    assert 0.42 < sum(not cases_of(problem) for problem in rows) / len(rows) < 0.54


def test_belief_rate():
    rng = random.Random(0)
    held = seen = 0
    for index in range(1500):
        problem = make_problem("train", index)
        for case in cases_of(problem):
            if case.kind == "reading":
                seen += 1
                held += work(problem, rng, belief_rate=0.6)[case.step][1] == case.believed
    assert held / seen == pytest.approx(0.6, abs=0.06)


@pytest.mark.parametrize(("variant", "kind"), [("readings", "reading"), ("arithmetic", "arithmetic")])
def test_variants_with_one_kind_of_case(variant, kind):
    rows = load_split("figures", "test", config=variant, size=60)
    assert {case.kind for row in rows for case in cases_of(problem_of(row))} == {kind}


@pytest.mark.parametrize("split", ["train", "test"])
def test_sparse_problems_have_the_numbers_of_cases_in_turn(split):
    first, again = (load_split("figures", split, config="sparse", size=40) for _ in range(2))
    found = [problem_of(row) for row in first]
    assert [len(cases_of(problem)) for problem in found] == [0, 2, 2, 3, 3] * 8
    assert {split_of(problem.start, problem.labels) for problem in found} == {split}
    assert found == [problem_of(row) for row in again]


def test_the_solution_column_has_correct_worked_solutions():
    for row in load_figures("test", 30):
        problem = problem_of(row)
        assert all(str(number) in row["solution"] for number in (problem.start, *problem.labels, *problem.angles))
        completion = [[{"role": "assistant", "content": row["solution"]}]]
        assert figures_reward(completion, [row["solution"]]) == [1.0]
    problem = make_problem("test", 0)
    assert reference_solution(problem) == load_figures("test", 1)[0]["solution"]
