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
        decisive: (N,) bool, whether the token decides the outcome; the others are filler.
        sign: The expected sign of evidence at decisive tokens: 1 for correct rollouts, -1 for incorrect ones.
        groups: (N,) index of each token's group, the unit of resampling.
    """

    evidence: Floats
    decisive: NDArray[np.bool_]
    sign: int
    groups: NDArray[np.int64]


def measure(tokens: Tokens, *, resamples: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """Measure evidence against token labels; intervals by a bootstrap over groups.

    Returns:
        `auroc` of |evidence| for decisive against filler tokens; `filler_abs_mean`, the mean |evidence| at filler
        [nats]; `wrong_sign`, the share of decisive tokens whose evidence contradicts the verdict by more than
        `SIGN_TOLERANCE`.
    """
    size, decisive = np.abs(tokens.evidence), tokens.decisive
    against = (-tokens.sign * tokens.evidence > SIGN_TOLERANCE).astype(float)
    statistics: dict[str, Callable[[Floats], float]] = {
        "auroc": WeightedAUROC(size, decisive),
        "filler_abs_mean": lambda w: weighted_mean(size, w * ~decisive),
        "wrong_sign": lambda w: weighted_mean(against, w * decisive),
    }
    return bootstrap(statistics, tokens.groups, resamples=resamples, seed=seed)


class WeightedAUROC:
    """AUROC of scores with weights; ties count half.

    Args:
        scores: (N,).
        positive: (N,) bool.
    """

    def __init__(self, scores: Floats, positive: NDArray[np.bool_]):
        self._order = np.argsort(-scores, kind="stable")
        ordered = scores[self._order]
        self._ties = np.flatnonzero(np.diff(ordered, prepend=np.inf)) if len(scores) else np.array([], dtype=int)
        self._positive = positive[self._order]

    def __call__(self, weights: Floats) -> float:
        """Probability that a positive entry scores higher than a negative one; NaN without one of either."""
        ordered = weights[self._order]
        if not len(ordered):
            return np.nan
        positive = np.add.reduceat(ordered * self._positive, self._ties)
        negative = np.add.reduceat(ordered, self._ties) - positive
        pairs = positive.sum() * negative.sum()
        below = negative.sum() - np.cumsum(negative)
        return float((positive * (below + negative / 2)).sum() / pairs) if pairs else np.nan
