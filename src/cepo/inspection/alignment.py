"""How near token advantages come to the true policy gradient: measures of gradients that were taken batch by batch.

A batch gives one gradient to each way of placing credit, all of the same rollouts, and an estimate of the truth: plain
REINFORCE with a leave-one-out baseline, whose mean is the gradient of the expected reward. A gradient is held against
the truth of *other* batches, so that no noise is shared.

Dimensions: B batches, D parameters, R weightings of the batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
MEASURES = ("alignment", "adam", "norm", "angle")
_EPS = 1e-8  # Adam's
_CHUNK = 1 << 14  # parameters at a time


@dataclass(frozen=True)
class Estimate:
    """A number, and its 95 % interval from a bootstrap over batches."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Floats) -> "Estimate":
        """From (R,) values, the first of them that of the batches as they are."""
        drawn = values[1:][np.isfinite(values[1:])]
        low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (np.nan, np.nan)
        return cls(float(values[0]), float(low), float(high))

    def as_dict(self) -> dict[str, float]:
        return vars(self)


@dataclass(frozen=True)
class Weightings:
    """How often each batch counts: once, and then as often as bootstrap samples draw it.

    Attributes:
        whole: (R, B) the batches.
        plain: (S, 2, B) the batches as they are, cut into two halves in S ways.
        drawn: (R - 1, 2, B) of each bootstrap sample one cut; a half is resampled by itself, so that the two share no
            batch.
    """

    whole: Floats
    plain: Floats
    drawn: Floats

    @classmethod
    def draw(cls, batches: int, *, resamples: int, splits: int, seed: int) -> "Weightings":
        """For so many batches, at least 4, seeded."""
        rng = np.random.default_rng(seed)

        def counts(members: NDArray[np.int64]) -> Floats:
            return np.bincount(members, minlength=batches).astype(float)

        def halves() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
            order = rng.permutation(batches)
            return order[: batches // 2], order[batches // 2 :]

        whole = [np.ones(batches), *(counts(rng.choice(batches, batches)) for _ in range(resamples))]
        plain = [[counts(half) for half in halves()] for _ in range(splits)]
        drawn = [[counts(rng.choice(half, len(half))) for half in halves()] for _ in range(resamples)]
        return cls(np.stack(whole), np.array(plain), np.array(drawn))


@dataclass(frozen=True)
class Products:
    """What the measures need of one way's gradients.

    Attributes:
        with_truth: (B, B) dot products, its gradient of a batch (rows) with the truth's of another (columns).
        with_itself: (B, B) dot products of its own gradients.
        adam: (R,) dot product of Adam's step with the truth: one half of the batches gives its mean and its scale, the
            other half the truth, and then the other way round; for the batches as they are, a mean over several cuts.
    """

    with_truth: Floats
    with_itself: Floats
    adam: Floats


def products(gradients: NDArray[np.float32], truth: NDArray[np.float32], weightings: Weightings) -> Products:
    """The dot products of one way's gradients, a chunk of the parameters at a time.

    Args:
        gradients: (B, D).
        truth: (B, D).
        weightings: Of the batches.
    """
    batches, parameters = gradients.shape
    with_truth, with_itself = np.zeros((batches, batches)), np.zeros((batches, batches))
    cuts = np.concatenate([weightings.plain, weightings.drawn])
    cuts = (cuts / cuts.sum(-1, keepdims=True)).astype(np.float32)
    adam = np.zeros(len(cuts))
    for start in range(0, parameters, _CHUNK):
        own = np.asarray(gradients[:, start : start + _CHUNK])
        true = np.asarray(truth[:, start : start + _CHUNK])
        with_truth += own @ true.T
        with_itself += own @ own.T
        for first, second in ((cuts[:, 0], cuts[:, 1]), (cuts[:, 1], cuts[:, 0])):
            adam += _adam(own, true, first, second) / 2
    plain = len(weightings.plain)
    return Products(with_truth, with_itself, np.concatenate([adam[:plain].mean(keepdims=True), adam[plain:]]))


def _adam(own: NDArray[np.float32], truth: NDArray[np.float32], first: NDArray, second: NDArray) -> Floats:
    """(R,) dot product of Adam's step, from the batches that `first` weighs, with the truth of those of `second`."""
    step = first @ own
    scale = first @ (own * own)
    np.sqrt(scale, out=scale)
    scale += _EPS
    step /= scale
    step *= second @ truth
    return step.sum(1, dtype=np.float64)


@dataclass(frozen=True)
class Alignment:
    """The measures of one way of placing credit, each (R,).

    Attributes:
        signal: Mean dot product with the truth.
        norm: Root of the mean square norm.
        mean_square: Square norm of its mean, without bias.
        adam: As in `Products`.
        angle: Between its mean and the truth's [degrees]; NaN where the mean cannot be told from nothing.
    """

    signal: Floats
    norm: Floats
    mean_square: Floats
    adam: Floats
    angle: Floats

    @property
    def alignment(self) -> Floats:
        """Mean dot product with the truth, over the root of the mean square norm."""
        return np.divide(self.signal, self.norm, out=np.full_like(self.signal, np.nan), where=self.norm > 0)

    @property
    def noise(self) -> Floats:
        """Variance of the gradient, summed over parameters."""
        return self.norm**2 - self.mean_square


def align(own: Products, truth: Products, weightings: Weightings) -> Alignment:
    """What the products say.

    Args:
        own: Of the way.
        truth: Of the truth with itself.
        weightings: Of the batches.
    """
    weights = weightings.whole
    signal = _between(own.with_truth, weights)
    mean_square, true_square = _between(own.with_itself, weights), _between(truth.with_itself, weights)
    norm = np.sqrt(weights @ np.diag(own.with_itself) / weights.sum(1))
    lengths = np.sqrt(np.clip(mean_square, 0, None) * np.clip(true_square, 0, None))
    cosine = np.divide(signal, lengths, out=np.full_like(signal, np.nan), where=lengths > 0)
    return Alignment(signal, norm, mean_square, own.adam, np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def _between(matrix: Floats, weights: Floats) -> Floats:
    """(R,) mean of (B, B) products over pairs of different batches."""
    others = 1 - np.eye(len(matrix))
    pairs = np.einsum("rb,bc,rc->r", weights, others, weights)
    total = np.einsum("rb,bc,rc->r", weights, matrix * others, weights)
    return np.divide(total, pairs, out=np.full_like(total, np.nan), where=pairs > 0)


def ratios(own: Alignment, reference: Alignment) -> dict[str, Estimate]:
    """Alignment, Adam's form and norm as ratios to another way's, resampled together, and the angle [degrees]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "alignment": Estimate.of(own.alignment / reference.alignment),
            "adam": Estimate.of(own.adam / reference.adam),
            "norm": Estimate.of(own.norm / reference.norm),
            "angle": Estimate.of(own.angle),
        }


def shares(parts: Sequence[Alignment], whole: Alignment) -> list[dict[str, Estimate]]:
    """Of each part of a gradient, its share of the whole one's signal and of its noise.

    Signals add up to 1. Noise adds up only as far as parts do not vary together.
    """
    return [
        {"signal": Estimate.of(part.signal / whole.signal), "noise": Estimate.of(part.noise / whole.noise)}
        for part in parts
    ]
