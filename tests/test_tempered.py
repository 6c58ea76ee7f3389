"""The arm `tempered`: the untrained policy as sharp as the trained one."""

import pytest

from cepo.compare import tempered
from cepo.compare.statistics import Run, Sampled, summarise, table
from cepo.compare.tempered import temperature_of, tempered_runs
from cepo.data.evaluation import Entropy, Evaluation


def test_halving_finds_the_temperature():
    assert temperature_of(0.36, lambda at: at**2) == pytest.approx(0.6, abs=0.01)
    assert temperature_of(9.0, lambda at: at**2) == pytest.approx(1.5, abs=0.02)
    assert temperature_of(0.0, lambda at: at**2) == pytest.approx(0.05, abs=0.02)


def grpo_run(seed, entropy):
    before, after = Sampled(0.3, 0.8, 8, 0.5), Sampled(0.5, 0.9, 8, entropy)
    return Run(seed, [(0, 0.4), (10, 0.6)], 9.0, before=before, after=after)


@pytest.fixture
def asked(monkeypatch):
    """A policy whose entropy at content is a tenth of the temperature; what it was asked."""
    calls = []

    class Fake:
        samples = 8

        def ask(self, temperature, samples, seed):
            calls.append((round(temperature, 3), samples, seed))
            entropy = Entropy((temperature / 10,), (1,))
            return Evaluation(temperature, samples, (samples // 2, samples), [], Entropy((5.0,), (1,)), entropy)

    monkeypatch.setattr(tempered.Untrained, "of", lambda options: Fake())
    return calls


def test_the_untrained_policy_is_asked_at_grpos_entropy_once_for_each_seed(tmp_path, asked):
    runs = [grpo_run(0, 0.06), grpo_run(1, 0.08)]
    found, note = tempered_runs(runs, {"method": "grpo"}, tmp_path, lambda text: None)
    assert [(run.seed, run.accuracy, run.sampled, run.pass_at) for run in found] == [
        (0, [(0, 0.4)], 0.75, 1.0),
        (1, [(0, 0.4)], 0.75, 1.0),
    ]
    assert [call for call in asked if call[1] == 8] == [(pytest.approx(0.7, abs=0.01), 8, seed) for seed in (0, 1)]
    assert "at temperature 0.70" in note
    assert "GRPO's after training is 0.070" in note
    # What is known is not asked again; another seed is, at the same temperature only if the entropy is the same.
    before = len(asked)
    tempered_runs(runs, {"method": "grpo"}, tmp_path, lambda text: None)
    assert len(asked) == before
    tempered_runs(runs, {"method": "grpo", "learning_rate": 1}, tmp_path, lambda text: None)
    assert len(asked) > before


def test_without_sampled_answers_there_is_no_such_arm(tmp_path, asked):
    assert tempered_runs([Run(0, [(0, 0.4)], 1.0)], {}, tmp_path, lambda text: None) is None
    assert not asked


def test_a_comparison_has_greedy_accuracy_first_and_sampled_beside():
    runs = {"grpo": [grpo_run(0, 0.1), grpo_run(1, 0.1)], "old": [Run(0, [(0, 0.4), (10, 0.7)], 9.0)]}
    base, grpo, old = summarise(runs)
    assert (base["final"]["mean"], base["sampled"]["mean"], base["pass_at"]["mean"]) == (0.4, 0.3, 0.8)
    assert (grpo["sampled"]["mean"], grpo["pass_at"]["mean"], grpo["k"]) == (0.5, 0.9, 8)
    assert base["paired_difference_to_grpo"]["sampled"]["mean"] == pytest.approx(-0.2)
    assert (old["sampled"], old["paired_difference_to_grpo"]["sampled"]) == (None, None)
    heads = table([base, grpo, old]).split(" | ")
    assert heads[2:7] == ["final, greedy", "early, greedy", "average, greedy", "sampled", "pass@8"]
    assert heads[7] == "final, greedy, minus GRPO"
