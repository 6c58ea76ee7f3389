"""Data and descriptions for pages and terminals: credit of rollouts by method, and the text beside it.

Dimensions: T completion tokens.
"""

import json
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..methods.method import Method, MethodOptions
from ..methods.option_fields import option_fields
from ..methods.stages import STUDENT, Context
from ..references.groups import Fallback, Group, References, Rollout

VERDICT = {True: "correct", False: "incorrect", None: "no verdict"}
_RULES = {
    "lowest_reward": "the answer of the rejected rollout with the lowest reward (the paper's rule)",
    "most_common": "the group's most common incorrect answer",
    "own": "the rollout's own answer if rejected, else the most common incorrect answer",
    "mixture": "the group's distinct incorrect answers, at most {most}, by their mean probability",
    "own_or_mixture": "the rollout's own answer if rejected, else a mixture of at most {most} incorrect answers",
}
_SHOWN_OPTIONS = ("evidence_coefficient", "evidence_clip", "hint_template", "positive_content", "negative_content")
_FALLBACKS: dict[Fallback, str] = {
    "no_rejected": "no rollout of the group was rejected",
    "no_incorrect_answer": "no rejected rollout has an answer that differs from r+",
    "own_missing": "this rollout has no usable answer, so the most common incorrect answer is used",
    "no_correct_rollout": "the group has no other correct rollout for the hint, so the hint has the answer",
    "no_incorrect_rollout": "no other rollout has this incorrect answer, so the hint has the answer alone",
}
# If the method does not score the rollout for this reason.
_NOT_SCORED: dict[Fallback, str] = {
    "no_correct_rollout": "not scored: the group has no other correct rollout for the hint",
    "no_incorrect_rollout": "not scored: the group has no other incorrect rollout for the hint",
}


@dataclass(frozen=True)
class Variant:
    """A method with its options.

    Attributes:
        name: `grpo`, `cepo own`, `cepo mixture of 4`.
        options: The method's `MethodOptions`.
    """

    name: str
    options: Any

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def method(self) -> Method:
        return self.options.method_spec

    @property
    def rule(self) -> str | None:
        """The rule for r-; None for a method without this option."""
        return getattr(self.options, "negative_reference", None)

    def with_options(self, **options: Any) -> "Variant":
        return Variant(self.name, replace(self.options, **options))

    @property
    def short(self) -> str:
        """The name without the size of a mixture."""
        return self.name.partition(" of ")[0]


@dataclass(frozen=True)
class Credit:
    """The credit of one rollout under one variant.

    Attributes:
        references: r+ and r-, and the fallback.
        contexts: Contexts of the scoring passes, the one with r+ first; STUDENT (None) is the prompt without a hint.
            Empty if the rollout is not scored.
        positive, negative: (T,) log P_T+, and log P_T- or log P_S [nats]; None if not scored.
        evidence: (T,) evidence [nats]; 0 if not scored.
        advantages: (T,) A_t.
        shift: (T,) (A_t - A) as a share of the scale, see `TokenAdvantages.shift`.
        moved: (T,) bool, see `TokenAdvantages`.
        scale: |A_t - A| at a shift of 1.
        rollout_advantage: A, GRPO's or the method's own.
    """

    references: References
    contexts: list[Context]
    positive: Tensor | None
    negative: Tensor | None
    evidence: Tensor
    advantages: Tensor
    shift: Tensor
    moved: Tensor
    scale: float
    rollout_advantage: float


@dataclass(frozen=True)
class InspectedRollout:
    """One rollout under all variants.

    Attributes:
        rollout: The rollout.
        number: Its position in the group, from 1.
        tokens: (T,) text that each token adds.
        student: (T,) log P_S [nats].
        credit: Credit under each variant.
        filler: (T,) whether a token is filler, if the task has token labels.
    """

    rollout: Rollout
    number: int
    tokens: list[str]
    student: Tensor
    credit: dict[Variant, Credit]
    filler: list[bool] | None = None


@dataclass(frozen=True)
class InspectedGroup:
    """A group and its local rollouts under all variants."""

    group: Group
    rollouts: list[InspectedRollout]

    def credit(self, variant: Variant) -> list[Credit]:
        """The credit of the rollouts under one variant."""
        return [rollout.credit[variant] for rollout in self.rollouts]


def explain_variant(variant: Variant) -> str:
    """Description of a method and its rule for r-."""
    summary = variant.method.doc.summary
    return f"{summary}; r-: {explain_rule(variant)}" if variant.rule else summary


def explain_rule(variant: Variant) -> str:
    """Description of the rule for r-; "" for a method without this option."""
    return _RULES[variant.rule].format(most=variant.options.max_negatives) if variant.rule else ""


def explain_options(variant: Variant) -> str:
    """The options that decide the credit."""
    common = option_fields(MethodOptions)
    shown = {
        name: getattr(variant.options, name)
        for name, one in option_fields(variant.method.options).items()
        if name in _SHOWN_OPTIONS or (one.group == "method" and name not in common)
    }
    return ", ".join(f"{name} {json.dumps(value, ensure_ascii=False)}" for name, value in shown.items())


def explain_references(credit: Credit) -> tuple[list[str], str | None]:
    """The incorrect answers in a rollout's hints, and a description of its fallback, if any."""
    has_negative_hint = any(isinstance(context, str) for context in credit.contexts[1:])
    negatives = list(credit.references.negatives) if has_negative_hint else []
    fallback = credit.references.fallback
    descriptions = _FALLBACKS if credit.contexts else _FALLBACKS | _NOT_SCORED
    reason = fallback and descriptions[fallback]
    if reason and STUDENT in credit.contexts and not negatives:
        reason += "; the policy without a hint replaces r-"
    return negatives, reason
