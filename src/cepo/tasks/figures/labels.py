"""What the generator knows of a group's tokens: which of them decide the rollouts' outcomes, and which are filler."""

from collections.abc import Sequence
from typing import Literal

from .problem import Problem
from .solutions import Annotation, Span, annotate, token_spans

TokenKind = Literal[
    "decisive",  # a digit of a step's result on which the outcome turned, see `group_kinds`
    "result",  # any other digit of a step's result
    "read",  # a digit of a value read from the figure
    "other",  # a digit that repeats another number, or stands in the box; a special token
    "filler",  # words
]


def group_kinds(
    problem: Problem, completions: Sequence[Sequence[str]], correct: Sequence[bool | None]
) -> list[list[TokenKind]]:
    """What each token of each rollout of a group is.

    Decisive are, in a wrong rollout, the wrong digits of the result of its first wrong step; in a right rollout, the
    digits of results at which a wrong rollout of the group has another digit. An answer lists the results of all steps,
    so it can speak for or against these; what nobody in the group got wrong decides nothing there.

    Args:
        problem: The problem.
        completions: For each rollout, the text that each token adds.
        correct: For each rollout, the verifier's word.
    """
    annotations = [annotate(problem, "".join(tokens)) for tokens in completions]
    numbers = [_numbers("".join(tokens), found) for tokens, found in zip(completions, annotations, strict=True)]
    wrong_numbers = [found for found, verdict in zip(numbers, correct, strict=True) if verdict is False]

    def decisive(row: int, step: int, digits: slice) -> bool:
        own = numbers[row][step][digits]
        if correct[row]:
            return any(other[step][digits] != own for other in wrong_numbers if step in other)
        return step == annotations[row].first_wrong_step and own != str(problem.angles[step])[digits]

    kinds = []
    for row, (tokens, found) in enumerate(zip(completions, annotations, strict=True)):
        line: list[TokenKind] = []
        position = 0
        for text, span in zip(tokens, token_spans(found, tokens), strict=True):
            start, position = position, position + len(text)
            if span is None:
                line.append("other" if text.startswith("<|") else "filler")
            elif span.kind == "result":
                digits = slice(max(0, start - span.start), position - span.start)
                line.append("decisive" if decisive(row, span.step, digits) else "result")
            else:
                line.append("read" if span.kind == "read" else "other")
        kinds.append(line)
    return kinds


def _numbers(text: str, annotation: Annotation) -> dict[int, str]:
    """The result of each step, as it stands in the text."""
    results: dict[int, Span] = {span.step: span for span in annotation.spans if span.kind == "result"}
    return {step: text[span.start : span.end] for step, span in results.items()}
