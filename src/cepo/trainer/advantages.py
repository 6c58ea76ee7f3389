"""From rewards and evidence to the advantages of TRL's loss.

Evidence travels in the generation batch, which TRL shuffles and splits along the rollouts. Token advantages are
computed for each micro-batch, because lambda depends on the optimizer step and a generation batch may serve several.

Dimensions: B rollouts, T completion tokens.
"""

import math
from collections.abc import Callable

from torch import Tensor

from ..methods.method import MethodOptions
from ..methods.token_advantages import CreditInputs, TokenAdvantages, negative_weights
from .batches import Batch, trained_tokens


def mask_unscored_rollouts(rewards: Tensor, weights: Tensor) -> Tensor:
    """Set all rewards of a rollout to NaN if every function with a non-zero weight returned None for it.

    TRL then leaves the rollout out of the group's mean and gives it no advantage. With a value from a function of
    weight 0, which only logs, TRL would give it a reward of 0.

    Args:
        rewards: (rollouts, functions) rewards, NaN for None.
        weights: (functions,) weights of the functions.
    """
    unscored = rewards[:, weights.to(rewards.device) != 0].isnan().all(dim=1)
    return rewards.masked_fill(unscored.unsqueeze(-1), math.nan)


def assign_credit(
    batch: Batch, options: MethodOptions, step: int, sum_counts: Callable[[Tensor], Tensor]
) -> tuple[CreditInputs, TokenAdvantages]:
    """Token advantages of a batch with evidence, and the inputs that they were computed from.

    Args:
        batch: Batch with GRPO's (B,) `advantages`.
        options: Options of the method.
        step: Number of optimizer steps done so far.
        sum_counts: Sum over processes, see `CreditInputs`.
    """
    mask = trained_tokens(batch)
    inputs = CreditInputs(
        batch["advantages"],
        batch["evidence"].masked_fill(~mask, 0.0),
        mask,
        batch["scored"],
        batch["verdicts"],
        batch["unscorable"],
        sum_counts,
    )
    return inputs, options.method_spec.token_advantages(inputs, options, step)


def with_token_advantages(
    batch: Batch, options: MethodOptions, step: int, sum_counts: Callable[[Tensor], Tensor]
) -> Batch:
    """A micro-batch with the advantages of TRL's loss: (B, T) with evidence and lambda > 0, otherwise (B,)."""
    if "evidence" in batch and options.coefficient_at(step) > 0:
        return {**batch, "advantages": assign_credit(batch, options, step, sum_counts)[1].in_loss}
    advantages, weight = batch["advantages"], options.negative_advantage_weight
    return batch if weight == 1 else {**batch, "advantages": advantages * negative_weights(advantages, weight)}
