"""CEPO with additive evidence, which also learns from zero-variance groups of incorrect rollouts.

With s = sign(A), or -1 for an incorrect rollout with A = 0, and d = log P_T+ - log P_T- [nats], for a scored rollout,

    A_t = s max(0, uniform_share |A| + evidence_bonus tanh(s d / tau))

A rollout that is not scored keeps A. In a zero-variance group of incorrect rollouts, where GRPO has no gradient, tokens
with evidence for the incorrect answer get a negative advantage; A is then the mean of A_t, so that
`negative_advantage_weight` (0.3 by default) applies to these rollouts too.

Chosen by gradient alignment among several ways to use evidence (dev/LOG.md). In contrast to CEPO, the mean of
A_t over a rollout is not near A, and evidence has the same strength in every group. No token changes the sign of its
rollout's advantage.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .cepo import contrast_contexts
from .method import Method, MethodDoc
from .option_fields import option
from .options import ContrastOptions, TeacherOptions
from .stages import correct_and_incorrect_answers, with_advantage
from .token_advantages import CreditInputs, TokenAdvantages, mean_of_tokens


@dataclass(kw_only=True)
class CEPOAdditiveOptions(ContrastOptions, TeacherOptions):
    """The values chosen in experiments/gradients.md."""

    negative_advantage_weight: float = 0.3
    uniform_share: float = option(0.2, "Share of A that every token keeps whatever its evidence.", bounds={">=": 0})
    evidence_bonus: float = option(0.5, "Most that evidence adds or takes away.", bounds={">=": 0})
    tau: float = option(0.1, "Evidence at which the bonus begins to saturate [nats].", bounds={">": 0})
    learn_from_zero_variance_groups: bool = option(
        True, "Score incorrect rollouts of zero-variance groups and learn from them."
    )

    def __post_init__(self):
        super().__post_init__()
        if self.uniform_share == self.evidence_bonus == 0:
            raise ValueError("uniform_share and evidence_bonus are both 0, so every advantage would be 0")


def zero_variance_incorrect(advantages: Tensor, verdicts: Tensor, options: CEPOAdditiveOptions) -> Tensor:
    """(B,) bool, incorrect rollouts of zero-variance groups, if the options learn from them."""
    learns = options.learn_from_zero_variance_groups and options.negative_advantage_weight > 0
    return (advantages == 0) & (verdicts < 0) & learns


def additive_filter(advantages: Tensor, verdicts: Tensor, options: CEPOAdditiveOptions) -> Tensor:
    """(B,) bool, rollouts with an advantage, and those of `zero_variance_incorrect`."""
    return with_advantage(advantages, verdicts, options) | zero_variance_incorrect(advantages, verdicts, options)


def additive(inputs: CreditInputs, options: CEPOAdditiveOptions, step: int) -> TokenAdvantages:  # noqa: ARG001
    """s max(0, uniform_share |A| + evidence_bonus tanh(s d / tau))."""
    incorrect = zero_variance_incorrect(inputs.advantages, inputs.verdicts, options) & inputs.scored
    plain = inputs.advantages.unsqueeze(-1)
    sign = torch.where(incorrect, -1.0, inputs.advantages.sign()).to(plain.dtype).unsqueeze(-1)
    bonus = options.evidence_bonus * (sign * inputs.evidence / options.tau).tanh().to(plain.dtype)
    raw = options.uniform_share * plain.abs() + bonus
    scored = inputs.scored.unsqueeze(-1)
    token_advantages = torch.where(scored, sign * raw.clamp(min=0), plain).masked_fill(~inputs.mask, 0.0)
    advantages = torch.where(incorrect, mean_of_tokens(token_advantages, inputs.mask), inputs.advantages)
    size = advantages.abs()
    # The largest |A_t - A|: at A_t = 0, or at the largest |A_t|.
    largest = torch.maximum(size, options.uniform_share * inputs.advantages.abs() + options.evidence_bonus - size)
    scale = torch.where(inputs.scored & (sign.squeeze(-1) != 0), largest, 0.0)
    return TokenAdvantages(token_advantages, advantages, scale, (raw < 0) & scored & inputs.mask, inputs.mask)


METHOD = Method(
    name="cepo_additive",
    doc=MethodDoc(
        summary="a fifth of it, plus up to 0.5 where evidence supports the verdict; also in groups without a correct "
        "rollout",
        formula="s max(0, share |A| + bonus tanh(s log(P_T+ / P_T-) / τ)), s = sign(A), or -1 for an incorrect rollout "
        "with A = 0",
        hints="r+; each r-",
        sign="yes, or 0",
        bounds="|A_t| <= share |A| + bonus; A without evidence",
        passes="1 + K; 2 with one r-",
    ),
    options=CEPOAdditiveOptions,
    references=correct_and_incorrect_answers,
    contexts=contrast_contexts,
    rollout_filter=additive_filter,
    assign_credit=additive,
)
