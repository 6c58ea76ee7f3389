"""What a training step says about its credit: sums that add up across processes, and the shares made of them."""

import math

import torch
from torch import Tensor

from ..credit import signed_evidence
from ..methods.token_advantages import CreditInputs, TokenAdvantages

# Shares and moments are ratios of two of these sums, so that processes can add theirs before dividing.
_RATIOS = {
    "evidence/correct_mean": ("evidence_correct", "tokens_correct"),
    "evidence/wrong_mean": ("evidence_wrong", "tokens_wrong"),
    "evidence/wrong_sign": ("mass_against", "mass"),
    "evidence/unscorable": ("unscorable", "tokens"),
    "credit/moved": ("moved", "tokens"),
    "credit/at_bound": ("at_bound", "tokens"),
}
_STANDARD_DEVIATIONS = {
    "evidence/correct_std": ("squares_correct", "evidence_correct", "tokens_correct"),
    "evidence/wrong_std": ("squares_wrong", "evidence_wrong", "tokens_wrong"),
}


def credit_sums(inputs: CreditInputs, placed: TokenAdvantages) -> dict[str, float]:
    """Sums over the tokens of one process's rollouts that were read; there may be none.

    Args:
        inputs: What the placement was given.
        placed: What it gave.
    """
    mask = inputs.mask & inputs.scored.unsqueeze(-1)
    values, verdicts = inputs.evidence, inputs.verdicts
    signed = signed_evidence(values, inputs.advantages)
    sums = {
        "tokens": mask.sum(),
        "unscorable": (inputs.unscorable & mask).sum(),
        "moved": (placed.moved & mask).sum(),
        "at_bound": (placed.at_bound & mask).sum(),
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


def credit_metrics(sums: dict[str, float], *, signed: bool = True) -> dict[str, float]:
    """Metrics from sums over all processes; NaN where there was nothing to measure.

    ``evidence/*_mean`` and ``*_std`` [nats] over the tokens of correct and of wrong rollouts; ``evidence/wrong_sign``:
    the share of all |evidence| that lowers the weight of its token, that is, speaks against its rollout's advantage;
    ``evidence/unscorable``: the share of tokens without a finite log-prob; ``credit/moved``: the share of tokens whose
    advantage is not their rollout's, see `TokenAdvantages.moved`; ``credit/at_bound``: of those that a bound stopped.
    """
    ratios = {name: parts for name, parts in _RATIOS.items() if signed or name != "evidence/wrong_sign"}
    metrics = {name: sums[part] / sums[whole] if sums[whole] else math.nan for name, (part, whole) in ratios.items()}
    for name, (squares, total, count) in _STANDARD_DEVIATIONS.items():
        if sums[count]:
            mean = sums[total] / sums[count]
            metrics[name] = math.sqrt(max(0.0, sums[squares] / sums[count] - mean**2))
        else:
            metrics[name] = math.nan
    return metrics


def verdict_shares(rewards: Tensor, threshold: float) -> tuple[float, float]:
    """Share of right rollouts among those with a verdict (NaN: there are none), and share of rollouts without one.

    Args:
        rewards: (B,) of the function that decides what is right, over all processes; NaN for no verdict.
        threshold: At least this is right.
    """
    known = rewards[~rewards.isnan()]
    return (known >= threshold).float().mean().item(), 1 - len(known) / len(rewards)
