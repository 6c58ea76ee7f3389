"""Credit quality: how well evidence detects decisive tokens, measured against token labels.

Dimensions: N tokens of many rollouts together.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cepo.inspection.evidence_statistics import SIGN_TOLERANCE, Estimate, Floats, bootstrap, weighted_mean


@dataclass(frozen=True)
class Tokens:
    """Labeled tokens of correct, or of incorrect rollouts.

    Attributes:
        evidence: (N,) [nats].
        at_bound: (N,) bool, whether a bound of the method limits the token's advantage.
        decisive: (N,) bool, whether the token decides the outcome; the others are filler.
        sign: The expected sign of evidence at decisive tokens: 1 for correct rollouts, -1 for incorrect ones.
        groups: (N,) index of each token's group, the unit of resampling.
    """

    evidence: Floats
    at_bound: NDArray[np.bool_]
    decisive: NDArray[np.bool_]
    sign: int
    groups: NDArray[np.int64]


def measure(tokens: Tokens, *, resamples: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """Measure evidence against token labels; intervals by a bootstrap over groups.

    Returns:
        `auroc` and `average_precision` of |evidence| for decisive against filler tokens; `filler_abs_mean`, the mean
        |evidence| at filler [nats]; `wrong_sign`, the share of decisive tokens whose evidence contradicts the verdict
        by more than `SIGN_TOLERANCE`; `clipped`, the share of tokens at a bound.
    """
    size, decisive = np.abs(tokens.evidence), tokens.decisive
    against = (-tokens.sign * tokens.evidence > SIGN_TOLERANCE).astype(float)
    clipped = tokens.at_bound.astype(float)
    ranked = Ranked(size, decisive)
    statistics: dict[str, Callable[[Floats], float]] = {
        "auroc": ranked.auroc,
        "average_precision": ranked.average_precision,
        "filler_abs_mean": lambda w: weighted_mean(size, w * ~decisive),
        "wrong_sign": lambda w: weighted_mean(against, w * decisive),
        "clipped": lambda w: weighted_mean(clipped, w),
    }
    return bootstrap(statistics, tokens.groups, resamples=resamples, seed=seed)


class Ranked:
    """Weighted AUROC, in which ties count half, and average precision.

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
        """Weights of the positive and negative entries of each block of equal scores, from the highest score down."""
        ordered = weights[self._order]
        if not len(ordered):
            return np.zeros(0), np.zeros(0)
        positive = np.add.reduceat(ordered * self._positive, self._blocks)
        return positive, np.add.reduceat(ordered, self._blocks) - positive

    def auroc(self, weights: Floats) -> float:
        """Probability that a positive entry scores higher than a negative one."""
        positive, negative = self._counts(weights)
        pairs = positive.sum() * negative.sum()
        below = negative.sum() - np.cumsum(negative)
        return float((positive * (below + negative / 2)).sum() / pairs) if pairs else np.nan

    def average_precision(self, weights: Floats) -> float:
        """Sum over blocks of (recall gained) x (precision so far)."""
        positive, negative = self._counts(weights)
        found, all_positive = np.cumsum(positive), positive.sum()
        seen = found + np.cumsum(negative)
        if not all_positive:
            return np.nan
        precision = np.divide(found, seen, out=np.zeros_like(found), where=seen > 0)
        return float((positive * precision).sum() / all_positive)
