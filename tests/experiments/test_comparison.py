"""The pre-registered comparisons: files, tables, tuning, the entropy-matched arm, and a comparison without training."""

import json
from pathlib import Path

import pytest

from cepo.compare.arms import read_comparison
from cepo.compare.statistics import Run, Sampled
from cepo.data.accuracy import Entropy, Evaluation
from experiments import comparison, entropy_matched, pictures, tables, tuning

FOLDER = Path(comparison.__file__).parent


@pytest.mark.parametrize("name", ["comparison", "comparison-default", "comparison-longer"])
def test_configurations_have_the_arms_of_the_results(name):
    config, tuned = comparison.read(FOLDER / f"{name}.yaml")
    asked = read_comparison(config, [])
    result = json.loads((FOLDER / f"{name}.json").read_text())
    assert {arm.name: arm.seeds for arm in asked.arms} == {arm: len(result["runs"][arm]) for arm in result["options"]}
    assert bool(tuned["learning_rate"]) == (name != "comparison-longer")
    repeated, _ = comparison.read(FOLDER / f"{name}.json")
    again = read_comparison(repeated, [])
    assert {arm.name: arm.seeds for arm in again.arms} == {arm.name: arm.seeds for arm in asked.arms}
    rates = {arm.name: arm.options["learning_rate"] for arm in again.arms}
    assert rates == {arm: options["learning_rate"] for arm, options in result["options"].items()}


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_tables_of_the_pages_match_the_results(page):
    text = page.read_text()
    assert "<!-- table: " in text
    assert tables.made(text) == text


def test_the_prediction_covers_every_trained_arm():
    assert len(pictures.predictions(pictures.read("gradients-long.json"), pictures.read("comparison.json"))) == 11


def made_up(accuracy):
    """A `run_all` whose runs have an accuracy that depends on arm and learning rate."""

    def run_all(work, *_):
        for job in work:
            rate = float(job.options["learning_rate"])
            job.folder.mkdir(parents=True, exist_ok=True)
            after = {"accuracy": 0.5, "samples": 4, "entropy": {"nats": 0.07}}
            found = {
                "seed": job.seed,
                "steps": 1,
                "accuracy": [{"step": 0, "accuracy": 0.1}, {"step": 1, "accuracy": accuracy(job.arm, rate)}],
                "after": {"sampled": after},
            }
            (job.folder / "summary.json").write_text(json.dumps(found))
            (job.folder / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": 1, "step_time": 1.0}]}))

    return run_all


def test_tuning_continues_while_the_best_rate_is_at_the_edge(tmp_path, monkeypatch):
    best = {"inside": 2e-4, "low": 5e-5}
    monkeypatch.setattr(tuning, "run_all", made_up(lambda arm, rate: -abs(rate - best[arm.split("-")[0]])))
    tried = tuning.tune({name: {} for name in best}, [1e-4, 2e-4, 4e-4], 2, 3, tmp_path, 1, None, None)
    assert {name: sorted(found.jobs) for name, found in tried.items()} == {
        "inside": [1e-4, 2e-4, 4e-4],
        "low": [2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4],
    }
    assert {name: found.best for name, found in tried.items()} == best
    assert tuning.further_rate([1e-4, 3e-4], 3e-4) == 9e-4
    assert tuning.further_rate([1e-4, 3e-4], None) is None


class Policy:
    """A policy whose content entropy is a tenth of the temperature."""

    def __init__(self):
        self.calls = []

    def __call__(self, temperature, samples, seed):
        self.calls.append((temperature, samples, seed))
        entropy = Entropy((temperature / 10,), (1,))
        return Evaluation(temperature, samples, (samples // 2, samples), [], Entropy((5.0,), (1,)), entropy)


def test_matched_arm_has_grpos_entropy(tmp_path, monkeypatch):
    policy = Policy()
    monkeypatch.setattr(entropy_matched, "untrained_policy", lambda options: (policy, 8))
    runs = [Run(seed, [(0, 0.4), (10, 0.6)], 9.0, after=Sampled(0.5, 0.9, 8, 0.07)) for seed in (0, 1)]
    found, note = entropy_matched.matched_runs(runs, {"method": "grpo"}, tmp_path, lambda text: None)
    assert [(run.seed, run.accuracy, run.sampled) for run in found] == [(0, [(0, 0.4)], 0.75), (1, [(0, 0.4)], 0.75)]
    assert "at temperature 0.70" in note
    before = len(policy.calls)
    entropy_matched.matched_runs(runs, {"method": "grpo"}, tmp_path, lambda text: None)  # kept
    assert len(policy.calls) == before
    assert entropy_matched.matched_runs([Run(0, [(0, 0.4)], 1.0)], {}, tmp_path, lambda text: None) is None


def test_comparison_tunes_runs_and_reports(tmp_path, monkeypatch, capsys):
    from cepo.compare import jobs

    run_all = made_up(lambda arm, rate: 0.5 + 1000 * rate + 0.1 * arm.startswith("cepo"))
    monkeypatch.setattr(tuning, "run_all", run_all)
    monkeypatch.setattr(jobs, "run_all", run_all)
    monkeypatch.setattr(entropy_matched, "untrained_policy", lambda options: (Policy(), 4))
    config = tmp_path / "arms.yaml"
    arms = "arms: {grpo: {method: grpo}, cepo: {method: cepo}}"
    config.write_text(f"{arms}\nseeds: 2\ntune_learning_rate: [1.0e-5, 2.0e-5]")
    assert comparison.main(["--config", str(config), "--output_dir", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [row["name"] for row in result["arms"]] == ["base", "grpo", "cepo", "entropy-matched base"]
    assert {options["learning_rate"] for options in result["options"].values()} == {2e-5}
    assert set(result["tuning"]["grpo"]) == {"1e-05", "2e-05"}
    assert "points ahead of entropy-matched base" in " ".join(capsys.readouterr().out.split())
