"""What a policy gets wrong in the figures task: reading, arithmetic, copying or the last line."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

from .problem import Problem
from .solutions import annotate

# Each is a share of its own chances, and is judged by what the completion itself wrote before, so that one mistake is
# not counted again in all that follows from it.
MISTAKES = {
    "reading": "a label or the first angle, written otherwise than printed",
    "arithmetic": "a step whose three numbers do not add up to 180",
    "copying": "a step that does not go on from the result before",
    "box": "a last line that does not repeat the results",
    "form": "a completion without three numbers a step",
}


def mistake_shares(solved: Iterable[tuple[Problem, str]]) -> dict[str, float]:
    """The share of each kind of `MISTAKES` among the chances for it; NaN where there was none.

    Args:
        solved: Problems and completions. A completion without three numbers a step counts under "form" alone.
    """
    chances, wrong = Counter[str](), Counter[str]()

    def note(kind: str, right: bool) -> None:
        chances[kind] += 1
        wrong[kind] += not right

    for problem, completion in solved:
        spans = annotate(problem, completion).spans
        chain = [int(completion[span.start : span.end]) for span in spans if span.kind != "answer"]
        numbers = 3 * len(problem.labels)
        note("form", len(chain) >= numbers)
        if len(chain) < numbers:
            continue
        steps = [tuple(chain[start : start + 3]) for start in range(0, numbers, 3)]
        note("reading", steps[0][0] == problem.start)
        for (known, label, result), printed in zip(steps, problem.labels, strict=True):
            note("reading", label == printed)
            note("arithmetic", known + label + result == 180)
        for before, after in pairwise(steps):
            note("copying", after[0] == before[2])
        boxed = [int(completion[span.start : span.end]) for span in spans if span.kind == "answer"]
        note("box", boxed == [result for _, _, result in steps])
    return {kind: wrong[kind] / chances[kind] if chances[kind] else float("nan") for kind in MISTAKES}
