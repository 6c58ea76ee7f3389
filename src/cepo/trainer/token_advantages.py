"""Token advantages in TRL's loss: from evidence that rides in its batch, or from the update's own forward pass.

Evidence against the policy itself needs log P_S of the policy that sampled. Where all of a generation belongs to one
optimiser step, that policy is the one that is updated: its log-probs are then taken from the forward pass of the loss,
and no pass is made for them. TRL's loss asks for log-probs before it reads the advantages, which are put there between.

Dimensions: B rollouts, C contexts, T completion tokens.
"""

import torch
from torch import Tensor
from trl import GRPOTrainer

from ..methods.method import Evidence, Method
from ..methods.placement import PlacementInputs, negative_weights
from ..scoring.pipeline import Read
from .batches import Batch, trained_tokens
from .cepo_config import CEPOConfig
from .metrics import added, credit_sums
from .processes import Processes

# In a micro-batch that waits for log P_S: itself before rows were picked, and the places of those that were.
_WHOLE, _PICKED = "waiting", "picked"


class TokenAdvantageTrainer(GRPOTrainer):
    """TRL's trainer, whose loss takes the token advantages of a method."""

    args: CEPOConfig
    method: Method
    _processes: Processes
    _waiting: Batch | None = None
    _waited = False  # whether a batch of this optimiser step waits, or has waited, on any process

    def __init__(self, *args, **kwargs):
        self._sums: list[dict[str, float]] = []
        super().__init__(*args, **kwargs)

    def _coefficient(self) -> float:
        """lambda."""
        return self.args.coefficient_at(self.state.global_step)

    def _take_evidence(self, batch: Batch, evidence: Evidence, verdicts: Tensor) -> None:
        """Put evidence into a generation batch, which TRL shuffles and splits along the rollouts."""
        batch |= {**_fields(evidence), "verdicts": verdicts}
        self._log_sums(self._placed(batch)[1])

    def _take_contexts(self, batch: Batch, read: Read, verdicts: Tensor) -> None:
        """Put log-probs into a generation batch, from which there will be evidence once there is log P_S."""
        told, present, own = (values.transpose(0, 1) for values in (read.logps, read.present, read.own))
        batch |= {"told": told, "present": present, "own": own, "verdicts": verdicts}
        self._waited = True

    def _place(self, batch: Batch) -> Batch:
        """A micro-batch with the method's advantages: (B, T) where there is evidence, else (B,).

        Where evidence waits for log P_S, they only tell which tokens may move; `_compute_loss` puts the right ones in.
        """
        advantages = batch["advantages"]
        if "evidence" in batch and self._coefficient() > 0:
            return {**batch, "advantages": self._placed(batch)[0]}
        if "told" in batch and self._coefficient() > 0:
            moves = (advantages != 0) | batch["present"].any(dim=1)
            marks = (moves.unsqueeze(-1) & trained_tokens(batch)).to(advantages.dtype)
            places = torch.arange(len(moves), device=moves.device)
            return {**batch, "advantages": marks, _WHOLE: batch, _PICKED: places}
        weight = self.args.blame
        return batch if weight == 1 else {**batch, "advantages": advantages * negative_weights(advantages, weight)}

    def _compute_loss(self, model, inputs):
        self._waiting = inputs if _WHOLE in inputs else None
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._waiting = None

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        found = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        if self._waiting is not None:
            self._complete(self._waiting, found[0].detach().float())
            self._waiting = None
        return found

    def _complete(self, batch: Batch, own: Tensor) -> None:
        """Put the advantages into a micro-batch of which (b, t) log P_S [nats] are known now."""
        whole, picked = batch[_WHOLE], batch[_PICKED]
        width = own.shape[1]
        student = own.new_zeros(whole["completion_ids"].shape)
        student[picked, :width] = own
        logps = torch.where(whole["own"].unsqueeze(-1), student.unsqueeze(1), whole["told"])
        evidence = self.method.evidence(logps.transpose(0, 1), whole["present"].transpose(0, 1))
        found = _fields(evidence)
        found["advantages"], sums = self._placed({**whole, **found})
        batch |= {
            name: values[picked, :width] if values.dim() == 2 else values[picked] for name, values in found.items()
        }
        self._sums.append(sums)

    def _placed(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """(B, T) advantages as the loss takes them, and what there is to say of them."""
        mask = trained_tokens(batch)
        inputs = PlacementInputs(
            batch["advantages"],
            batch["evidence"].masked_fill(~mask, 0.0),
            mask,
            batch["scored"],
            batch["verdicts"],
            batch["unscorable"],
            self._processes.sum_tensor,
        )
        placed = self.method.place(inputs, self.args, self.state.global_step)
        return placed.in_loss, credit_sums(inputs, placed)

    def _log_sums_of_step(self) -> None:
        """Log what the micro-batches that waited said, at the end of their optimiser step."""
        if self._waited:  # on all processes, or on none
            self._log_sums(added(self._sums))
        self._sums, self._waited = [], False

    def _log_sums(self, sums: dict[str, float]) -> None:
        raise NotImplementedError


def _fields(evidence: Evidence) -> dict[str, Tensor]:
    return {"evidence": evidence.values, "scored": evidence.scored, "unscorable": evidence.unscorable}
