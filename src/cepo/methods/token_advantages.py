"""TokenAdvantages: how evidence becomes token advantages, and what people look at of it.

A placement is a function of `CreditInputs`, the options and the optimiser step. It knows nothing of the trainer, and
sees whole rollouts, so that a weight may be normalised over one.

Dimensions: B rollouts, T completion tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .shared_options import SharedOptions

# A token whose advantage differs from its rollout's by less than this share of the scale counts as not moved.
NEAR = 0.02
_FARTHEST = 1e6


def of_one_process(counts: Tensor) -> Tensor:
    """The sum over processes, of counts of a single one."""
    return counts


@dataclass(frozen=True)
class CreditInputs:
    """What a placement is given.

    Attributes:
        advantages: (B,) A, GRPO's advantages.
        evidence: (B, T) evidence [nats]; 0 for a rollout that was not read.
        mask: (B, T) bool, the completion tokens that are trained on.
        scored: (B,) bool, the rollouts of which there is evidence.
        verdicts: (B,) the verifier's word: above 0 right, below 0 wrong, 0 none.
        unscorable: (B, T) bool, the tokens to which a teacher gave no finite log-prob; their evidence is 0.
        sum_counts: Sums a tensor of counts over the processes that share the mean of a loss; all of them call it
            together. A placement that counts tokens of other rollouts counts those of every process.
    """

    advantages: Tensor
    evidence: Tensor
    mask: Tensor
    scored: Tensor
    verdicts: Tensor
    unscorable: Tensor
    sum_counts: Callable[[Tensor], Tensor] = of_one_process

    def __post_init__(self):
        rows, table = self.advantages.shape, self.evidence.shape
        if self.evidence.dim() != 2 or rows != table[:1]:
            raise ValueError(f"advantages must be (B,) and evidence (B, T), got {tuple(rows)} and {tuple(table)}")
        for name, shape in (("mask", table), ("scored", rows), ("verdicts", rows), ("unscorable", table)):
            value = getattr(self, name)
            if value.shape != shape:
                raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(value.shape)}")


@dataclass(frozen=True)
class TokenAdvantages:
    """Token advantages, and what they are to be compared with.

    Attributes:
        advantages: (B, T) A_t; 0 outside of the mask.
        rollout_advantages: (B,) A, GRPO's or the method's own.
        scale: (B,) the |A_t - A| at which a page's colour is full; 0 where nothing is placed.
        at_bound: (B, T) bool, the tokens that a bound has stopped.
        mask: (B, T) bool, the completion tokens that are trained on.
        loss_weights: (B, T) what A_t is multiplied by in the loss's mean over tokens, for methods whose loss is not one
            mean over all of them; None: 1.
    """

    advantages: Tensor
    rollout_advantages: Tensor
    scale: Tensor
    at_bound: Tensor
    mask: Tensor
    loss_weights: Tensor | None = None

    def __post_init__(self):
        tokens, rollouts = self.mask.shape, self.mask.shape[:1]
        wanted = {"advantages": tokens, "at_bound": tokens, "rollout_advantages": rollouts, "scale": rollouts}
        for name, shape in wanted.items():
            found = getattr(self, name).shape
            if found != shape:
                kind = "tokens" if shape == tokens else "rollouts"
                raise ValueError(
                    f"a placement's {name} must have the shape {tuple(shape)} of {kind}, got {tuple(found)}"
                )

    @classmethod
    def of(cls, inputs: CreditInputs, advantages: Tensor, at_bound: Tensor | None = None) -> "TokenAdvantages":
        """Token advantages (B, T) beside GRPO's: a page's colour is full where one differs by |A|.

        Args:
            inputs: What the placement was given.
            advantages: (B, T) A_t; those outside of the mask count as 0.
            at_bound: (B, T) bool, the tokens that a bound has stopped; None: none.
        """
        bound = torch.zeros_like(inputs.mask) if at_bound is None else at_bound
        # Shapes are looked at before anything is spread over tokens by chance.
        placed = cls(advantages, inputs.advantages, inputs.advantages.abs(), bound, inputs.mask)
        kept = advantages.masked_fill(~inputs.mask, 0.0)
        return replace(placed, advantages=kept, at_bound=bound & inputs.mask)

    @property
    def shift(self) -> Tensor:
        """(B, T) how far a token is moved, as a share of the scale: above 0 it takes more of the credit or the blame.

        Of a rollout without an advantage, above 0 is credit.
        """
        base = self.rollout_advantages.unsqueeze(-1)
        direction = torch.where(base < 0, -1.0, 1.0)
        scale = self.scale.unsqueeze(-1)
        moved = direction * (self.advantages - base) / torch.where(scale > 0, scale, 1.0)
        # Beside a scale of next to nothing any difference would be infinite.
        return torch.where(self.mask & (scale > 0), moved.clamp(-_FARTHEST, _FARTHEST), 0.0)

    @property
    def moved(self) -> Tensor:
        """(B, T) bool, the tokens whose advantage differs from their rollout's by more than `NEAR` of the scale."""
        return self.shift.abs() > NEAR

    @property
    def in_loss(self) -> Tensor:
        """(B, T) what TRL's loss is given for advantages."""
        return self.advantages if self.loss_weights is None else self.advantages * self.loss_weights

    def weighted(self, factors: Tensor) -> "TokenAdvantages":
        """Every token advantage of a rollout times its factor (B,), which must not be negative."""
        return replace(
            self,
            advantages=self.advantages * factors.unsqueeze(-1),
            rollout_advantages=self.rollout_advantages * factors,
            scale=self.scale * factors,
        )


AssignCredit = Callable[[CreditInputs, SharedOptions, int], TokenAdvantages]


def uniform(inputs: CreditInputs, options: SharedOptions, step: int) -> TokenAdvantages:  # noqa: ARG001
    """GRPO's: every token of a rollout has its advantage (arXiv 2402.03300)."""
    advantages = inputs.advantages.detach().unsqueeze(-1) * inputs.mask
    nothing = torch.zeros_like(inputs.advantages)
    return TokenAdvantages(advantages, inputs.advantages, nothing, torch.zeros_like(inputs.mask), inputs.mask)


def as_advantages(inputs: CreditInputs, options: SharedOptions, step: int) -> TokenAdvantages:  # noqa: ARG001
    """The evidence itself, a token advantage of its own, whatever GRPO's is; A is its mean over the rollout."""
    evidence = inputs.evidence.masked_fill(~inputs.mask, 0.0)
    own = mean_of_tokens(evidence, inputs.mask)
    return TokenAdvantages(evidence, own, torch.ones_like(own), torch.zeros_like(inputs.mask), inputs.mask)


def mean_of_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """(B,) mean of (B, T) values over the tokens of a rollout that `mask` counts; 0 for a rollout without any."""
    return values.masked_fill(~mask, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def negative_weights(advantages: Tensor, weight: float) -> Tensor:
    """(B,) the factor of each rollout: `weight` where its advantage is below 0, else 1."""
    return torch.where(advantages < 0, weight, 1.0).to(advantages.dtype)
