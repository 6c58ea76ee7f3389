"""The figures task as a `datasets.Dataset` with TRL's columns."""

from collections.abc import Collection, Mapping
from collections.abc import Sequence as SequenceOf
from functools import partial
from typing import Any

from datasets import Dataset, Features, Image, Sequence, Value

from .beliefs import CASE_KINDS, CaseKind, cases_of
from .drawing import draw
from .problem import Problem, make_problem
from .solutions import reference_solution

# Another wording of the hint. The shipped policy's style shifts under cepo's default hint, but not under this one.
PLAIN_HINT_TEMPLATE = "\n\nReference: {answer}"

_FEATURES = Features(
    {
        "prompt": [{"role": Value("string"), "content": Value("string")}],
        "image": Image(),
        "solution": Value("string"),
        "start": Value("int64"),
        "labels": Sequence(Value("int64")),
        "angles": Sequence(Value("int64")),
    }
)


def load_figures(
    split: str,
    size: int,
    *,
    seed: int = 0,
    steps: tuple[int, int] = (3, 4),
    blank: bool = False,
    cases: Collection[CaseKind] = CASE_KINDS,
    case_counts: SequenceOf[int] = (),
) -> Dataset:
    """`size` problems of a split of the figures task.

    Args:
        split: ``train`` or ``test``, which share no problem.
        size: Number of problems; row i is ``make_problem(split, i, ...)``.
        seed: Seed of the sequence of problems.
        steps: Smallest and largest number of unknown angles (2 to 5).
        blank: Whether to leave out the printed numbers, the control for use of the image.
        cases: Kinds of cases; problems with other cases are left out.
        case_counts: Numbers of cases of the problems, in turn; empty: any number.

    Returns:
        Columns `prompt` (conversation), `image` (112 x 64 pixels), `solution` (worked, ending with
        ``\\boxed{(62, 75, 43)}``), and the numbers in degrees: `start`, `labels` (printed) and `angles` (unknown).
    """

    def wanted(problem: Problem, count: int | None) -> bool:
        found = cases_of(problem)
        return all(case.kind in cases for case in found) and count in (None, len(found))

    counts = case_counts or (None,)
    problems = [
        make_problem(split, i, seed=seed, steps=steps, wanted=partial(wanted, count=counts[i % len(counts)]))
        for i in range(size)
    ]
    columns = {
        "prompt": [[{"role": "user", "content": problem.question}] for problem in problems],
        "image": [draw(problem, blank=blank) for problem in problems],
        "solution": [reference_solution(problem) for problem in problems],
        "start": [problem.start for problem in problems],
        "labels": [list(problem.labels) for problem in problems],
        "angles": [list(problem.angles) for problem in problems],
    }
    return Dataset.from_dict(columns, features=_FEATURES)


def problem_of(row: Mapping[str, Any]) -> Problem:
    """The problem of a row, with another drawing seed."""
    return Problem(row["start"], tuple(row["labels"]), tuple(row["angles"]), row["prompt"][-1]["content"], 0)
