"""CEPO's evidence, added: a small share of the advantage for every token, and more where evidence speaks for it.

With s = sign(A), or -1 where A is 0 and the rollout is wrong, and d = log P_T+ - log P_T- [nats], for a rollout of
which there is evidence,

    A_t = s max(0, prior |A| + eta tanh(s d / tau))

A rollout without evidence keeps A. So a group that is all wrong, from which GRPO learns nothing, is learned from too:
its mistakes are blamed, tokens that speak for its wrong answer and against r+. There A is taken to be the mean of A_t,
so that `negative_advantage_weight`, 0.3 unless told otherwise, turns this blame down as well.

Ours, chosen by gradient alignment among the placements that evidence allows (experiments/gradients.md). What is given
up beside CEPO: a rollout's credit is not kept, on the mean or else, and evidence counts the same in every group,
however rare its verdict. What is kept: no token goes against its rollout's verdict.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .cepo import contexts
from .method import CONTRAST_OPTIONS, TEACHER, Method, MethodDoc, correct_and_incorrect_answers
from .shared_options import SharedOptions
from .token_advantages import CreditInputs, TokenAdvantages, mean_of_tokens


@dataclass(frozen=True)
class Constants:
    """Ours.

    Attributes:
        prior: Share of A that every token keeps, whatever evidence says.
        eta: The most that evidence adds, or takes away.
        tau: Evidence at which tanh begins to saturate [nats].
        all_wrong: Whether groups that are all wrong are read and learned from.
    """

    prior: float = 0.2
    eta: float = 0.5
    tau: float = 0.1
    all_wrong: bool = True

    def __post_init__(self):
        if self.prior < 0 or self.eta < 0:
            raise ValueError("prior and eta must not be negative")
        if self.prior == self.eta == 0:
            raise ValueError("prior and eta are 0: nothing would be learned")
        if self.tau <= 0:
            raise ValueError(f"tau must be above 0, got {self.tau}")


def all_wrong(advantages: Tensor, verdicts: Tensor, options: SharedOptions) -> Tensor:
    """(B,) bool, wrong rollouts of groups without variance, where they are learned from."""
    learned = options.constants.all_wrong and options.negative_weight > 0
    return (advantages == 0) & (verdicts < 0) & learned


def selects(advantages: Tensor, verdicts: Tensor, options: SharedOptions) -> Tensor:
    """(B,) bool, rollouts of groups with variance, and wrong ones of those without."""
    return (advantages != 0) | all_wrong(advantages, verdicts, options)


def added(inputs: CreditInputs, options: SharedOptions, step: int) -> TokenAdvantages:  # noqa: ARG001
    """s max(0, prior |A| + eta tanh(s d / tau))."""
    own: Constants = options.constants
    wrong = all_wrong(inputs.advantages, inputs.verdicts, options) & inputs.scored
    plain = inputs.advantages.unsqueeze(-1)
    sign = torch.where(wrong, -1.0, inputs.advantages.sign()).to(plain.dtype).unsqueeze(-1)
    raw = own.prior * plain.abs() + own.eta * (sign * inputs.evidence / own.tau).tanh().to(plain.dtype)
    scored = inputs.scored.unsqueeze(-1)
    placed = torch.where(scored, sign * raw.clamp(min=0), plain).masked_fill(~inputs.mask, 0.0)
    advantages = torch.where(wrong, mean_of_tokens(placed, inputs.mask), inputs.advantages)
    size = advantages.abs()
    # The farthest that a token can be from A: at 0, or at the most.
    farthest = torch.maximum(size, own.prior * inputs.advantages.abs() + own.eta - size)
    scale = torch.where(inputs.scored & (sign.squeeze(-1) != 0), farthest, 0.0)
    return TokenAdvantages(placed, advantages, scale, (raw < 0) & scored & inputs.mask, inputs.mask)


METHOD = Method(
    name="cepo_additive",
    summary="a fifth of it, up to a half more where evidence speaks for it; blame in groups that are all wrong",
    source="ours",
    facts=MethodDoc(
        formula="s max(0, prior |A| + η tanh(s log(P_T+ / P_T-) / τ)), s = sign(A), or -1 in a group that is all wrong",
        told="r+; each r-",
        sign="yes, or 0",
        bounds="|A_t| <= prior |A| + η; A without evidence",
        passes="1 + K; 2 with one r-",
    ),
    options=frozenset({*CONTRAST_OPTIONS, *TEACHER}),
    defaults={"negative_advantage_weight": 0.3},
    references=correct_and_incorrect_answers,
    contexts=contexts,
    rollout_filter=selects,
    assign_credit=added,
    constants=Constants,
)
