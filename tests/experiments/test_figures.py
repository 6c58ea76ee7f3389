"""Studies of the shipped policy: mistake shares and taught mistakes."""

from math import isnan

from experiments.beliefs import numbers_of, written
from experiments.diagnosis import mistake_shares

from cepo.tasks.figures import cases_of, make_problem
from cepo.tasks.figures.solutions import reference_solution


def test_mistakes_by_hand():
    problem = make_problem("train", 0, steps=(2, 2))
    start, (one, two), (a, b) = problem.start, problem.labels, problem.angles
    right = f"{start} {one} {a}. {a} {two} {b}. \\boxed{{({a}, {b})}}"
    # A misread label, a first result that does not follow from it, and a box with another number.
    wrong = f"{start} {one + 1} {a}. {a} {two} {b}. \\boxed{{({a}, {b + 1})}}"
    # The second step continues from another number, without an arithmetic mistake.
    elsewhere = f"{start} {one} {a}. {a + 1} {two} {b - 1}. \\boxed{{({a}, {b - 1})}}"
    found = mistake_shares([(problem, text) for text in (right, wrong, elsewhere, f"{start} {one}")])
    assert found == {"reading": 1 / 9, "arithmetic": 1 / 6, "copying": 1 / 3, "box": 1 / 3, "form": 1 / 4}
    assert isnan(mistake_shares([])["box"])


def test_number_written_in_a_case():
    problem = next(one for one in (make_problem("test", index) for index in range(50)) if len(cases_of(one)) == 1)
    (case,) = cases_of(problem)
    text = reference_solution(problem)
    assert len(numbers_of(problem, text)) == 3 * len(problem.labels)
    assert written(problem, case, text) == case.right
    assert written(problem, case, "") is None
