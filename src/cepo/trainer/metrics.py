"""Metrics of a training step: statistics of evidence and token advantages, verdicts, and seconds.

Dimensions: B rollouts.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..credit import signed_evidence
from ..methods.token_advantages import CreditInputs, TokenAdvantages

# Metrics are ratios of sums, so that processes can add their sums before dividing.
_RATIOS = {
    "evidence/correct_mean": ("evidence_correct", "tokens_correct"),
    "evidence/incorrect_mean": ("evidence_incorrect", "tokens_incorrect"),
    "evidence/sign_disagreement": ("mass_against", "mass"),
    "evidence/unscorable": ("unscorable", "tokens"),
    "credit/changed": ("changed", "tokens"),
    "credit/clipped": ("clipped", "tokens"),
}
_STANDARD_DEVIATIONS = {
    "evidence/correct_std": ("squares_correct", "evidence_correct", "tokens_correct"),
    "evidence/incorrect_std": ("squares_incorrect", "evidence_incorrect", "tokens_incorrect"),
}


def credit_sums(inputs: CreditInputs, result: TokenAdvantages) -> dict[str, float]:
    """Sums over the scored rollouts of one process; there may be none.

    Args:
        inputs: Advantages, evidence and verdicts.
        result: Token advantages made of `inputs`.
    """
    mask = inputs.mask & inputs.scored.unsqueeze(-1)
    values, verdicts = inputs.evidence, inputs.verdicts
    signed = signed_evidence(values, inputs.advantages)
    sums = {
        "tokens": mask.sum(),
        "unscorable": (inputs.unscorable & mask).sum(),
        "changed": (result.moved & mask).sum(),
        "clipped": (result.at_bound & mask).sum(),
        "mass": values[mask].abs().sum(),
        "mass_against": values[mask & (signed < 0)].abs().sum(),
    }
    for name, rows in (("correct", verdicts > 0), ("incorrect", verdicts < 0)):
        of_rows = values[mask & rows.unsqueeze(-1)].double()
        sums |= {
            f"tokens_{name}": torch.tensor(of_rows.numel()),
            f"evidence_{name}": of_rows.sum(),
            f"squares_{name}": of_rows.square().sum(),
        }
    return {key: float(value) for key, value in sums.items()}


def credit_metrics(sums: dict[str, float], *, signed: bool = True) -> dict[str, float]:
    """Metrics from sums over all processes; NaN without any token to average.

    - `evidence/correct_mean`, `evidence/incorrect_mean`, `evidence/correct_std`, `evidence/incorrect_std`: mean and
      standard deviation of the evidence [nats] over the tokens of correct and of incorrect rollouts.
    - `evidence/sign_disagreement`: share of all |evidence| whose sign contradicts the rollout's advantage.
    - `evidence/unscorable`: share of tokens without a finite log-prob.
    - `credit/changed`: share of tokens whose advantage differs from their rollout's, see `TokenAdvantages.moved`.
    - `credit/clipped`: share of tokens whose advantage reached a bound.

    Args:
        sums: Of `credit_sums`.
        signed: Whether the sign of the method's evidence has a meaning (`Method.evidence_is_signed`).
    """
    metrics = {name: sums[part] / sums[total] if sums[total] else math.nan for name, (part, total) in _RATIOS.items()}
    for name, (squares, total, count) in _STANDARD_DEVIATIONS.items():
        variance = sums[squares] / sums[count] - (sums[total] / sums[count]) ** 2 if sums[count] else math.nan
        metrics[name] = math.sqrt(max(variance, 0.0)) if variance == variance else math.nan
    if not signed:
        del metrics["evidence/sign_disagreement"]
    return metrics


def verdict_shares(rewards: Tensor, threshold: float) -> tuple[float, float]:
    """Share of correct rollouts among those with a verdict (NaN without any), and share of rollouts without a verdict.

    Args:
        rewards: (B,) rewards of the function that decides correctness, over all processes; NaN for no verdict.
        threshold: Smallest reward of a correct rollout.
    """
    known = rewards[~rewards.isnan()]
    return (known >= threshold).float().mean().item(), 1 - len(known) / len(rewards)


class Stopwatch:
    """Seconds of the parts of training. The time of a part excludes the parts measured within it.

    Attributes:
        seconds: Total of each part, since the process started.
        clock: Seconds. Calls return before their GPU kernels end, so that a part may include kernels of the one before.
    """

    def __init__(self, *parts: str):
        self.clock = time.perf_counter
        self.seconds = dict.fromkeys(parts, 0.0)
        self._logged = dict(self.seconds)
        self._inner = [0.0]  # seconds of the parts inside each open part

    @contextmanager
    def measure(self, part: str | None) -> Iterator[None]:
        """Add the seconds spent here to a part; None: to no part."""
        started = self.clock()
        self._inner.append(0.0)
        try:
            yield
        finally:
            elapsed = self.clock() - started
            inner = self._inner.pop()
            self._inner[-1] += elapsed
            if part is not None:
                self.seconds[part] += elapsed - inner

    def lap(self) -> dict[str, float]:
        """Seconds of each part since the last lap."""
        lap = {part: total - self._logged[part] for part, total in self.seconds.items()}
        self._logged = dict(self.seconds)
        return lap
