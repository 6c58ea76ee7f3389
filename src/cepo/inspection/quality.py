"""How well credit finds the tokens that decide a rollout: measures against labels, with bootstrap intervals.

Dimensions: N tokens of many rollouts together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Tokens:
    """Labelled tokens of rollouts with one verdict.

    Attributes:
        evidence: (N,) [nats].
        at_bound: (N,) bool: whether a bound of the placement has stopped its advantage.
        decisive: (N,) bool: whether a token decides the outcome; the others are filler.
        sign: 1 on right rollouts, -1 on wrong ones: the sign that evidence should have at decisive tokens.
        groups: (N,) the index of each token's group, the unit that is resampled.
    """

    evidence: Floats
    at_bound: NDArray[np.bool_]
    decisive: NDArray[np.bool_]
    sign: int
    groups: NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval; NaN where there is nothing to measure."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float | None]:
        """JSON has no NaN."""
        return {name: float(number) if np.isfinite(number) else None for name, number in vars(self).items()}


# A token this near to no evidence [nats] has no sign to be wrong about.
SIGN_TOLERANCE = 0.01


def measure(tokens: Tokens, *, resamples: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """What `cepo credit` reports of one rule on rollouts with one verdict.

    Args:
        tokens: The tokens.
        resamples: Bootstrap samples; whole groups are drawn.
        seed: Of the bootstrap.

    Returns:
        `auroc` and `average_precision` of |evidence| for decisive against filler tokens; `filler_abs_mean`, the mean
        |evidence| at filler [nats]; `wrong_sign`, the share of decisive tokens whose evidence speaks against the
        verdict by more than `SIGN_TOLERANCE`; `clipped`, the share of these tokens at a bound of the placement.
    """
    size, decisive = np.abs(tokens.evidence), tokens.decisive
    against = (-tokens.sign * tokens.evidence > SIGN_TOLERANCE).astype(float)
    clipped = tokens.at_bound.astype(float)
    ranked = Ranked(size, decisive)
    ways: dict[str, Callable[[Floats], float]] = {
        "auroc": ranked.auroc,
        "average_precision": ranked.average_precision,
        "filler_abs_mean": lambda w: weighted_mean(size, w * ~decisive),
        "wrong_sign": lambda w: weighted_mean(against, w * decisive),
        "clipped": lambda w: weighted_mean(clipped, w),
    }
    return bootstrap(ways, tokens.groups, resamples=resamples, seed=seed)


def bootstrap(
    ways: Mapping[str, Callable[[Floats], float]], groups: NDArray[np.int64], *, resamples: int, seed: int
) -> dict[str, Estimate]:
    """Estimates with 95 % intervals, for which whole groups are drawn again and again.

    Args:
        ways: By name, from (N,) weights of the tokens to a number; NaN where there is nothing to measure.
        groups: (N,) the index of each token's group.
        resamples: Bootstrap samples.
        seed: Of the draws.
    """
    draw = np.random.default_rng(seed)
    count = int(groups.max()) + 1 if len(groups) else 0
    samples = [np.ones(count)]
    present = np.unique(groups)
    for _ in range(resamples if count else 0):
        samples.append(np.bincount(draw.choice(present, len(present)), minlength=count).astype(float))
    results = {}
    for name, way in ways.items():
        value, *others = [way(sample[groups]) for sample in samples]
        low, high = np.nanquantile(others, [0.025, 0.975]) if np.isfinite(others).any() else (np.nan, np.nan)
        results[name] = Estimate(float(value), float(low), float(high))
    return results


class Ranked:
    """Scores in order, so that weighted AUROC and average precision take one pass. Ties count half, and together.

    Args:
        scores: (N,).
        positive: (N,) bool.
    """

    def __init__(self, scores: Floats, positive: NDArray[np.bool_]):
        self._order = np.argsort(-scores, kind="stable")
        ordered = scores[self._order]
        self._blocks = np.flatnonzero(np.diff(ordered, prepend=np.inf)) if len(scores) else np.array([], dtype=int)
        self._positive = positive[self._order]

    def _counts(self, weights: Floats) -> tuple[Floats, Floats]:
        """Weight of the positive and of the negative entries of each block of equal scores, the highest first."""
        ordered = weights[self._order]
        if not len(ordered):
            return np.zeros(0), np.zeros(0)
        positive = np.add.reduceat(ordered * self._positive, self._blocks)
        return positive, np.add.reduceat(ordered, self._blocks) - positive

    def auroc(self, weights: Floats) -> float:
        """Chance that a positive entry scores higher than a negative one."""
        positive, negative = self._counts(weights)
        pairs = positive.sum() * negative.sum()
        below = negative.sum() - np.cumsum(negative)
        return float((positive * (below + negative / 2)).sum() / pairs) if pairs else np.nan

    def average_precision(self, weights: Floats) -> float:
        """Sum over blocks of (share of the positives in it) x (precision down to it)."""
        positive, negative = self._counts(weights)
        found, all_positive = np.cumsum(positive), positive.sum()
        seen = found + np.cumsum(negative)
        if not all_positive:
            return np.nan
        precision = np.divide(found, seen, out=np.zeros_like(found), where=seen > 0)
        return float((positive * precision).sum() / all_positive)


def concatenated(parts: Sequence[Tokens]) -> Tokens:
    """Several rollouts' tokens as one."""
    return Tokens(
        np.concatenate([part.evidence for part in parts]),
        np.concatenate([part.at_bound for part in parts]),
        np.concatenate([part.decisive for part in parts]),
        parts[0].sign,
        np.concatenate([part.groups for part in parts]),
    )


def weighted_mean(values: Floats, weights: Floats) -> float:
    """The mean, NaN if nothing weighs anything."""
    total = weights.sum()
    return float((values * weights).sum() / total) if total else np.nan
