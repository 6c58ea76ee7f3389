"""The figures task: deterministic problems, disjoint splits, correct solutions, and token labels."""

import random

import pytest
from experiments.erroneous_solutions import work
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageChops
from trl.rewards import accuracy_reward

from cepo.tasks.figures import annotate, figures_labels, figures_reward, load_figures, make_problem, problem_of
from cepo.tasks.figures.drawing import HEIGHT, WIDTH, draw
from cepo.tasks.figures.mistakes import judged_numbers
from cepo.tasks.figures.problem import split_of
from cepo.tasks.figures.solutions import reference_solution, write_solution

splits = st.sampled_from(["train", "test"])
indices = st.integers(0, 10_000)
step_ranges = st.sampled_from([(2, 2), (3, 4), (5, 5), (2, 5)])


@given(splits, indices, st.integers(0, 5), step_ranges)
def test_a_problem_is_deterministic_and_its_angles_follow_from_the_printed_numbers(split, index, seed, steps):
    problem = make_problem(split, index, seed=seed, steps=steps)
    assert problem == make_problem(split, index, seed=seed, steps=steps)
    assert steps[0] <= len(problem.labels) == len(problem.angles) <= steps[1]
    known = problem.start
    for label, angle in zip(problem.labels, problem.angles, strict=True):
        assert angle == 180 - known - label
        assert 10 <= label <= 99
        known = angle


@given(indices, indices, st.integers(0, 3), st.integers(0, 3))
def test_train_and_test_share_no_problem(one, other, seed, other_seed):
    train, test = make_problem("train", one, seed=seed), make_problem("test", other, seed=other_seed)
    assert (train.start, train.labels) != (test.start, test.labels)
    assert split_of(train.start, train.labels) == "train"
    assert split_of(test.start, test.labels) == "test"


@given(splits, indices)
def test_the_question_has_no_numbers(split, index):
    assert not any(character.isdigit() for character in make_problem(split, index).question)


def test_the_figure_is_deterministic_and_shows_the_numbers():
    problem = make_problem("train", 3)
    assert draw(problem).size == (WIDTH, HEIGHT)
    assert ImageChops.difference(draw(problem), draw(problem)).getbbox() is None
    assert ImageChops.difference(draw(problem), draw(problem, blank=True)).getbbox() is not None


def test_the_dataset_has_trls_columns():
    data = load_figures("test", 3)
    assert {"prompt", "image", "solution"} <= set(data.column_names)
    row = data[0]
    assert row["prompt"][0]["role"] == "user"
    assert row["image"].size == (WIDTH, HEIGHT)
    assert problem_of(row).angles == make_problem("test", 0).angles


@settings(max_examples=60)
@given(indices, st.integers(0, 1000), st.sampled_from([0.0, 0.3]))
def test_the_verifier_and_the_judged_numbers_agree(index, seed, error_rate):
    problem = make_problem("train", index)
    rng = random.Random(seed)
    steps = work(problem, rng, error_rate=error_rate)
    text = write_solution(steps, rng, styled=bool(seed % 2))
    (reward,) = accuracy_reward([[{"role": "assistant", "content": text}]], [reference_solution(problem)])
    assert (reward == 1.0) == all(number.text == number.truth for number in judged_numbers(problem, text))
    if error_rate == 0:
        assert reward == 1.0


def test_annotate_by_hand():
    problem = make_problem("train", 0, steps=(2, 2))
    (label, next_label), (angle, last) = problem.labels, problem.angles
    text = (
        f"Now {problem.start} and {label} leave {angle} for a. Then {angle} and {next_label} leave {last} for b. "
        f"The answer is \\boxed{{({angle}, {last})}}"
    )
    found = [(text[span.start : span.end], span.kind, span.step) for span in annotate(problem, text)]
    assert found == [
        (str(problem.start), "read", 0),
        (str(label), "read", 0),
        (str(angle), "result", 0),
        (str(angle), "copy", 1),
        (str(next_label), "read", 1),
        (str(last), "result", 1),
        (str(angle), "answer", 0),
        (str(last), "answer", 1),
    ]
    assert annotate(problem, "") == []


