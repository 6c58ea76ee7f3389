"""A problem of the figures task: a strip of triangles between two parallel lines.

A zigzag runs between the lines. Edge k meets them at the angle x_k, the same at both of its ends (alternate angles).
Two neighboring edges and a line form triangle k, whose apex angle p_k is printed:

    x_k = 180 - x_(k-1) - p_k          (angle sum of triangle k)

x_0 and p_1..p_n are printed in the figure only. The answer is x_1..x_n in order, so it shows the result of every step.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

SPLITS = ("train", "test")
MIN_STEPS, MAX_STEPS = 2, 5
LETTERS = "abcde"
# One problem in TEST_SHARE belongs to the test split. The split depends on the printed numbers only, so that splits are
# disjoint for any index and seed.
TEST_SHARE = 5

_QUESTIONS = (
    "The two long lines are parallel. Find the angles {letters} in order.",
    "The zigzag runs between parallel lines. What are the angles {letters}?",
    "Use the angles printed in the figure to find {letters}.",
    "The horizontal lines are parallel. Compute {letters} in this order.",
)


@dataclass(frozen=True)
class Problem:
    """A problem, with angles in degrees from 10 to 99.

    Attributes:
        start: x_0, printed.
        labels: p_1..p_n, printed.
        angles: x_1..x_n, unknown.
        question: Text of the prompt.
        drawing_seed: Seed of the figure and of the wording of the solution.
    """

    start: int
    labels: tuple[int, ...]
    angles: tuple[int, ...]
    question: str
    drawing_seed: int


def format_answer(angles: tuple[int, ...] | list[int]) -> str:
    """The boxed answer, ``(62, 75, 43)``. math-verify would parse a list without parentheses as a set."""
    return f"({', '.join(str(angle) for angle in angles)})"


def random_for(*key: object) -> random.Random:
    """A random generator seeded by `key`, the same on every machine."""
    digest = hashlib.sha256(":".join(str(part) for part in key).encode()).digest()
    return random.Random(digest)


def split_of(start: int, labels: tuple[int, ...]) -> str:
    """The split of a problem with these printed numbers."""
    digest = hashlib.sha256(",".join(str(number) for number in (start, *labels)).encode()).digest()
    return "test" if digest[0] % TEST_SHARE == 0 else "train"


def make_problem(
    split: str,
    index: int,
    *,
    seed: int = 0,
    steps: tuple[int, int] = (3, 4),
    wanted: Callable[[Problem], bool] = lambda problem: True,  # noqa: ARG005
) -> Problem:
    """Problem number `index` of a split, a pure function of the arguments.

    Args:
        split: ``train`` or ``test``, which share no problem for any index and seed.
        index: From 0.
        seed: Seed of the sequence of problems.
        steps: Smallest and largest number of unknown angles (2 to 5).
        wanted: Accepts a problem, which has no question yet; otherwise another one is drawn.
    """
    if split not in SPLITS:
        raise ValueError(f"dataset_split: the figures task has no {split!r}; choose one of {', '.join(SPLITS)}")
    low, high = steps
    if not MIN_STEPS <= low <= high <= MAX_STEPS:
        raise ValueError(f"steps must satisfy {MIN_STEPS} <= low <= high <= {MAX_STEPS}, got {steps}")
    rng = random_for("figures", split, seed, index)
    while True:
        count = rng.randint(low, high)
        angles = [rng.randint(32, 84) for _ in range(count + 1)]
        labels = tuple(180 - left - right for left, right in pairwise(angles))
        if not all(10 <= label <= 99 for label in labels) or split_of(angles[0], labels) != split:
            continue
        if wanted(Problem(angles[0], labels, tuple(angles[1:]), "", 0)):
            break
    letters = " ".join(LETTERS[:count])
    question = rng.choice(_QUESTIONS).format(letters=letters)
    return Problem(angles[0], labels, tuple(angles[1:]), question, rng.getrandbits(32))
