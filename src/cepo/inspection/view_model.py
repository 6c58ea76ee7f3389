"""What a view shows of inspected groups."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..methods.method import MethodOptions
from ..methods.option_fields import option_fields
from ..methods.stages import STUDENT
from ..references.groups import Fallback, Group
from ..scoring.prompts import token_texts
from .inspect import Credit, Inspected, Variant

_RULES = {
    "lowest_reward": "the answer of the rejected rollout with the lowest reward (the paper's rule)",
    "most_common": "the group's most common wrong answer",
    "own": "a rejected rollout's own answer; for the others the most common wrong one",
    "mixture": "the group's distinct wrong answers, {most} at most, their mean probability",
    "own_or_mixture": "a rejected rollout's own answer; for the others the mixture of the wrong ones, {most} at most",
}
_SHOWN_OPTIONS = ("evidence_coefficient", "evidence_clip", "hint_template", "positive_content", "negative_content")
_FALLBACKS: dict[Fallback, str] = {
    "no_rejected": "no rollout of the group was rejected",
    "no_incorrect_answer": "no rejected rollout gives an answer that differs from r+",
    "own_missing": "this rollout has no usable answer of its own, so the most common wrong one is used",
    "no_correct_rollout": "the group has no other right rollout to tell the teacher, so it is told the answer",
    "no_incorrect_rollout": "no other rollout ends in this wrong answer, so the teacher is told the answer alone",
}

# The same for a rollout that a method therefore leaves unscored.
_NOT_SCORED: dict[Fallback, str] = {
    "no_correct_rollout": "the group has no other right rollout to tell the teacher, so this one is not scored",
    "no_incorrect_rollout": "the group has no other wrong rollout to tell the teacher, so this one is not scored",
}


@dataclass(frozen=True)
class Shown:
    """One group, ready to be shown.

    Attributes:
        group: Its rollouts.
        inspected: Their credit.
        tokens: For each rollout, the text that each token adds.
        filler: For each rollout and token, whether it is filler; empty where nobody knows.
    """

    group: Group
    inspected: list[Inspected]
    tokens: list[list[str]]
    filler: list[list[bool]] = field(default_factory=list)


def explain_variant(variant: Variant) -> str:
    """A method and its rule in words."""
    summary = variant.method.doc.summary
    return f"{summary}; r-: {explain_rule(variant)}" if variant.rule else summary


def explain_rule(variant: Variant) -> str:
    """Whose answer is r-, in words; "" for a method that does not let one choose."""
    return _RULES[variant.rule].format(most=variant.options.max_negatives) if variant.rule else ""


def explain_options(variant: Variant) -> str:
    """The options and constants with which a method placed the credit that is shown."""
    common = option_fields(MethodOptions)
    shown = {
        name: getattr(variant.options, name)
        for name, one in option_fields(variant.method.options).items()
        if name in _SHOWN_OPTIONS or (one.group == "method" and name not in common)
    }
    return ", ".join(f"{name} {json.dumps(value, ensure_ascii=False)}" for name, value in shown.items())


def explain_references(credit: Credit) -> tuple[list[str], str | None]:
    """The wrong answers that a rollout was read with, and what had to be done instead of the rule, if anything."""
    told = any(isinstance(context, str) for context in credit.contexts[1:])
    negatives = list(credit.references.negatives) if told else []
    fallback = credit.references.fallback
    words = _FALLBACKS if credit.contexts else _FALLBACKS | _NOT_SCORED
    reason = fallback and words[fallback]
    if reason and credit.contexts and STUDENT in credit.contexts and not negatives:
        reason += "; the policy without a hint stands in for r-"
    return negatives, reason


def share_not_moved(moved: Sequence[bool], counted: Sequence[bool] | None = None) -> float | None:
    """Share of tokens, or of the counted ones, that keep their rollout's advantage; None if there are none."""
    kept = [m for position, m in enumerate(moved) if counted is None or counted[position]]
    return sum(not m for m in kept) / len(kept) if kept else None


def show(
    groups: Sequence[Group],
    inspected: Sequence[list[Inspected]],
    processing_class: Any,
    filler_of: Callable[[int, list[str]], list[bool]] | None = None,
) -> list[Shown]:
    """Groups with their tokens as the tokenizer cuts them.

    Args:
        groups: The groups.
        inspected: Their rollouts' credit.
        processing_class: Tokenizer, or processor.
        filler_of: Tells, for a group's index and a rollout's tokens, which of them are filler, where somebody knows.
    """
    shown = []
    for index, (group, credit) in enumerate(zip(groups, inspected, strict=True)):
        tokens = [token_texts(processing_class, rollout.ids) for rollout in group.rollouts]
        filler = [filler_of(index, texts) for texts in tokens] if filler_of else []
        shown.append(Shown(group, credit, tokens, filler))
    return shown
