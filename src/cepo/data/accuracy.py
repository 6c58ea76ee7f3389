"""Accuracy, pass@k and entropy of completions, each with a 95 % confidence interval."""

import math
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from scipy.stats import norm, t


@dataclass(frozen=True)
class Accuracy:
    """Share of correct completions.

    Attributes:
        values: For each problem, the share of its completions that are correct, or an estimate of its pass@k.
        samples: Completions per problem.
    """

    values: tuple[float, ...]
    samples: int = 1

    @property
    def value(self) -> float:
        return fmean(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval.

        The number of completions is replaced by their effective number: that of independent completions whose mean
        has the variance found between problems. With one completion per problem it is the number of problems.
        """
        number, mean = len(self.values), self.value
        spread = mean * (1 - mean)
        squares = sum((value - mean) ** 2 for value in self.values)
        # For single completions, n - 1 would make the interval slightly wider than Wilson's.
        variance = squares / (number if self.samples == 1 else max(1, number - 1))
        effective: float = number
        if spread > 0:
            total = number * self.samples
            effective = min(total, number * spread / variance) if variance > 0 else total
        z = float(norm.ppf(0.975))
        center = (mean + z * z / (2 * effective)) / (1 + z * z / effective)
        half = z / (1 + z * z / effective) * math.sqrt(spread / effective + z * z / (4 * effective**2))
        # At 0 and 1, rounding could exclude the mean.
        return max(0.0, min(mean, center - half)), min(1.0, max(mean, center + half))

    def as_dict(self) -> dict[str, Any]:
        low, high = self.interval
        return {"accuracy": self.value, "low": low, "high": high, "problems": len(self.values)}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.1%} [{low:.1%}, {high:.1%}]"


@dataclass(frozen=True)
class Entropy:
    """Mean entropy of the distributions from which tokens were sampled.

    Attributes:
        sums: For each completion, the sum over its tokens [nats].
        counts: For each completion, the number of tokens.
    """

    sums: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def value(self) -> float:
        """[nats per token]"""
        return sum(self.sums) / sum(self.counts)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval over completions: Student's t for the ratio of two sums."""
        number = len(self.sums)
        if number < 2:
            return math.nan, math.nan
        residuals = np.asarray(self.sums) - self.value * np.asarray(self.counts)
        error = math.sqrt(float((residuals**2).sum()) * number / (number - 1)) / sum(self.counts)
        half = float(t.ppf(0.975, number - 1)) * error
        return self.value - half, self.value + half

    def as_dict(self) -> dict[str, Any]:
        low, high = self.interval
        return {"nats": self.value, "low": low, "high": high, "tokens": sum(self.counts)}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3f} [{low:.3f}, {high:.3f}]"


@dataclass(frozen=True)
class Evaluation:
    """Completions of a policy at one temperature.

    Attributes:
        temperature: Temperature of sampling; 0 is greedy.
        samples: Completions per problem.
        correct: For each problem, the number of correct completions.
        answers: Texts of the completions, ordered by problem.
        missing: Completions without a verdict; they count as incorrect.
        entropy: Entropy at all tokens. None for greedy completions.
        content_entropy: Entropy at the tokens that carry the solution. None without token labels.
        clipped: Completions cut off by the length limit.
    """

    temperature: float
    samples: int
    correct: tuple[int, ...]
    answers: list[str]
    missing: int = 0
    entropy: Entropy | None = None
    content_entropy: Entropy | None = None
    clipped: int = 0

    @property
    def accuracy(self) -> Accuracy:
        """Accuracy of one completion."""
        return Accuracy(tuple(correct / self.samples for correct in self.correct), self.samples)

    def pass_at(self, k: int) -> Accuracy:
        """The unbiased estimate of pass@k (Chen et al., 2021): 1 - C(n - c, k) / C(n, k) with c of n correct."""
        if not 1 <= k <= self.samples:
            raise ValueError(f"pass@{k} needs at least {k} completions per problem, and there are {self.samples}")
        draws = math.comb(self.samples, k)
        passed = tuple(1 - math.comb(self.samples - correct, k) / draws for correct in self.correct)
        return Accuracy(passed, self.samples // k)

    @property
    def without_verdict(self) -> str:
        """The number of completions without a verdict, in words; empty if 0."""
        return f"{self.missing} of {len(self.answers)} without a verdict" if self.missing else ""

    @property
    def cut_off(self) -> str:
        """The number of clipped completions, in words; empty if 0."""
        return f"{self.clipped} of {len(self.answers)} cut off by the length limit" if self.clipped else ""

    def as_dict(self) -> dict[str, Any]:
        found = {"temperature": self.temperature, "samples": self.samples, **self.accuracy.as_dict()}
        found["missing_verdicts"], found["clipped"] = self.missing, self.clipped
        if self.samples > 1:
            found["pass_at"] = {"k": self.samples, **self.pass_at(self.samples).as_dict()}
        for name, entropy in (("entropy", self.entropy), ("content_entropy", self.content_entropy)):
            if entropy is not None:
                found[name] = entropy.as_dict()
        return found
