"""Evidence in TRL's batch, and the token advantages that its loss gets.

Evidence rides in the generation batch, which TRL shuffles and splits along the rollouts. Token advantages are made of
it for each micro-batch, since lambda belongs to the optimizer step and a batch may serve for several.

Dimensions: B rollouts, T completion tokens.
"""

from collections.abc import Callable

from torch import Tensor

from ..methods.method import MethodOptions
from ..methods.stages import Evidence
from ..methods.token_advantages import CreditInputs, TokenAdvantages, negative_weights
from .batches import Batch, trained_tokens


def evidence_fields(evidence: Evidence, verdicts: Tensor) -> Batch:
    """The fields of a generation batch that carry evidence, one row a rollout.

    Args:
        evidence: Of its B rollouts.
        verdicts: (B,) 1 correct, -1 incorrect, 0 without a verdict.
    """
    found = {"evidence": evidence.values, "scored": evidence.scored, "unscorable": evidence.unscorable}
    return {**found, "verdicts": verdicts}


def assign_credit(
    batch: Batch, options: MethodOptions, step: int, sum_counts: Callable[[Tensor], Tensor]
) -> tuple[CreditInputs, TokenAdvantages]:
    """Token advantages of a batch that carries evidence, and what they were made of.

    Args:
        batch: With (B,) `advantages` of GRPO.
        options: Of the method.
        step: Optimizer steps done so far.
        sum_counts: See `CreditInputs`.
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


def in_loss(batch: Batch, options: MethodOptions, step: int, sum_counts: Callable[[Tensor], Tensor]) -> Batch:
    """A micro-batch with the advantages that TRL's loss takes: (B, T) where there is evidence, else (B,)."""
    if "evidence" in batch and options.coefficient_at(step) > 0:
        return {**batch, "advantages": assign_credit(batch, options, step, sum_counts)[1].in_loss}
    advantages, weight = batch["advantages"], options.negative_advantage_weight
    return batch if weight == 1 else {**batch, "advantages": advantages * negative_weights(advantages, weight)}
