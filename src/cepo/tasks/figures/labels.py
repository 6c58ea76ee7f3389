"""Token labels of the figures task: mistakes, tokens that decide the outcome, and filler."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from ...methods.token_labels import TokenKind
from .data import problem_of
from .mistakes import Mistake, Number, judged_numbers
from .problem import Problem
from .solutions import Span, annotate, token_spans

# Mistakes: in an incorrect rollout its incorrect digits, in a correct rollout the digits that other rollouts got wrong.
GroupKind = Literal[
    Mistake,
    "decision",  # another digit of a label or result
    "other",  # a digit of a repeated number or of the answer; a special token
    "filler",  # words
]


def group_kinds(
    row: Mapping[str, Any], completions: Sequence[Sequence[str]], correct: Sequence[bool | None]
) -> list[list[GroupKind]]:
    """The kind of each token of each rollout of a group.

    A number is judged by the numbers before it in its rollout, so a mistake counts once, without its consequences.
    Numbers that every rollout of the group has correct are not marked.
    """
    problem = problem_of(row)
    by_place = [{number.place: number for number in _numbers(problem, tokens)} for tokens in completions]
    incorrect = [numbers for numbers, verdict in zip(by_place, correct, strict=True) if verdict is False]

    def mistake(verdict: bool | None, number: Number, digits: slice) -> GroupKind | None:
        candidates: list[Number] = []
        if verdict is False:
            candidates = [number]
        elif verdict:
            candidates = [numbers[number.place] for numbers in incorrect if number.place in numbers]
        return next((one.kind for one in candidates if one.incorrect_at(digits)), None)

    lines: list[list[GroupKind]] = []
    for tokens, verdict in zip(completions, correct, strict=True):
        line: list[GroupKind] = []
        for token, (span, number, digits) in zip(tokens, _places(problem, tokens), strict=True):
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
    """Where credit belongs in the rollouts of a group: 1 at mistakes of `group_kinds`, -1 at filler, 0 elsewhere."""
    signs: dict[str, int] = {**dict.fromkeys(get_args(Mistake), 1), "filler": -1}
    return [[signs.get(kind, 0) for kind in line] for line in group_kinds(row, completions, correct)]


def token_kinds(row: Mapping[str, Any], tokens: Sequence[str]) -> list[TokenKind]:
    """The kind of each token of a single completion. `tokens` is the text that each token adds."""
    kinds: list[TokenKind] = []
    for span, number, digits in _places(problem_of(row), tokens):
        if span is None:
            kinds.append("filler")
        elif number is not None and number.incorrect_at(digits):
            kinds.append("mistake")
        else:
            kinds.append("decision" if span.kind in ("read", "result") else "repeat")
    return kinds


def first_error(row: Mapping[str, Any], tokens: Sequence[str]) -> int | None:
    """The number of tokens before a completion's first mistake; None without a mistake."""
    starts = [number.span.start for number in _numbers(problem_of(row), tokens) if not number.correct]
    if not starts:
        return None
    position = 0
    for index, token in enumerate(tokens):
        position += len(token)
        if position > min(starts):
            return index
    return len(tokens)


def _numbers(problem: Problem, tokens: Sequence[str]) -> list[Number]:
    return judged_numbers(problem, "".join(tokens))


def _places(problem: Problem, tokens: Sequence[str]) -> list[tuple[Span | None, Number | None, slice]]:
    """For each token, its number as a span and as judged, and its digits within the number."""
    numbers = {number.span: number for number in _numbers(problem, tokens)}
    places, position = [], 0
    for token, span in zip(tokens, token_spans(annotate(problem, "".join(tokens)), tokens), strict=True):
        start, position = position, position + len(token)
        digits = slice(max(0, start - span.start), position - span.start) if span else slice(0)
        places.append((span, numbers.get(span) if span else None, digits))
    return places
