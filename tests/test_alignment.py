"""The measures of gradients against plain loops, and cases that are known."""

import numpy as np
import pytest

from cepo.inspection.alignment import Estimate, Weightings, align, products, ratios, shares


def once(batches, halves):
    """Every batch once, and given cuts into halves; no bootstrap but one sample that is the same."""
    cuts = np.zeros((len(halves), 2, batches))
    for number, (first, second) in enumerate(halves):
        cuts[number, 0, first], cuts[number, 1, second] = 1, 1
    return Weightings(np.ones((2, batches)), cuts, cuts[:1])


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
    weightings = once(6, halves)
    of_truth = products(truth.astype(np.float32), truth.astype(np.float32), weightings)
    own = align(products(gradients.astype(np.float32), truth.astype(np.float32), weightings), of_truth, weightings)
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
    weightings = Weightings.draw(8, resamples=50, splits=4, seed=0)
    of_truth = products(truth, truth, weightings)
    reference = align(of_truth, of_truth, weightings)
    tripled = align(products(3 * truth, truth, weightings), of_truth, weightings)
    found = ratios(tripled, reference)
    for measure, expected in (("alignment", 1), ("adam", 1), ("norm", 3)):
        estimate = found[measure]
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx((expected,) * 3, rel=1e-4)
    # The truth is not held against itself but in other batches: its angle to itself is 0 all the same.
    assert found["angle"].value == pytest.approx(0, abs=0.1)
    part = truth.copy()
    part[:, 150:] = 0
    parts = [align(products(one, truth, weightings), of_truth, weightings) for one in (part, truth - part)]
    halves = shares(parts, reference)
    assert sum(half["signal"].value for half in halves) == pytest.approx(1, rel=1e-4)
    assert sum(half["noise"].value for half in halves) == pytest.approx(1, rel=1e-4)  # of different parameters


def test_pure_noise_shows_no_alignment_and_less_of_it_shows_more():
    rng = np.random.default_rng(2)
    middle = rng.normal(size=400)

    def noisy(scale):
        return (middle + scale * rng.normal(size=(20, 400))).astype(np.float32)

    truth = noisy(1.0)
    weightings = Weightings.draw(20, resamples=100, splits=8, seed=0)
    of_truth = products(truth, truth, weightings)
    reference = align(products(noisy(1.0), truth, weightings), of_truth, weightings)
    quiet = ratios(align(products(noisy(0.3), truth, weightings), of_truth, weightings), reference)
    assert quiet["alignment"].low > 1.1
    assert quiet["adam"].low > 1.1
    noise = rng.normal(size=(20, 400)).astype(np.float32)
    nothing = ratios(align(products(noise, truth, weightings), of_truth, weightings), reference)
    assert abs(nothing["alignment"].value) < 0.2
    assert nothing["alignment"].low < 0.1


def test_halves_of_a_bootstrap_sample_share_no_batch():
    weightings = Weightings.draw(9, resamples=40, splits=3, seed=4)
    assert weightings.whole.shape == (41, 9)
    assert (weightings.whole.sum(1) == 9).all()
    for cuts in (weightings.plain, weightings.drawn):
        assert (np.minimum(cuts[:, 0], cuts[:, 1]) == 0).all()
        assert set(map(tuple, cuts.sum(-1))) == {(4.0, 5.0)}
    assert (weightings.plain.max((1, 2)) == 1).all()


def test_an_estimate_leaves_out_samples_that_say_nothing():
    found = Estimate.of(np.array([2.0, 1.0, np.nan, 3.0, np.inf]))
    assert (found.value, found.low, found.high) == (2.0, pytest.approx(1.05), pytest.approx(2.95))
    assert np.isnan(Estimate.of(np.array([1.0])).low)
