"""Alignment of policy gradients with the true one, from gradients of batches.

A batch gives one gradient for each placement of credit, all of the same rollouts, and an estimate of the truth: plain
REINFORCE with a leave-one-out baseline, whose mean is the gradient of the expected reward. A gradient is compared with
the truth of *other* batches, so that no noise is shared.

Intervals are the jackknife's over batches. Adam's form is not linear in the batches, and a bootstrap, which draws some
of them twice, is biased for it.

Dimensions: B batches, D parameters. Arrays of length 1 + B hold a number for all batches and without each of them.
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
    """From (1 + B,) values: Student's t with the jackknife's standard error."""
    value, without = float(values[0]), values[1:]
    number = len(without)
    error = np.sqrt((number - 1) / number * ((without - without.mean()) ** 2).sum())
    half = float(t.ppf(0.975, number - 1) * error)
    return Estimate(value, value - half, value + half)


@dataclass(frozen=True)
class Cuts:
    """How the batches are counted.

    Attributes:
        whole: (1 + B, B) all of them, and all but one.
        halves: (S, 1 + B, 2, B) the same, cut into two halves in S ways.
    """

    whole: Floats
    halves: Floats

    @classmethod
    def draw(cls, batches: int, *, splits: int, seed: int) -> "Cuts":
        """For so many batches, at least 4; the cuts are drawn."""
        rng = np.random.default_rng(seed)
        orders = [rng.permutation(batches) for _ in range(splits)]
        return cls.of(batches, [(order[: batches // 2], order[batches // 2 :]) for order in orders])

    @classmethod
    def of(cls, batches: int, halves: Sequence[tuple[Any, Any]]) -> "Cuts":
        """For cuts that are given: the batches of the two halves of each."""
        whole = np.concatenate([np.ones((1, batches)), 1 - np.eye(batches)])
        sides = np.zeros((len(halves), 2, batches))
        for number, (first, second) in enumerate(halves):
            sides[number, 0, list(first)], sides[number, 1, list(second)] = 1, 1
        return cls(whole, sides[:, None] * whole[None, :, None])


@dataclass(frozen=True)
class Products:
    """Dot products of one placement's gradients.

    Attributes:
        with_truth: (B, B) dot products, its gradient of a batch (rows) with the truth's of another (columns).
        with_itself: (B, B) dot products of its own gradients.
        adam: (1 + B,) dot product of Adam's step with the truth: one half of the batches gives its mean and its scale,
            the other half the truth, and then the other way round; a mean over several cuts.
    """

    with_truth: Floats
    with_itself: Floats
    adam: Floats


def products(gradients: NDArray[np.float32], truth: NDArray[np.float32], cuts: Cuts) -> Products:
    """The dot products of one placement's gradients, a chunk of the parameters at a time.

    Args:
        gradients: (B, D).
        truth: (B, D).
        cuts: Of the batches.
    """
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


def _adam(own: NDArray[np.float32], truth: NDArray[np.float32], first: NDArray, second: NDArray) -> Floats:
    """Of each pair of halves the dot product of Adam's step, from `first`, with the truth of `second`."""
    step = first @ own
    scale = first @ (own * own)
    np.sqrt(scale, out=scale)
    scale += _EPS
    step /= scale
    step *= second @ truth
    return step.sum(1, dtype=np.float64)


@dataclass(frozen=True)
class Alignment:
    """The measures of one placement, each (1 + B,).

    Attributes:
        signal: Mean dot product with the truth.
        norm: Root of the mean square norm.
        mean_square: Square norm of its mean, without bias.
        adam: As in `Products`.
        angle: Between its mean and the truth's [degrees]; NaN where the mean is not significant.
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


def align(own: Products, truth: Products, cuts: Cuts) -> Alignment:
    """The measures.

    Args:
        own: Of the placement.
        truth: Of the truth with itself.
        cuts: Of the batches.
    """
    weights = cuts.whole
    signal = _between(own.with_truth, weights)
    mean_square, true_square = _between(own.with_itself, weights), _between(truth.with_itself, weights)
    norm = np.sqrt(weights @ np.diag(own.with_itself) / weights.sum(1))
    lengths = np.sqrt(np.clip(mean_square, 0, None) * np.clip(true_square, 0, None))
    cosine = np.divide(signal, lengths, out=np.full_like(signal, np.nan), where=lengths > 0)
    return Alignment(signal, norm, mean_square, own.adam, np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def _between(matrix: Floats, weights: Floats) -> Floats:
    """(1 + B,) mean of (B, B) products over pairs of different batches."""
    others = 1 - np.eye(len(matrix))
    pairs = np.einsum("rb,bc,rc->r", weights, others, weights)
    return np.einsum("rb,bc,rc->r", weights, matrix * others, weights) / pairs


def absolute(own: Alignment) -> dict[str, Estimate]:
    """Alignment and Adam's form in the gradient's units, and the angle to the truth [degrees]."""
    return {name: jackknife(getattr(own, name)) for name in ("alignment", "adam", "norm", "angle")}


def ratios(own: Alignment, reference: Alignment) -> dict[str, Estimate]:
    """Alignment, Adam's form and norm as ratios to another placement's on the same batches.

    NaN where the reference is not significant (its interval includes 0).
    """
    nothing = Estimate(np.nan, np.nan, np.nan)
    found = {"norm": jackknife(own.norm / reference.norm) if (reference.norm > 0).all() else nothing}
    for name in ("alignment", "adam"):
        divisor = getattr(reference, name)
        found[name] = jackknife(getattr(own, name) / divisor) if jackknife(divisor).low > 0 else nothing
    return found


def shares(parts: Sequence[Alignment], whole: Alignment) -> list[dict[str, Estimate]]:
    """Each part's share of a gradient's signal and noise.

    Signals add up to 1. Noise adds up only as far as parts do not vary together.
    """
    with np.errstate(invalid="ignore", divide="ignore"):  # a zero gradient has no shares
        return [
            {"signal": jackknife(part.signal / whole.signal), "noise": jackknife(part.noise / whole.noise)}
            for part in parts
        ]
