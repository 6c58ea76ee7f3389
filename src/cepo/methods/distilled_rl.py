"""Distilled RL (arXiv 2607.17247): another, stronger model reads the rollout; its ratio to the policy weighs credit.

With l_t = log P_T - log P_S of the sampled tokens, the teacher on the student's own prompt,

    c_t = clip(exp l_t, 1 / ratio_clip, ratio_clip),    w_t = c_t / geometric mean of c over the rollout,    A_t = A w_t

for rollouts with A > 0; the others keep their advantage, without which training suffers (paper). The teacher has the
policy's vocabulary and reads what the policy's processor made of the prompt, images included.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..references.groups import References, Rollout
from .method import OTHER_MODEL, STUDENT, Context, Method, MethodDoc, StageContext
from .shared_options import SharedOptions
from .token_advantages import CreditInputs, TokenAdvantages, mean_of_tokens

# Beyond this [nats] a ratio is at its bound whatever it is.
_LARGEST = 80.0


@dataclass(frozen=True)
class Constants:
    """The values of the authors' scripts.

    Attributes:
        ratio_clip: The largest ratio, above 1; the smallest is its inverse.
        normalise: Divide by the geometric mean over the rollout.
        rollouts: Which are weighed: those with A > 0 (``positive``), with A < 0 (``negative``), or ``all``.
    """

    ratio_clip: float = 3.0
    normalise: bool = True
    rollouts: Literal["positive", "negative", "all"] = "positive"

    def __post_init__(self):
        if self.ratio_clip <= 1:
            raise ValueError(f"ratio_clip must be above 1, got {self.ratio_clip}")
        if self.rollouts not in ("positive", "negative", "all"):
            raise ValueError(f"rollouts must be positive, negative or all, got {self.rollouts!r}")

    def weighs(self, advantages: Tensor) -> Tensor:
        """(B,) bool, the rollouts whose advantages are weighed."""
        if self.rollouts == "all":
            return advantages != 0
        return advantages > 0 if self.rollouts == "positive" else advantages < 0


def references(
    attempts: Sequence[Rollout],
    solution: str,  # noqa: ARG001
    options: SharedOptions,  # noqa: ARG001
    tools: StageContext,  # noqa: ARG001
) -> list[References]:
    """None: the teacher is told nothing."""
    return [References("", ())] * len(attempts)


def contexts(references: References, options: SharedOptions) -> list[Context]:  # noqa: ARG001
    """The teacher on the student's prompt, and the student."""
    return [OTHER_MODEL, STUDENT]


def weighed_ones(advantages: Tensor, verdicts: Tensor, options: SharedOptions) -> Tensor:  # noqa: ARG001
    """(B,) bool, the rollouts whose advantages are weighed."""
    return options.constants.weighs(advantages)


def by_ratio(inputs: CreditInputs, options: SharedOptions, step: int) -> TokenAdvantages:  # noqa: ARG001
    """A w_t, clipped first and then normalised, so that w lies in [1 / ratio_clip^2, ratio_clip^2]."""
    own: Constants = options.constants
    raw = inputs.evidence.clamp(-_LARGEST, _LARGEST).exp()
    clipped = raw.clamp(1 / own.ratio_clip, own.ratio_clip)
    # A token that nobody could score keeps its share.
    found = inputs.mask & ~inputs.unscorable
    weights = clipped
    if own.normalise:
        weights = clipped / mean_of_tokens(clipped.log(), found).exp().unsqueeze(-1)
    weighed = (own.weighs(inputs.advantages) & inputs.scored).unsqueeze(-1) & found
    weights = torch.where(weighed, weights, 1.0).to(inputs.advantages.dtype)
    advantages = (inputs.advantages.unsqueeze(-1) * weights).masked_fill(~inputs.mask, 0.0)
    at_bound = (clipped != raw) & inputs.mask & weighed
    scale = (own.ratio_clip - 1) * inputs.advantages.abs()
    return TokenAdvantages(advantages, inputs.advantages, scale, at_bound, inputs.mask)


METHOD = Method(
    name="distilled_rl",
    summary="where A > 0, more if another, stronger model finds it likelier",
    source="arXiv 2607.17247",
    facts=MethodDoc(
        formula="A c_t / geometric mean of c, c_t = clip(P_T / P_S, 1/3, 3), where A > 0, else A",
        told="nothing; it is another model",
        sign="yes",
        bounds="1/9 <= A_t / A <= 9",
        passes="1 of the other model, where A > 0",
    ),
    options=frozenset({"teacher_model_name_or_path"}),
    references=references,
    contexts=contexts,
    rollout_filter=weighed_ones,
    assign_credit=by_ratio,
    constants=Constants,
    needs_other_model=True,
)
