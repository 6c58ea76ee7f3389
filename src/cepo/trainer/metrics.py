"""What a training step says about its credit: sums that add up across processes, and the shares made of them."""

import math

import torch
from torch import Tensor

from ..credit import signed_evidence
from ..methods.registry import Evidence

# Shares and moments are ratios of two of these sums, so that processes can add theirs before dividing.
_RATIOS = {
    "evidence/correct_mean": ("evidence_correct", "tokens_correct"),
    "evidence/wrong_mean": ("evidence_wrong", "tokens_wrong"),
    "evidence/wrong_sign": ("mass_against", "mass"),
    "evidence/unscorable": ("unscorable", "tokens"),
    "weights/clipped": ("clipped", "tokens"),
}
_STANDARD_DEVIATIONS = {
    "evidence/correct_std": ("squares_correct", "evidence_correct", "tokens_correct"),
    "evidence/wrong_std": ("squares_wrong", "evidence_wrong", "tokens_wrong"),
}


def credit_sums(
    evidence: Evidence, advantages: Tensor, verdicts: Tensor, mask: Tensor, *, clip: float
) -> dict[str, float]:
    """Sums over the scored tokens of one process. All rows must have been scored; none need be left.

    Args:
        evidence: The evidence of the rows.
        advantages: (B,) advantages.
        verdicts: (B,) the verifier's word: above 0 right, below 0 wrong, 0 none.
        mask: (B, T) bool, the completion tokens that are trained on.
        clip: eps_w.
    """
    values = evidence.values
    signed = signed_evidence(values, advantages)
    clipped = (signed > math.log(1 + clip)) | (signed < math.log(1 - clip))
    sums = {
        "tokens": mask.sum(),
        "unscorable": (evidence.unscorable & mask).sum(),
        "clipped": (clipped & mask).sum(),
        "mass": values[mask].abs().sum(),
        "mass_against": values[mask & (signed < 0)].abs().sum(),
    }
    for name, rows in (("correct", verdicts > 0), ("wrong", verdicts < 0)):
        chosen = values[mask & rows.unsqueeze(-1)].double()
        sums |= {
            f"tokens_{name}": torch.tensor(chosen.numel()),
            f"evidence_{name}": chosen.sum(),
            f"squares_{name}": chosen.square().sum(),
        }
    return {key: float(value) for key, value in sums.items()}


def credit_metrics(sums: dict[str, float]) -> dict[str, float]:
    """Metrics from sums over all processes; NaN where there was nothing to measure.

    ``evidence/*_mean`` and ``*_std`` [nats] over the tokens of correct and of wrong rollouts; ``evidence/wrong_sign``:
    the share of all |evidence| that lowers the weight of its token, that is, speaks against its rollout's advantage;
    ``evidence/unscorable``: the share of tokens without a finite log-prob; ``weights/clipped``: the share of tokens
    whose weight is clipped.
    """
    metrics = {name: sums[part] / sums[whole] if sums[whole] else math.nan for name, (part, whole) in _RATIOS.items()}
    for name, (squares, total, count) in _STANDARD_DEVIATIONS.items():
        if sums[count]:
            mean = sums[total] / sums[count]
            metrics[name] = math.sqrt(max(0.0, sums[squares] / sums[count] - mean**2))
        else:
            metrics[name] = math.nan
    return metrics
