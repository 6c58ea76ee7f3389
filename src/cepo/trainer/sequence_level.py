"""Ratios of whole sequences (GSPO), with token advantages.

TRL's `importance_sampling_level="sequence"` weighs a rollout by one ratio s, whose gradient is the mean of its tokens':
of token advantages only their mean would reach the policy. GSPO's token form (arXiv 2507.18071, section 4.3) keeps the
value s for every token, and gives each its own gradient: where a rollout's advantages are all the same, it is GSPO.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from .batches import Batch, trained_tokens


def old_log_probs(logps: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """(B, T) log-probs [nats] against which each token's ratio has the value of its sequence's, and its own gradient.

    Args:
        logps: (B, T) of the policy now.
        batch: With the old ones, unless the policy has not moved since.
    """
    mask, old = trained_tokens(dict(batch)).to(logps.dtype), batch.get("old_per_token_logps")
    now = logps.detach()
    ratio = torch.zeros_like(now) if old is None else now - old
    of_sequence = (ratio * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1.0)
    return now - of_sequence


class SequenceLevelTrainer(GRPOTrainer):
    """TRL's trainer, whose loss takes (B, T) token advantages with ratios of sequences too."""

    _in_token_form: Batch | None = None
    importance_sampling_level: str

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        found = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        if self._in_token_form is not None:  # the loss reads the old ones after this
            self._in_token_form["old_per_token_logps"] = old_log_probs(found[0], self._in_token_form)
        return found

    def _compute_loss(self, model, inputs):
        if self.importance_sampling_level != "sequence" or inputs["advantages"].dim() == 1:
            return super()._compute_loss(model, inputs)
        self._in_token_form, self.importance_sampling_level = dict(inputs), "token"
        try:
            return super()._compute_loss(model, self._in_token_form)
        finally:
            self._in_token_form, self.importance_sampling_level = None, "sequence"
