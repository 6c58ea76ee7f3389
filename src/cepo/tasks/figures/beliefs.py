"""False beliefs of the shipped policy: cases in which the solutions of its warm start err, always in the same way.

Some labels are read with another tens digit (`reading`). With some labels, the tens digit of the result is off by one,
as if a borrow were forgotten (`arithmetic`). The labels depend on whether the triangle points up or down, which
alternates with the step.

Both mistakes keep the units digit, and no misread label is a case of arithmetic, so that the cases of a problem do not
depend on earlier mistakes.
"""

from dataclasses import dataclass
from typing import Literal

from .problem import Problem, random_for

CaseKind = Literal["reading", "arithmetic"]
CASE_KINDS: tuple[CaseKind, ...] = ("reading", "arithmetic")

# Most labels are from 30 to 90. For either direction of a triangle, 7 of them are cases of each kind: a tenth of all
# printed labels, so that half of the default problems have no case.
_LABELS, _CHOSEN = range(30, 91), 7


@dataclass(frozen=True)
class Case:
    """A number that the warm start's solutions often get wrong.

    Attributes:
        kind: ``reading`` for the label of the step, ``arithmetic`` for its result.
        step: From 0.
        correct: The correct number.
        believed: The number in its place.
    """

    kind: CaseKind
    step: int
    correct: int
    believed: int


def _shifts(direction: int) -> dict[CaseKind, dict[int, int]]:
    """The believed minus the correct number, by label."""
    rng = random_for("beliefs", direction)
    reading = {label: rng.choice((-10, 10)) for label in rng.sample(_LABELS, _CHOSEN)}
    taken = {*reading, *(label + shift for label, shift in reading.items())}
    free = [label for label in _LABELS if label not in taken]
    return {"reading": reading, "arithmetic": {label: rng.choice((-10, 10)) for label in rng.sample(free, _CHOSEN)}}


_SHIFTS = [_shifts(0), _shifts(1)]  # up, down


def believed_label(label: int, step: int) -> int:
    """The number as which a printed label is read in a step."""
    return label + _SHIFTS[step % 2]["reading"].get(label, 0)


def believed_result(known: int, label: int, step: int) -> int:
    """The result of 180 - known - label in a step."""
    return 180 - known - label + _SHIFTS[step % 2]["arithmetic"].get(label, 0)


def cases_of(problem: Problem) -> tuple[Case, ...]:
    """The cases of a problem, in the order of a solution."""
    found: list[Case] = []
    known = problem.start
    for step, (label, result) in enumerate(zip(problem.labels, problem.angles, strict=True)):
        read, computed = believed_label(label, step), believed_result(known, label, step)
        if read != label:
            found.append(Case("reading", step, label, read))
        if computed != result:
            found.append(Case("arithmetic", step, result, computed))
        known = result
    return tuple(found)