def _labels(*texts, correct):
    """Solutions of one problem with their labels: an asterisk after each digit that is labeled as a mistake."""
    row = {"start": 60, "labels": [58, 70], "angles": [62, 48], "prompt": [{"content": ""}]}
    labels = figures_labels(row, [list(text) for text in texts], list(correct))
    for text, line in zip(texts, labels, strict=True):
        assert all((label == -1) == (not character.isdigit()) for character, label in zip(text, line, strict=True))
    pairs = zip(texts, labels, strict=True)
    return ["".join(c + "*" * (label == 1) for c, label in zip(*pair, strict=True)) for pair in pairs]


@pytest.mark.parametrize(
    ("incorrect", "correct"),
    [
        # A misread label, and its consequences.
        ("60 53* 67. 67 70 43. \\boxed{(67, 43)}", "60 58* 62. 62 70 48. \\boxed{(62, 48)}"),
        # A slip in the subtraction, and its consequences.
        ("60 58 7*2. 72 70 38. \\boxed{(72, 38)}", "60 58 6*2. 62 70 48. \\boxed{(62, 48)}"),
        # Two mistakes; the second is an incorrect copy.
        ("5*0 58 72. 73* 70 37. \\boxed{(72, 37)}", "6*0 58 62. 62* 70 48. \\boxed{(62, 48)}"),
        # A mistake in the box only, which has a number too many.
        ("60 58 62. 62 70 48. \\boxed{(62, 49*, 1*1*)}", "60 58 62. 62 70 48. \\boxed{(62, 48*)}"),
        # A correct result that does not follow from the label before it.
        ("60 53* 62. 62 70 47*. \\boxed{(62, 47)}", "60 58* 62. 62 70 48*. \\boxed{(62, 48)}"),
    ],
)
def test_labels_mark_mistakes_without_their_consequences(incorrect, correct):
    plain = [text.replace("*", "") for text in (incorrect, correct, correct)]
    assert _labels(*plain, correct=[False, True, True]) == [incorrect, correct, correct]
    assert "*" not in "".join(_labels(*plain[1:], correct=[True, True]))
    assert "*" not in "".join(_labels(*plain, correct=[None, True, True]))


@pytest.mark.parametrize(
    ("arguments", "named"), [(("valid", 0), "valid"), (("train", 0, (1, 3)), r"\(1, 3\)"), (("train", 0, (4, 9)), "9")]
)
def test_errors_name_invalid_arguments(arguments, named):
    split, index, *steps = arguments
    with pytest.raises(ValueError, match=named):
        make_problem(split, index, steps=steps[0] if steps else (3, 4))


ANSWERS = [
    r"So \boxed{(62, 75, 43)}",
    r"So \boxed{(62,75,43)}<|im_end|>",
    r"First \boxed{(1, 2, 3)}, no: \boxed{(62, 75, 43)}",
    r"\boxed{(62, 75, 43)} and again \boxed{(62, 75, 43)}",
    r"So \boxed{(62, 75, 44)}",
    r"So \boxed{(75, 62, 43)}",
    r"So \boxed{(62, 75)}",
    r"So \boxed{}",
    r"So \boxed{(62, 75, 43",
    "So (62, 75, 43)",
    "",
]


@pytest.mark.parametrize("text", ANSWERS)
def test_figures_reward_agrees_with_accuracy_reward(text):
    completions = [[{"role": "assistant", "content": text}]]
    solution = [r"\boxed{(62, 75, 43)}"]
    assert figures_reward(completions, solution=solution) == accuracy_reward(completions, solution=solution)


@pytest.mark.parametrize("correct", [True, False])
def test_figures_reward_agrees_on_worked_solutions(correct):
    for index in range(20):
        problem = make_problem("test", index)
        text = reference_solution(problem if correct else make_problem("test", index + 1))
        completions = [[{"role": "assistant", "content": text}]]
        (verdict,) = figures_reward(completions, solution=[reference_solution(problem)])
        assert [verdict] == accuracy_reward(completions, solution=[reference_solution(problem)])
        assert verdict == float(correct)
