"""What the generator knows of tokens: which are mistakes, which decided a group's outcomes, which are filler."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ...methods.token_labels import TokenKind
from .data import problem_of
from .mistakes import Number, judged_numbers
from .solutions import Span, annotate, token_spans

GroupKind = Literal[
    # A digit at which a mistake of this kind was made: in a wrong rollout its own, in a right one a wrong sibling's.
    "reading",
    "arithmetic",
    "copying",
    "box",
    "decision",  # any other digit of a value read or of a result
    "other",  # a digit that repeats another number, or stands in the box; a special token
    "filler",  # words
]
MISTAKE_KINDS: tuple[GroupKind, ...] = ("reading", "arithmetic", "copying", "box")


def group_kinds(
    row: Mapping[str, Any], completions: Sequence[Sequence[str]], correct: Sequence[bool | None]
) -> list[list[GroupKind]]:
    """What each token of each rollout of a group is.

    A number is judged by what its rollout wrote before, so that a mistake counts once, and what follows from it does
    not. What nobody in the group got wrong decided nothing there.

    Args:
        row: Of the dataset.
        completions: For each rollout, the text that each token adds.
        correct: For each rollout, the verifier's word.
    """
    problem = problem_of(row)
    texts = ["".join(tokens) for tokens in completions]
    numbers = [{number.place: number for number in judged_numbers(problem, text)} for text in texts]
    mistaken = [found for found, verdict in zip(numbers, correct, strict=True) if verdict is False]

    def mistake(verdict: bool | None, number: Number, digits: slice) -> GroupKind | None:
        """The kind of the mistake that was made at these digits, if one was."""
        if verdict is None:
            return None
        seen = [number] if verdict is False else [found[number.place] for found in mistaken if number.place in found]
        kinds = [other.kind for other in seen if other.wrong_at(digits)]
        return kinds[0] if kinds else None  # type: ignore[return-value]

    lines: list[list[GroupKind]] = []
    for text, tokens, found, verdict in zip(texts, completions, numbers, correct, strict=True):
        of_span = {number.span: number for number in found.values()}
        line: list[GroupKind] = []
        for token, span, digits in _placed(tokens, token_spans(annotate(problem, text), tokens)):
            number = of_span.get(span) if span else None
            if span is None:
                line.append("other" if token.startswith("<|") else "filler")
            else:
                plain: GroupKind = "decision" if span.kind in ("read", "result") else "other"
                line.append((number and mistake(verdict, number, digits)) or plain)
        lines.append(line)
    return lines


def figures_labels(
    row: Mapping[str, Any], completions: Sequence[Sequence[str]], correct: Sequence[bool | None]
) -> list[list[int]]:
    """Where credit belongs in a group of rollouts of a dataset row: 1 at tokens that decide, -1 at filler, 0 elsewhere.

    In a wrong rollout decide the wrong digits of its own mistakes, of whatever kind, and not what follows from them; in
    a right rollout, the digits at which a wrong one of the group made a mistake of its own.
    """
    signs: dict[str, int] = {**dict.fromkeys(MISTAKE_KINDS, 1), "filler": -1}
    return [[signs.get(kind, 0) for kind in line] for line in group_kinds(row, completions, correct)]


def token_kinds(row: Mapping[str, Any], tokens: Sequence[str]) -> list[TokenKind]:
    """What each token of a completion is by itself. Tokens are the text that each adds."""
    problem, text = problem_of(row), "".join(tokens)
    of_span = {number.span: number for number in judged_numbers(problem, text)}
    kinds: list[TokenKind] = []
    for _, span, digits in _placed(tokens, token_spans(annotate(problem, text), tokens)):
        number = of_span.get(span) if span else None
        if span is None:
            kinds.append("filler")
        elif number is not None and number.wrong_at(digits):
            kinds.append("mistake")
        else:
            kinds.append("decision" if span.kind in ("read", "result") else "repeat")
    return kinds


def first_error(row: Mapping[str, Any], tokens: Sequence[str]) -> int | None:
    """How many tokens of a completion come before its first wrong number; None if none is wrong.

    A number counts as wrong by what the completion itself wrote before. Tokens are the text that each adds.
    """
    wrong = [number.span.start for number in judged_numbers(problem_of(row), "".join(tokens)) if not number.right]
    if not wrong:
        return None
    position = 0
    for index, token in enumerate(tokens):
        position += len(token)
        if position > min(wrong):
            return index
    return len(tokens)


def _placed(tokens: Sequence[str], spans: Sequence[Span | None]) -> list[tuple[str, Span | None, slice]]:
    """Each token, the number in which it lies, and which digits of that number it holds."""
    placed, position = [], 0
    for token, span in zip(tokens, spans, strict=True):
        start, position = position, position + len(token)
        digits = slice(max(0, start - span.start), position - span.start) if span else slice(0)
        placed.append((token, span, digits))
    return placed
