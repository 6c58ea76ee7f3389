"""Alignment of policy gradients with the true policy gradient, over batches.

Each batch gives one gradient for each arm, and an estimate of the true gradient: REINFORCE with a
leave-one-out baseline, whose mean is the gradient of the expected reward. A gradient is compared with the true gradient
of *other* batches, so that they share no noise. Intervals are jackknife intervals over batches; a bootstrap is biased
for Adam's step, which is not linear in the batches.

Dimensions: B batches, D parameters. Arrays of length 1 + B hold a value for all batches, then without each batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from cepo.inspection.evidence_statistics import Estimate, Floats

MEASURES = ("alignment", "adam", "norm", "angle")
_EPS = 1e-8  # Adam's
_CHUNK = 1 << 14  # parameters at a time


def jackknife(values: Floats) -> Estimate:
    """Student's t interval with the jackknife's standard error, from (1 + B,) values."""
    value, without = float(values[0]), values[1:]
    number = len(without)
    error = np.sqrt((number - 1) / number * ((without - without.mean()) ** 2).sum())
    half = float(t.ppf(0.975, number - 1) * error)
    return Estimate(value, value - half, value + half)


@dataclass(frozen=True)
class Cuts:
    """Weights of the batches.

    Attributes:
        whole: (1 + B, B) all batches, and all but one.
        halves: (S, 1 + B, 2, B) the same, cut into two halves in S ways.
    """

    whole: Floats
    halves: Floats

    @classmethod
    def draw(cls, batches: int, *, splits: int, seed: int) -> "Cuts":
        """Random cuts of at least 4 batches."""
        rng = np.random.default_rng(seed)
        orders = [rng.permutation(batches) for _ in range(splits)]
        return cls.of(batches, [(order[: batches // 2], order[batches // 2 :]) for order in orders])

    @classmethod
    def of(cls, batches: int, halves: Sequence[tuple[Any, Any]]) -> "Cuts":
        """The given cuts: the indices of each half."""
        whole = np.concatenate([np.ones((1, batches)), 1 - np.eye(batches)])
        sides = np.zeros((len(halves), 2, batches))
        for number, (first, second) in enumerate(halves):
            sides[number, 0, list(first)], sides[number, 1, list(second)] = 1, 1
        return cls(whole, sides[:, None] * whole[None, :, None])


@dataclass(frozen=True)
class Products:
    """Dot products of one arm's gradients.

    Attributes:
        with_truth: (B, B) dot products of its gradients (rows) with the true ones (columns).
        with_itself: (B, B) dot products of its gradients with each other.
        adam: (1 + B,) dot product of Adam's step, from one half of the batches, with the true gradient of the other
            half, and vice versa; mean over the cuts.
    """

    with_truth: Floats
    with_itself: Floats
    adam: Floats


def products(gradients: NDArray[np.float32], truth: NDArray[np.float32], cuts: Cuts) -> Products:
    """Dot products of one arm's (B, D) gradients with the (B, D) true ones, in chunks of parameters."""
    batches, parameters = gradients.shape
    with_truth, with_itself = np.zeros((batches, batches)), np.zeros((batches, batches))
    sides = cuts.halves / cuts.halves.sum(-1, keepdims=True)
    first, second = sides.reshape(-1, 2, batches).transpose(1, 0, 2).astype(np.float32)
    adam = np.zeros(len(first))
    for start in range(0, parameters, _CHUNK):
        own = np.asarray(gradients[:, start : start + _CHUNK])
        true = np.asarray(truth[:, start : start + _CHUNK])
        with_truth += own @ true.T
        with_itself += own @ own.T
        adam += (_adam(own, true, first, second) + _adam(own, true, second, first)) / 2
    return Products(with_truth, with_itself, adam.reshape(len(cuts.halves), -1).mean(0))


def _adam(gradients: NDArray[np.float32], truth: NDArray[np.float32], first: NDArray, second: NDArray) -> Floats:
    """For each pair of halves, the dot product of Adam's step, from `first`, with the true gradient of `second`."""
    step = first @ gradients
    scale = first @ (gradients * gradients)
    np.sqrt(scale, out=scale)
    scale += _EPS
    step /= scale
    step *= second @ truth
    return step.sum(1, dtype=np.float64)


@dataclass(frozen=True)
class Alignment:
    """The measures of one arm, each (1 + B,).

    Attributes:
        signal: Mean dot product with the true gradient.
        norm: Root mean square norm.
        mean_square: Unbiased square norm of its mean.
        adam: As in `Products`.
        angle: Angle between its mean and the true mean [degrees]; NaN if either square norm is not positive.
    """

    signal: Floats
    norm: Floats
    mean_square: Floats
    adam: Floats
    angle: Floats

    @property
    def alignment(self) -> Floats:
        """Mean dot product with the true gradient, over the root mean square norm."""
        return np.divide(self.signal, self.norm, out=np.full_like(self.signal, np.nan), where=self.norm > 0)

    @property
    def noise(self) -> Floats:
        """Variance of the gradient, summed over parameters."""
        return self.norm**2 - self.mean_square


def align(arm: Products, truth: Products, cuts: Cuts) -> Alignment:
    """The measures of an arm; `truth`: the products of the true gradient with itself."""
    weights = cuts.whole
    signal = _between(arm.with_truth, weights)
    mean_square, true_square = _between(arm.with_itself, weights), _between(truth.with_itself, weights)
    norm = np.sqrt(weights @ np.diag(arm.with_itself) / weights.sum(1))
    lengths = np.sqrt(np.clip(mean_square, 0, None) * np.clip(true_square, 0, None))
    cosine = np.divide(signal, lengths, out=np.full_like(signal, np.nan), where=lengths > 0)
    return Alignment(signal, norm, mean_square, arm.adam, np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def _between(matrix: Floats, weights: Floats) -> Floats:
    """(1 + B,) mean of (B, B) products over pairs of different batches."""
    others = 1 - np.eye(len(matrix))
    pairs = np.einsum("rb,bc,rc->r", weights, others, weights)
    return np.einsum("rb,bc,rc->r", weights, matrix * others, weights) / pairs


def absolute(arm: Alignment) -> dict[str, Estimate]:
    """The measures in the gradient's units; the angle in degrees."""
    return {name: jackknife(getattr(arm, name)) for name in MEASURES}


def ratios(arm: Alignment, reference: Alignment) -> dict[str, Estimate]:
    """Alignment, Adam's form and norm as ratios to another arm's; NaN if the reference is not significant."""
    nan = Estimate(np.nan, np.nan, np.nan)
    found = {"norm": jackknife(arm.norm / reference.norm) if (reference.norm > 0).all() else nan}
    for name in ("alignment", "adam"):
        divisor = getattr(reference, name)
        found[name] = jackknife(getattr(arm, name) / divisor) if jackknife(divisor).low > 0 else nan
    return found


def shares(parts: Sequence[Alignment], whole: Alignment) -> list[dict[str, Estimate]]:
    """Each part's share of a gradient's signal and noise. Shares of noise add up to 1 only for independent parts."""
    with np.errstate(invalid="ignore", divide="ignore"):  # a zero gradient has no shares
        return [
            {"signal": jackknife(part.signal / whole.signal), "noise": jackknife(part.noise / whole.noise)}
            for part in parts
        ]
