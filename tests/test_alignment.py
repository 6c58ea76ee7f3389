"""The measures of gradients against plain loops, and cases that are known."""

import numpy as np
import pytest
from scipy.stats import t

from cepo.inspection.alignment import Cuts, absolute, align, jackknife, products, ratios, shares


def plain(gradients, truth, halves):
    """Alignment, Adam's form, norm and cosine as loops over batches and parameters."""
    batches, size = gradients.shape
    pairs = [(b, c) for b in range(batches) for c in range(batches) if b != c]
    signal = np.mean([sum(gradients[b, i] * truth[c, i] for i in range(size)) for b, c in pairs])
    own = np.mean([sum(gradients[b, i] * gradients[c, i] for i in range(size)) for b, c in pairs])
    true = np.mean([sum(truth[b, i] * truth[c, i] for i in range(size)) for b, c in pairs])
    norm = np.sqrt(np.mean([sum(g * g for g in row) for row in gradients]))
    adam = []
    for cut in halves:
        for first, second in (cut, cut[::-1]):
            total = 0.0
            for i in range(size):
                mean = np.mean([gradients[b, i] for b in first])
                square = np.mean([gradients[b, i] ** 2 for b in first])
                total += mean / (np.sqrt(square) + 1e-8) * np.mean([truth[b, i] for b in second])
            adam.append(total)
    return signal / norm, np.mean(adam), norm, signal / np.sqrt(own * true)


def test_the_measures_are_those_of_plain_loops():
    rng = np.random.default_rng(0)
    middle, bias = rng.normal(size=7), rng.normal(size=7)
    truth = middle + 0.2 * rng.normal(size=(6, 7))
    gradients = 0.7 * middle + bias + 0.2 * rng.normal(size=(6, 7))
    halves = [([0, 1, 2], [3, 4, 5]), ([0, 3, 4], [1, 2, 5])]
    cuts = Cuts.of(6, halves)
    of_truth = products(truth.astype(np.float32), truth.astype(np.float32), cuts)
    own = align(products(gradients.astype(np.float32), truth.astype(np.float32), cuts), of_truth, cuts)
    alignment, adam, norm, cosine = plain(gradients, truth, halves)
    assert own.alignment[0] == pytest.approx(alignment, rel=1e-4)
    assert own.adam[0] == pytest.approx(adam, rel=1e-4)
    assert own.norm[0] == pytest.approx(norm, rel=1e-5)
    assert 0 < cosine < 0.95
    assert np.cos(np.radians(own.angle[0])) == pytest.approx(cosine, rel=1e-4)


def test_the_size_of_a_gradient_changes_its_norm_alone_and_parts_add_up():
    rng = np.random.default_rng(1)
    middle = rng.normal(size=300)
    truth = (middle + rng.normal(size=(8, 300))).astype(np.float32)
    cuts = Cuts.draw(8, splits=4, seed=0)
    of_truth = products(truth, truth, cuts)
    reference = align(of_truth, of_truth, cuts)
    tripled = align(products(3 * truth, truth, cuts), of_truth, cuts)
    found = ratios(tripled, reference)
    for measure, expected in (("alignment", 1), ("adam", 1), ("norm", 3)):
        estimate = found[measure]
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx((expected,) * 3, rel=1e-4)
    # The truth is not held against itself but in other batches: its angle to itself is 0 all the same.
    assert absolute(tripled)["angle"].value == pytest.approx(0, abs=0.1)
    assert absolute(tripled)["alignment"].value == pytest.approx(reference.alignment[0], rel=1e-5)
    part = truth.copy()
    part[:, 150:] = 0
    parts = [align(products(one, truth, cuts), of_truth, cuts) for one in (part, truth - part)]
    halves = shares(parts, reference)
    assert sum(half["signal"].value for half in halves) == pytest.approx(1, rel=1e-4)
    assert sum(half["noise"].value for half in halves) == pytest.approx(1, rel=1e-4)  # of different parameters


def test_pure_noise_shows_no_alignment_and_less_of_it_shows_more():
    rng = np.random.default_rng(2)
    middle = rng.normal(size=400)

    def noisy(scale):
        return (middle + scale * rng.normal(size=(20, 400))).astype(np.float32)

    truth = noisy(1.0)
    cuts = Cuts.draw(20, splits=8, seed=0)
    of_truth = products(truth, truth, cuts)
    reference = align(products(noisy(1.0), truth, cuts), of_truth, cuts)
    quiet = ratios(align(products(noisy(0.3), truth, cuts), of_truth, cuts), reference)
    assert quiet["alignment"].low > 1.1
    assert quiet["adam"].low > 1.1
    noise = rng.normal(size=(20, 400)).astype(np.float32)
    nothing = ratios(align(products(noise, truth, cuts), of_truth, cuts), reference)
    assert abs(nothing["alignment"].value) < 0.2
    assert nothing["alignment"].low < 0.1


def test_nothing_is_a_ratio_to_what_cannot_be_told_from_nothing():
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(6, 50)).astype(np.float32)
    cuts = Cuts.draw(6, splits=4, seed=0)
    of_noise = products(noise, noise, cuts)
    nothing = align(of_noise, of_noise, cuts)
    assert absolute(nothing)["alignment"].low < 0
    found = ratios(nothing, nothing)
    assert found["alignment"].as_dict() == {"value": None, "low": None, "high": None}
    assert found["norm"].value == 1.0


def test_without_each_batch_everything_is_as_if_it_had_not_been_there():
    """Entry 1 + b of all measures is that of the other batches alone."""
    rng = np.random.default_rng(4)
    middle = rng.normal(size=30)
    truth, own = ((middle + rng.normal(size=(7, 30))).astype(np.float32) for _ in range(2))
    halves = [([0, 1, 2], [3, 4, 5, 6]), ([6, 2, 4], [0, 1, 3, 5])]
    cuts = Cuts.of(7, halves)
    whole = align(products(own, truth, cuts), products(truth, truth, cuts), cuts)
    for left_out in range(7):
        kept = [batch for batch in range(7) if batch != left_out]
        fewer = Cuts.of(6, [tuple([kept.index(b) for b in half if b != left_out] for half in cut) for cut in halves])
        some = align(products(own[kept], truth[kept], fewer), products(truth[kept], truth[kept], fewer), fewer)
        for measure in ("alignment", "adam", "norm", "angle", "noise"):
            assert getattr(whole, measure)[1 + left_out] == pytest.approx(getattr(some, measure)[0], rel=1e-4), measure


def test_the_jackknife_of_a_mean_is_students_interval():
    values = np.array([1.0, 4.0, 2.0, 7.0])
    without = (values.sum() - values) / 3
    found = jackknife(np.array([values.mean(), *without]))
    half = t.ppf(0.975, 3) * values.std(ddof=1) / 2
    assert (found.low, found.value, found.high) == pytest.approx((3.5 - half, 3.5, 3.5 + half))


def test_cuts_are_halves_without_the_one_that_is_left_out():
    cuts = Cuts.draw(9, splits=3, seed=4)
    assert (cuts.whole.shape, cuts.halves.shape) == ((10, 9), (3, 10, 2, 9))
    both = cuts.halves.sum(2)
    assert (both == cuts.whole).all()
    assert (cuts.halves.max(2) <= 1).all()
    assert sorted(cuts.halves[0, 0].sum(-1)) == [4.0, 5.0]
