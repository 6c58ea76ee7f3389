"""What the figures task knows of rollouts, for methods that ask: where credit belongs, where the first error is."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...methods.knowledge import Knowledge, TokenKind, register_knowledge
from ...methods.method import Facts, KnownGroup, Method
from ...methods.placement import Placement, PlacementInputs
from ...methods.registry import register_method
from ...methods.reweighting import FACTS_OF_WEIGHTS, SCHEDULE, reweighted
from ...methods.shared_options import SharedOptions
from .data import problem_of
from .mistakes import Number, judged_numbers
from .solutions import annotate, token_spans

# The columns by which a row of this task is known.
COLUMNS = frozenset({"start", "labels", "angles"})
# Evidence of a label [nats]: beyond every bound that `evidence_clip` may set.
LABEL_EVIDENCE = 20.0


def figures_labels(
    row: Mapping[str, Any], completions: Sequence[Sequence[str]], correct: Sequence[bool | None]
) -> list[list[int]]:
    """Where credit belongs in a group of rollouts of a dataset row: 1 at tokens that decide, -1 at filler, 0 elsewhere.

    In a wrong rollout decide the wrong digits of its own mistakes, of whatever kind, and not what follows from them; in
    a right rollout, the digits at which a wrong one of the group made a mistake of its own.
    """
    problem = problem_of(row)
    texts = ["".join(tokens) for tokens in completions]
    numbers = [{number.place: number for number in judged_numbers(problem, text)} for text in texts]
    mistaken = [found for found, verdict in zip(numbers, correct, strict=True) if verdict is False]

    def decides(verdict: bool | None, number: Number, digits: slice) -> bool:
        if verdict is False:
            return number.wrong_at(digits)
        return bool(verdict) and any(
            found[number.place].wrong_at(digits) for found in mistaken if number.place in found
        )

    labels = []
    for text, tokens, found, verdict in zip(texts, completions, numbers, correct, strict=True):
        of_span = {number.span: number for number in found.values()}
        line, position = [], 0
        for token, span in zip(tokens, token_spans(annotate(problem, text), tokens), strict=True):
            start, position = position, position + len(token)
            number = of_span.get(span) if span else None
            if span is None:
                line.append(0 if token.startswith("<|") else -1)
            elif number is None:  # after the last step
                line.append(0)
            else:
                line.append(int(decides(verdict, number, slice(max(0, start - span.start), position - span.start))))
        labels.append(line)
    return labels


def first_error(row: Mapping[str, Any], tokens: Sequence[str]) -> int | None:
    """How many tokens of a completion come before its first wrong number; None if none is wrong.

    A number counts as wrong by what the completion itself wrote before. Tokens are the text that each adds.
    """
    problem = problem_of(row)
    text = "".join(tokens)
    wrong = [number.span.start for number in judged_numbers(problem, text) if not number.right]
    if not wrong:
        return None
    position = 0
    for index, token in enumerate(tokens):
        position += len(token)
        if position > min(wrong):
            return index
    return len(tokens)


def token_kinds(row: Mapping[str, Any], tokens: Sequence[str]) -> list[TokenKind]:
    """What each token of a completion is. Tokens are the text that each adds."""
    problem, text = problem_of(row), "".join(tokens)
    of_span = {number.span: number for number in judged_numbers(problem, text)}
    kinds: list[TokenKind] = []
    position = 0
    for token, span in zip(tokens, token_spans(annotate(problem, text), tokens), strict=True):
        start, position = position, position + len(token)
        number = of_span.get(span) if span else None
        if span is None:
            kinds.append("filler")
        elif number is not None and number.wrong_at(slice(max(0, start - span.start), position - span.start)):
            kinds.append("mistake")
        else:
            kinds.append("decision" if span.kind in ("read", "result") else "repeat")
    return kinds


def oracle_evidence(group: KnownGroup, options: SharedOptions) -> list[list[float]]:  # noqa: ARG001
    """Evidence that raises the weight of tokens that decide to its bound, and lowers that of filler."""
    labels = figures_labels(group.row, group.tokens, [attempt.correct for attempt in group.attempts])
    signs = [(advantage > 0) - (advantage < 0) for advantage in group.advantages]
    return [[LABEL_EVIDENCE * label * sign for label in line] for line, sign in zip(labels, signs, strict=True)]


@dataclass(frozen=True)
class Constants:
    """The oracle's own option.

    Attributes:
        only_mistakes: In wrong rollouts nothing but mistakes is blamed, and right ones keep their advantage whole; in
            place of weights. With lambda 1, all else in a wrong rollout gets 0.
    """

    only_mistakes: bool = False


def placed_by_labels(inputs: PlacementInputs, options: SharedOptions, step: int) -> Placement:
    """CEPO's placement, or blame for mistakes alone."""
    if not options.constants.only_mistakes:
        return reweighted(inputs, options, step)
    kept = 1 - options.coefficient_at(step)
    advantages = inputs.advantages.unsqueeze(-1) * inputs.mask
    blameless = (advantages < 0) & (inputs.evidence >= 0)
    scale = (1 - kept) * inputs.advantages.abs()
    return Placement(
        torch.where(blameless, kept * advantages, advantages),
        inputs.advantages,
        scale,
        torch.zeros_like(inputs.mask),
        inputs.mask,
    )


def _refuses(columns: Collection[str], options: SharedOptions) -> str | None:  # noqa: ARG001
    return None if set(columns) >= COLUMNS else "it needs the figures task, whose tokens are known"


# No method, but what evidence without fault would do: credit by the figures task's ground truth.
ORACLE = Method(
    name="oracle",
    summary="more where the figures task's ground truth says that it decided",
    source="",
    facts=Facts(
        formula="A [(1 - λ) + λ w_t], w_t = 1 ± ε by the labels", told="nothing", passes="0", **FACTS_OF_WEIGHTS
    ),
    options=frozenset(SCHEDULE),
    labels=oracle_evidence,
    refuses=_refuses,
    placement=placed_by_labels,
    constants=Constants,
)

register_method(ORACLE)
register_knowledge(Knowledge(COLUMNS, first_error, token_kinds))
