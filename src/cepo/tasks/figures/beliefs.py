"""What the shipped policy believes wrongly: the cases in which its warm-start's solutions err, always the same way.

Readings: some labels are read with another tens digit. Arithmetic: with some labels, the tens digit of the result is
off by one, as if a borrow were forgotten or made in vain. Which labels these are depends on the step: triangles point
up and down by turns along the strip, and those that point up have other cases than those that point down.

Both mistakes leave units digits alone, and no misread label is a case of arithmetic, so that the cases of a problem are
the same whether or not a mistake came before.
"""

from dataclasses import dataclass
from typing import Literal

from .problem import Problem, random_for

CaseKind = Literal["reading", "arithmetic"]
CASE_KINDS: tuple[CaseKind, ...] = ("reading", "arithmetic")

# For each way that a triangle may point, so many of the labels from 30 to 90, which most labels are: a tenth of what is
# printed is a case of reading, a tenth one of arithmetic, and half of the default problems have none.
LABELS, CHOSEN = range(30, 91), 7
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


def _tables(turn: int) -> dict[CaseKind, dict[int, int]]:
    """For the labels that are cases, how far the belief is from the truth."""
    rng = random_for("beliefs", turn)
    reading = {label: rng.choice((-10, 10)) for label in rng.sample(LABELS, CHOSEN)}
    taken = {*reading, *(label + shift for label, shift in reading.items())}
    free = [label for label in LABELS if label not in taken]
    return {"reading": reading, "arithmetic": {label: rng.choice((-10, 10)) for label in rng.sample(free, CHOSEN)}}


_SHIFTS = [_tables(turn) for turn in range(_TURNS)]


def believed_label(label: int, step: int) -> int:
    """What a printed label is taken for in a step."""
    return label + _SHIFTS[step % _TURNS]["reading"].get(label, 0)


def believed_result(known: int, label: int, step: int) -> int:
    """What is taken for 180 - known - label in a step."""
    return 180 - known - label + _SHIFTS[step % _TURNS]["arithmetic"].get(label, 0)


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
