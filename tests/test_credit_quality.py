"""Measures of credit against slow, plain versions of themselves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from cepo.inspection.quality import Ranked, Tokens, measure

scored = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5, 2.0]), st.booleans(), st.integers(0, 3)), max_size=30)


def plain_auroc(entries):
    wins = total = 0.0
    for score, positive, weight in entries:
        for other, other_positive, other_weight in entries:
            if positive and not other_positive:
                total += weight * other_weight
                wins += weight * other_weight * ((score > other) + 0.5 * (score == other))
    return wins / total if total else np.nan


def plain_average_precision(entries):
    """Each entry as often as it weighs; every threshold once."""
    entries = [(score, positive) for score, positive, weight in entries for _ in range(weight)]
    positives = sum(positive for _, positive in entries)
    if not positives:
        return np.nan
    total, before = 0.0, 0
    for threshold in sorted({score for score, _ in entries}, reverse=True):
        above = [positive for score, positive in entries if score >= threshold]
        total += (sum(above) - before) / positives * sum(above) / len(above)
        before = sum(above)
    return total


@given(scored)
def test_auroc_and_average_precision_with_ties_and_weights(entries):
    scores, positive, weights = (np.array(column) for column in zip(*entries, strict=True)) if entries else [[]] * 3
    ranked = Ranked(np.array(scores, dtype=float), np.array(positive, dtype=bool))
    weights = np.array(weights, dtype=float)
    assert ranked.auroc(weights) == pytest.approx(plain_auroc(entries), nan_ok=True)
    assert ranked.average_precision(weights) == pytest.approx(plain_average_precision(entries), nan_ok=True)


def test_auroc_is_scipys():
    draw = np.random.default_rng(0)
    scores, positive = draw.normal(size=200).round(1), draw.random(200) < 0.3
    expected = mannwhitneyu(scores[positive], scores[~positive]).statistic / (positive.sum() * (~positive).sum())
    assert Ranked(scores, positive).auroc(np.ones(200)) == pytest.approx(expected)


def tokens(evidence, decisive, sign, groups, at_bound=None):
    return Tokens(
        np.array(evidence, dtype=float),
        np.array([False] * len(evidence) if at_bound is None else at_bound, dtype=bool),
        np.array(decisive, dtype=bool),
        sign,
        np.array(groups),
    )


def test_measures_by_hand():
    wrong = tokens(
        [-2.0, 1.0, 0.1, -0.3], [True, True, False, False], -1, [0, 1, 0, 1], at_bound=[True, True, False, False]
    )
    found = {name: estimate.value for name, estimate in measure(wrong, resamples=5).items()}
    assert found == {
        "auroc": 1.0,  # both decisive tokens have more evidence than either filler token
        "average_precision": 1.0,
        "filler_abs_mean": pytest.approx(0.2),
        "wrong_sign": 0.5,  # on a wrong rollout evidence for r+ at a decisive token speaks against the verdict
        "clipped": 0.5,
    }


def test_intervals_come_from_whole_groups():
    """Two groups that differ: a bootstrap over groups has three outcomes, one over tokens would have many."""
    two = tokens([0.0] * 50 + [1.0] * 50, [False] * 100, 1, [0] * 50 + [1] * 50)
    estimate = measure(two, resamples=400)["filler_abs_mean"]
    assert (estimate.low, estimate.value, estimate.high) == (0.0, 0.5, 1.0)


def test_nothing_to_measure_is_not_a_number():
    none_decisive = tokens([0.1, 0.2], [False, False], 1, [0, 0])
    found = measure(none_decisive, resamples=10)
    assert np.isnan(found["auroc"].value)
    assert np.isnan(found["wrong_sign"].high)
    assert found["filler_abs_mean"].value == pytest.approx(0.15)
