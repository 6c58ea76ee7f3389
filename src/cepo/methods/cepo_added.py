"""CEPO's evidence, added: a small share of the advantage for every token, and more where evidence speaks for it.

With s = sign(A) and d = log P_T+ - log P_T- [nats], for a rollout of which there is evidence,

    A_t = s max(0, prior |A| + eta tanh(s d / tau))

A rollout without evidence keeps A. Ours, chosen by `cepo gradients` among the placements that evidence allows
(docs/gradients.md). What is given up beside CEPO: a rollout's credit is not kept, on the mean or else, and evidence
counts the same in every group, however rare its verdict. What is kept: no token goes against its rollout's verdict.
"""

from dataclasses import dataclass

import torch

from .cepo import contexts
from .method import TEACHER, Facts, Method, right_and_wrong_answers
from .placement import Placement, PlacementInputs
from .shared_options import SharedOptions


@dataclass(frozen=True)
class Constants:
    """Ours.

    Attributes:
        prior: Share of A that every token keeps, whatever evidence says.
        eta: The most that evidence adds, or takes away.
        tau: Evidence at which tanh begins to saturate [nats].
    """

    prior: float = 0.2
    eta: float = 0.5
    tau: float = 0.1

    def __post_init__(self):
        if self.prior < 0 or self.eta < 0:
            raise ValueError("prior and eta must not be negative")
        if self.prior == self.eta == 0:
            raise ValueError("prior and eta are 0: nothing would be learned")
        if self.tau <= 0:
            raise ValueError(f"tau must be above 0, got {self.tau}")


def added(inputs: PlacementInputs, options: SharedOptions, step: int) -> Placement:  # noqa: ARG001
    """s max(0, prior |A| + eta tanh(s d / tau))."""
    own: Constants = options.constants
    advantages = inputs.advantages.unsqueeze(-1)
    sign = advantages.sign()
    evidence = (sign * inputs.evidence / own.tau).tanh().to(advantages.dtype)
    raw = own.prior * advantages.abs() + own.eta * evidence
    scored = inputs.scored.unsqueeze(-1)
    placed = torch.where(scored, sign * raw.clamp(min=0), advantages).masked_fill(~inputs.mask, 0.0)
    stopped = (raw < 0) & scored & inputs.mask
    farthest = torch.maximum(inputs.advantages.abs(), own.eta + (own.prior - 1) * inputs.advantages.abs())
    scale = torch.where(inputs.scored & (inputs.advantages != 0), farthest, 0.0)
    return Placement(placed, inputs.advantages, scale, stopped, inputs.mask)


METHOD = Method(
    name="cepo_added",
    summary="a fifth of it, and up to a half more where a token speaks for r+ against r-",
    source="ours",
    facts=Facts(
        formula="s max(0, prior |A| + η tanh(s log(P_T+ / P_T-) / τ)), s = sign(A)",
        told="r+; each r-",
        sign="yes, or 0",
        bounds="|A_t| <= prior |A| + η; A without evidence",
        passes="1 + K; 2 with one r-",
    ),
    options=frozenset(
        {
            *("negative_reference", "max_negatives", "no_negative", "hint_template", "content_tokens"),
            *("positive_content", "negative_content", "positive_part", "negative_part"),
            *TEACHER,
        }
    ),
    references=right_and_wrong_answers,
    contexts=contexts,
    placement=added,
    constants=Constants,
)
