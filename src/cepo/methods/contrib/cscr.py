"""CSCR (arXiv 2607.27888): less credit for tokens whose log-prob an asserted outcome shifts, whichever outcome it is.

A rollout is scored under a hint that says that the answer is correct, and under one that says that it is wrong. With
the sensitivity c_t = max(|log P_T+ - log P_S|, |log P_T- - log P_S|) [nats],

    u_t = max(floor, exp(-rate max(0, c_t - threshold))),    w_t = u_t / mean of u over the rollout,    A_t = A w_t

so that the rollout's mean advantage is kept. The sign of the evidence has no part: large evidence means less credit.

The mechanism is the paper's. Open in it, as far as known, and chosen here: rate, threshold and floor, the wording of
the hints, normalizing to a mean of 1, no schedule, the current weights as teacher.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...credit import evidence, unscorable
from ...references.groups import References, Rollout
from ..method import Method, MethodDoc
from ..option_fields import option
from ..options import TeacherOptions, TemplateOptions
from ..stages import STUDENT, Context, Evidence, StageContext
from ..token_advantages import CreditInputs, TokenAdvantages, mean_of_tokens

SAID_CORRECT, SAID_WRONG = "The answer that follows is correct.", "The answer that follows is wrong."


@dataclass(kw_only=True)
class CSCROptions(TemplateOptions, TeacherOptions):
    """Values chosen here: the paper's are not known."""

    hint_template: str = "\n\n{answer}"
    damping_rate: float = option(1.0, "Decay of the weight with the sensitivity [1 / nats].", bounds={">=": 0})
    damping_threshold: float = option(0.0, "Sensitivity up to which u is 1 [nats].", bounds={">=": 0})
    damping_floor: float = option(0.1, "Smallest u.", bounds={">": 0, "<=": 1})


def outcomes(
    rollouts: Sequence[Rollout],
    solution: str,  # noqa: ARG001
    options: CSCROptions,  # noqa: ARG001
    context: StageContext,  # noqa: ARG001
) -> list[References]:
    """The two outcomes, the same for every rollout."""
    return [References(SAID_CORRECT, (SAID_WRONG,))] * len(rollouts)


def outcome_contexts(references: References, options: CSCROptions) -> list[Context]:  # noqa: ARG001
    """Both outcomes, and the student."""
    return [references.positive, *references.negatives, STUDENT]


def sensitivity(logps: Tensor, present: Tensor) -> Evidence:
    """(B, T) the larger of the two shifts, without their signs [nats].

    Args:
        logps: (3, B, T) log-probs under the two outcomes and without a hint [nats].
        present: (3, B) bool.
    """
    correct, wrong, student = logps[:3] if len(logps) > 2 else (*logps[:2], logps[0])
    values = torch.maximum(evidence(correct, student).abs(), evidence(wrong, student).abs())
    scored = present.any(0)
    missing = (unscorable(correct, student) | unscorable(wrong, student)) & scored.unsqueeze(-1)
    return Evidence(values.masked_fill(~scored.unsqueeze(-1), 0.0), missing, scored, correct, wrong)


def damped(inputs: CreditInputs, options: CSCROptions, step: int) -> TokenAdvantages:  # noqa: ARG001
    """A w_t, with weights of mean 1 over the trained tokens of a rollout."""
    raw = (-options.damping_rate * (inputs.evidence - options.damping_threshold).clamp(min=0)).exp()
    bounded = raw.clamp(min=options.damping_floor)
    # A token without finite log-probs keeps its advantage.
    found = inputs.mask & ~inputs.unscorable
    weights = bounded / mean_of_tokens(bounded, found).clamp(min=options.damping_floor).unsqueeze(-1)
    weights = torch.where(inputs.scored.unsqueeze(-1) & found, weights, 1.0).to(inputs.advantages.dtype)
    advantages = inputs.advantages.unsqueeze(-1) * weights
    return TokenAdvantages.of(inputs, advantages, raw < options.damping_floor)


METHOD = Method(
    name="cscr",
    doc=MethodDoc(
        summary="less if an asserted verdict in the prompt shifts a token's log-prob; the rollout's total is kept",
        source="arXiv 2607.27888",
        formula="A u_t / mean(u), u_t = max(floor, exp(-rate c_t)), c_t = max(|log P_T+/P_S|, |log P_T-/P_S|)",
        hints="that the answer is correct; that it is wrong",
        sign="yes",
        bounds="floor <= A_t / A <= 1 / floor; mean A",
        passes="2",
    ),
    options=CSCROptions,
    references=outcomes,
    contexts=outcome_contexts,
    evidence=sensitivity,
    assign_credit=damped,
    evidence_is_signed=False,
)
