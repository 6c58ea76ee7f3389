"""CSCR (arXiv 2607.27888): less credit for tokens that move when an outcome is asserted, whichever outcome it is.

A rollout is read under a hint that says that the answer is right, and under one that says that it is wrong. With the
sensitivity c_t = max(|log P_T+ - log P_S|, |log P_T- - log P_S|) [nats],

    u_t = max(floor, exp(-rate max(0, c_t - threshold))),    w_t = u_t / mean of u over the rollout,    A_t = A w_t

so that the rollout's credit is kept. It never reads the sign of the evidence: where CEPO gives more, CSCR gives less.

The mechanism is the paper's, as it is told; it leaves open, as far as known, and we chose: rate, threshold and floor
(`Constants`), the wording of the hints, normalising to a mean of 1, no schedule, the live policy as teacher.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..credit import evidence, unscorable
from ..references.groups import References, Rollout
from .method import STUDENT, TEACHER, Context, Evidence, Method, MethodDoc, StageContext
from .shared_options import SharedOptions
from .token_advantages import CreditInputs, TokenAdvantages, mean_of_tokens

HINT_TEMPLATE = "\n\n{answer}"
SAID_RIGHT, SAID_WRONG = "The answer that follows is correct.", "The answer that follows is wrong."


@dataclass(frozen=True)
class Constants:
    """Ours: the paper's are not known.

    Attributes:
        rate: How fast the weight falls with the sensitivity [1 / nats].
        threshold: The sensitivity [nats] up to which the weight is 1, before it is normalised.
        floor: The least weight, before it is normalised.
    """

    rate: float = 1.0
    threshold: float = 0.0
    floor: float = 0.1

    def __post_init__(self):
        if self.rate < 0 or self.threshold < 0:
            raise ValueError("rate and threshold must not be negative")
        if not 0 < self.floor <= 1:
            raise ValueError(f"floor must lie in (0, 1], got {self.floor}")


def references(
    attempts: Sequence[Rollout],
    solution: str,  # noqa: ARG001
    options: SharedOptions,  # noqa: ARG001
    tools: StageContext,  # noqa: ARG001
) -> list[References]:
    """The two outcomes, the same for every rollout."""
    return [References(SAID_RIGHT, (SAID_WRONG,))] * len(attempts)


def contexts(references: References, options: SharedOptions) -> list[Context]:  # noqa: ARG001
    """Told right, told wrong, and the student."""
    return [references.positive, *references.negatives, STUDENT]


def sensitivity(logps: Tensor, present: Tensor) -> Evidence:
    """(B, T) the larger of the two shifts, without their signs [nats].

    Args:
        logps: (3, B, T) log-probs told right, told wrong, and not told [nats].
        present: (3, B) bool.
    """
    right, wrong, student = logps[:3] if len(logps) > 2 else (*logps[:2], logps[0])
    values = torch.maximum(evidence(right, student).abs(), evidence(wrong, student).abs())
    unread = ~present.any(0)
    missing = (unscorable(right, student) | unscorable(wrong, student)).masked_fill(unread.unsqueeze(-1), False)
    return Evidence(values.masked_fill(unread.unsqueeze(-1), 0.0), missing, ~unread, right, wrong)


def damped(inputs: CreditInputs, options: SharedOptions, step: int) -> TokenAdvantages:  # noqa: ARG001
    """A w_t, with weights of mean 1 over the trained tokens of a rollout."""
    own: Constants = options.constants
    raw = (-own.rate * (inputs.evidence - own.threshold).clamp(min=0)).exp()
    bounded = raw.clamp(min=own.floor)
    # A token that nobody could score keeps its share.
    found = inputs.mask & ~inputs.unscorable
    weights = bounded / mean_of_tokens(bounded, found).clamp(min=own.floor).unsqueeze(-1)
    weights = torch.where(inputs.scored.unsqueeze(-1) & found, weights, 1.0).to(inputs.advantages.dtype)
    advantages = inputs.advantages.unsqueeze(-1) * weights
    return TokenAdvantages.of(inputs, advantages, raw < own.floor)


METHOD = Method(
    name="cscr",
    summary="less where an asserted outcome, right or wrong, moves it; the sum is kept",
    source="arXiv 2607.27888",
    facts=MethodDoc(
        formula="A u_t / mean(u), u_t = max(floor, exp(-rate c_t)), c_t = max(|log P_T+/P_S|, |log P_T-/P_S|)",
        told="that the answer is right; that it is wrong",
        sign="yes",
        bounds="floor <= A_t / A <= 1 / floor; mean A",
        passes="2",
    ),
    options=frozenset({"hint_template", *TEACHER}),
    references=references,
    contexts=contexts,
    evidence=sensitivity,
    assign_credit=damped,
    constants=Constants,
    evidence_is_signed=False,
    defaults={"hint_template": HINT_TEMPLATE},
)
