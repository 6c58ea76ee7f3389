"""Trials: a faster way to run a model has to give the numbers of its full forward passes, to rounding."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

# Largest mean absolute difference [nats]; rounding reaches a hundredth of it in float32, a tenth in bfloat16.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}


def products_dtype(model: PreTrainedModel) -> torch.dtype:
    """Dtype of the model's matrix products: that of autocast where it is enabled, else of the weights."""
    device = model.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype


def trial_failure(expected: Tensor, found: Tensor, dtype: torch.dtype) -> str | None:
    """Why the faster way is not used; None if it gives the same numbers to rounding.

    Args:
        expected, found: Log-probs or logits of full forward passes, and of the faster way [nats].
        dtype: Dtype of the matrix products, which sets the tolerance.
    """
    off = ((found - expected).abs().sum() / max(1, expected.numel())).item()
    return None if off <= _TOLERANCE[dtype] else f"in a trial, numbers differed by {off:.2g} nats on average"
