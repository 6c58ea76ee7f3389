"""The last stage of a method, from evidence to token advantages: its inputs, its result and two simple stages.

A stage is a function of `CreditInputs`, the method's options and the optimizer step. It receives whole rollouts, so
that a weight may be normalized over one.

Dimensions: B rollouts, T completion tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

# A token counts as moved if its advantage differs from its rollout's by more than this share of the scale.
NEAR = 0.02
_LARGEST_SHIFT = 1e6


@dataclass(frozen=True)
class CreditInputs:
    """The inputs of `assign_credit`.

    Attributes:
        advantages: (B,) A, GRPO's advantages.
        evidence: (B, T) evidence [nats]; 0 for a rollout without evidence.
        mask: (B, T) bool, the completion tokens that are trained on.
        scored: (B,) bool, rollouts that have evidence.
        verdicts: (B,) above 0 for a correct rollout, below 0 for an incorrect one, 0 without a verdict.
        unscorable: (B, T) bool, tokens to which a teacher gave no finite log-prob; their evidence is 0.
        sum_counts: Sums a tensor of counts over the processes that share the mean of a loss; a collective call.
    """

    advantages: Tensor
    evidence: Tensor
    mask: Tensor
    scored: Tensor
    verdicts: Tensor
    unscorable: Tensor
    sum_counts: Callable[[Tensor], Tensor] = lambda counts: counts


@dataclass(frozen=True)
class TokenAdvantages:
    """Token advantages and the rollout advantages that they are compared with.

    Attributes:
        advantages: (B, T) A_t; 0 outside the mask.
        rollout_advantages: (B,) A: GRPO's, or the method's replacement.
        scale: (B,) the |A_t - A| that a credit page shows in full color; 0 for a rollout whose tokens all keep A.
        at_bound: (B, T) bool, tokens at a bound of the method.
        mask: (B, T) bool, the completion tokens that are trained on.
        loss_weights: (B, T) factor on A_t in the loss's mean over tokens; None: 1.

    Raises:
        ValueError: If a shape does not fit.
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
                kind = "(B, T)" if shape == tokens else "(B,)"
                raise ValueError(
                    f"token advantages: {name} must have shape {kind} = {tuple(shape)}, got {tuple(found)}"
                )

    @classmethod
    def of(
        cls,
        inputs: CreditInputs,
        advantages: Tensor,
        at_bound: Tensor | None = None,
        scale: Tensor | None = None,
        loss_weights: Tensor | None = None,
    ) -> "TokenAdvantages":
        """Token advantages beside GRPO's.

        Args:
            inputs: The inputs of the stage.
            advantages: (B, T) A_t; tokens outside the mask are set to 0.
            at_bound: (B, T) bool, tokens at a bound; None: no token.
            scale, loss_weights: See the attributes; None: a scale of |A|, weights of 1.
        """
        bound = torch.zeros_like(inputs.mask) if at_bound is None else at_bound
        scale = inputs.advantages.abs() if scale is None else scale
        # Validates shapes before masks broadcast them.
        found = cls(advantages, inputs.advantages, scale, bound, inputs.mask, loss_weights)
        return replace(found, advantages=advantages.masked_fill(~inputs.mask, 0.0), at_bound=bound & inputs.mask)

    @property
    def shift(self) -> Tensor:
        """(B, T) sign(A) (A_t - A) / scale, with sign(0) = 1: above 0, a token takes a larger share of A."""
        base = self.rollout_advantages.unsqueeze(-1)
        direction = torch.where(base < 0, -1.0, 1.0)
        scale = self.scale.unsqueeze(-1)
        moved = direction * (self.advantages - base) / torch.where(scale > 0, scale, 1.0)
        # Finite where the scale is tiny.
        return torch.where(self.mask & (scale > 0), moved.clamp(-_LARGEST_SHIFT, _LARGEST_SHIFT), 0.0)

    @property
    def moved(self) -> Tensor:
        """(B, T) bool, tokens whose advantage differs from their rollout's by more than `NEAR` of the scale."""
        return self.shift.abs() > NEAR

    @property
    def in_loss(self) -> Tensor:
        """(B, T) the advantages that TRL's loss receives."""
        return self.advantages if self.loss_weights is None else self.advantages * self.loss_weights

    def weighted(self, factors: Tensor) -> "TokenAdvantages":
        """The token advantages of each rollout times its factor: (B,), 0 or above."""
        return replace(
            self,
            advantages=self.advantages * factors.unsqueeze(-1),
            rollout_advantages=self.rollout_advantages * factors,
            scale=self.scale * factors,
        )


# (inputs, options, optimizer step) -> token advantages.
AssignCredit = Callable[[CreditInputs, Any, int], TokenAdvantages]


def uniform(inputs: CreditInputs, options: Any, step: int) -> TokenAdvantages:  # noqa: ARG001
    """GRPO: every token has its rollout's advantage (arXiv 2402.03300)."""
    advantages = inputs.advantages.detach().unsqueeze(-1) * inputs.mask
    return TokenAdvantages.of(inputs, advantages, scale=torch.zeros_like(inputs.advantages))


def as_advantages(inputs: CreditInputs, options: Any, step: int) -> TokenAdvantages:  # noqa: ARG001
    """The evidence as token advantages, in place of GRPO's; A is their mean over the rollout."""
    evidence = inputs.evidence.masked_fill(~inputs.mask, 0.0)
    mean = mean_of_tokens(evidence, inputs.mask)
    return TokenAdvantages(evidence, mean, torch.ones_like(mean), torch.zeros_like(inputs.mask), inputs.mask)


def mean_of_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """(B,) mean of (B, T) values over the tokens in the mask; 0 for a rollout without any."""
    return values.masked_fill(~mask, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def negative_weights(advantages: Tensor, weight: float) -> Tensor:
    """(B,) factor of each rollout: `weight` where its advantage is below 0, else 1."""
    return torch.where(advantages < 0, weight, 1.0).to(advantages.dtype)
