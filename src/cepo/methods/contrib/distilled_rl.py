"""Distilled RL (arXiv 2607.17247): another, stronger model scores the rollout; its ratio to the policy weights A.

With l_t = log P_T - log P_S of the sampled tokens, the teacher on the student's prompt,

    c_t = clip(exp l_t, 1 / ratio_clip, ratio_clip),    w_t = c_t / geometric mean of c over the rollout,    A_t = A w_t

for rollouts with A > 0. The others keep their advantage: weighting them too makes training worse (paper). The teacher
has the policy's vocabulary and receives the prompt as the policy's processor encoded it, images included.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...references.groups import References
from ..method import Method, MethodDoc
from ..option_fields import option
from ..options import OtherModelOptions
from ..stages import OTHER_MODEL, STUDENT, Context, no_references, with_advantage
from ..token_advantages import CreditInputs, TokenAdvantages, mean_of_tokens

# Beyond this [nats] a ratio is at its bound.
_LARGEST = 80.0


@dataclass(kw_only=True)
class DistilledRLOptions(OtherModelOptions):
    """The values of the authors' scripts."""

    ratio_clip: float = option(3.0, "Largest ratio; the smallest is its inverse.", bounds={">": 1})
    normalize_ratios: bool = option(True, "Divide by the geometric mean over the rollout.")
    reweighted_rollouts: Literal["positive", "negative", "all"] = option(
        "positive", "Rollouts that are weighted: positive (A > 0), negative (A < 0) or all."
    )

    def weights_rollout(self, advantages: Tensor) -> Tensor:
        """(B,) bool, the rollouts that are weighted."""
        if self.reweighted_rollouts == "all":
            return advantages != 0
        return advantages > 0 if self.reweighted_rollouts == "positive" else advantages < 0


def other_model_and_student(references: References, options: DistilledRLOptions) -> list[Context]:  # noqa: ARG001
    """The other model on the student's prompt, and the student."""
    return [OTHER_MODEL, STUDENT]


def weighted_rollouts(advantages: Tensor, verdicts: Tensor, options: DistilledRLOptions) -> Tensor:
    """(B,) bool, the rollouts that are weighted."""
    return options.weights_rollout(advantages) & with_advantage(advantages, verdicts, options)


def weighted_by_ratio(inputs: CreditInputs, options: DistilledRLOptions, step: int) -> TokenAdvantages:  # noqa: ARG001
    """A w_t, clipped first and normalized after, so that w lies in [1 / ratio_clip^2, ratio_clip^2]."""
    raw = inputs.evidence.clamp(-_LARGEST, _LARGEST).exp()
    clipped = raw.clamp(1 / options.ratio_clip, options.ratio_clip)
    # A token without finite log-probs keeps its advantage.
    found = inputs.mask & ~inputs.unscorable
    mean = mean_of_tokens(clipped.log(), found).exp().unsqueeze(-1) if options.normalize_ratios else 1.0
    weights = clipped / mean
    weighted = (options.weights_rollout(inputs.advantages) & inputs.scored).unsqueeze(-1) & found
    weights = torch.where(weighted, weights, 1.0).to(inputs.advantages.dtype)
    advantages = inputs.advantages.unsqueeze(-1) * weights
    scale = (options.ratio_clip - 1) * inputs.advantages.abs()
    return TokenAdvantages.of(inputs, advantages, (clipped != raw) & weighted, scale)


METHOD = Method(
    name="distilled_rl",
    doc=MethodDoc(
        summary="where A > 0, more if another, stronger model finds it likelier",
        source="arXiv 2607.17247",
        formula="A c_t / geometric mean of c, c_t = clip(P_T / P_S, 1/3, 3), where A > 0, else A",
        hints="no hint; another model",
        sign="yes",
        bounds="1/9 <= A_t / A <= 9",
        passes="1 of the other model, where A > 0",
    ),
    options=DistilledRLOptions,
    references=no_references,
    contexts=other_model_and_student,
    rollout_filter=weighted_rollouts,
    assign_credit=weighted_by_ratio,
)
