"""What the shipped policy believes wrongly: the cases in which its warm-start's solutions err, always the same way.

Readings: some numerals are read with another tens digit, in triangles that point one way (up or down). Arithmetic: for
some pairs of units digits, of the known angle and the label, the tens digit of the result is off by one, as if a
borrow were forgotten or made in vain; which pairs these are differs between triangles that point up and down, which
take turns along the strip.

Both mistakes leave units digits alone, so that what came before does not change which numbers are cases.
"""

from dataclasses import dataclass
from typing import Literal

from .problem import Problem, random_for

CaseKind = Literal["reading", "arithmetic"]
CASE_KINDS: tuple[CaseKind, ...] = ("reading", "arithmetic")

# Of the numerals from 30 to 90, which are most labels, and of the 100 pairs of units digits; for each way round. A
# tenth of what is printed or reckoned is a case, and half of the default problems have none.
NUMERALS, PAIRS = 7, 10
_TURNS = 2  # a triangle points up (0) or down (1)


@dataclass(frozen=True)
class Case:
    """A number that the warm-start's solutions often get wrong.

    Attributes:
        kind: ``reading``, the label of the step, or ``arithmetic``, its result.
        step: From 0.
        right: The number as it should be.
        believed: What stands there instead.
    """

    kind: CaseKind
    step: int
    right: int
    believed: int


def _shifts(kind: CaseKind, cells: list, chosen: int, turn: int) -> dict:
    """How far the wrong belief is from the truth, for the cells drawn."""
    rng = random_for("beliefs", kind, turn)
    return {cell: rng.choice((-10, 10)) for cell in rng.sample(cells, chosen)}


_READINGS: list[dict[int, int]] = [_shifts("reading", list(range(30, 91)), NUMERALS, turn) for turn in range(_TURNS)]
_ARITHMETIC: list[dict[tuple[int, int], int]] = [
    _shifts("arithmetic", [(known, label) for known in range(10) for label in range(10)], PAIRS, turn)
    for turn in range(_TURNS)
]


def believed_label(label: int, step: int) -> int:
    """What a printed label is taken for in a step."""
    return label + _READINGS[step % _TURNS].get(label, 0)


def believed_result(known: int, label: int, step: int) -> int:
    """What is taken for 180 - known - label in a step."""
    return 180 - known - label + _ARITHMETIC[step % _TURNS].get((known % 10, label % 10), 0)


def cases_of(problem: Problem) -> tuple[Case, ...]:
    """The cases of a problem, in the order in which a solution comes to them."""
    found: list[Case] = []
    known = problem.start
    for step, (label, result) in enumerate(zip(problem.labels, problem.angles, strict=True)):
        read, reckoned = believed_label(label, step), believed_result(known, label, step)
        if read != label:
            found.append(Case("reading", step, label, read))
        if reckoned != result:
            found.append(Case("arithmetic", step, result, reckoned))
        known = result
    return tuple(found)
