"""`cepo compare`: statistics against hand-worked cases, and the real command on small runs."""

import io
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import binomtest

from cepo import cli
from cepo.compare import jobs
from cepo.compare.jobs import BusyError, Job, job_of, locked
from cepo.compare.report import comparison_table, table_lines
from cepo.compare.statistics import Estimate, Run, Sampled, band, percent, summarize
from cepo.methods.registry import preset_options
from cepo.tasks.figures import policy_path

RESULT = Path(__file__).parents[1] / "experiments" / "comparison.json"


def run(seed, *accuracies, seconds=10.0):
    return Run(seed, [(5 * number, value) for number, value in enumerate(accuracies)], seconds)


def test_final_early_and_average_accuracy():
    one = run(0, 0.2, 0.4, 0.6, 0.5, 0.9)  # steps 0, 5, ..., 20
    assert one.final == 0.9
    assert one.early == pytest.approx((0.3 * 5 + 0.5 * 5) / 10)  # trapezoids up to step 10
    odd = run(0, 0.2, 0.4, 0.6, 0.8)  # the half lies between two evaluations
    assert odd.early == pytest.approx((0.3 * 5 + 0.45 * 2.5) / 7.5)
    assert one.average == pytest.approx((0.3 + 0.5 + 0.55 + 0.7) / 4)
    assert run(0, 0.3).early == run(0, 0.3).average == 0.3


def test_an_estimate_has_a_t_interval():
    values = [0.1, 0.2, 0.4, 0.3, 0.25, 0.15]
    found = Estimate.of(values)
    assert found.mean == pytest.approx(np.mean(values))
    half = 2.5706 * np.std(values, ddof=1) / math.sqrt(6)  # Student's t, 5 degrees of freedom
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), rel=1e-4)
    for without_spread in ([0.5], [0.5, 0.5, 0.5]):
        alone = Estimate.of(without_spread)
        assert alone.mean == 0.5
        assert alone.as_dict() == {"mean": 0.5, "low": None, "high": None}


def test_arms_are_compared_seed_by_seed():
    """Seeds differ more than arms: unpaired intervals overlap, the paired difference excludes 0."""
    draw = np.random.default_rng(0)
    base = draw.uniform(0.2, 0.8, size=8)
    gains = draw.uniform(0.02, 0.03, size=8)
    arms = {
        "grpo": [run(seed, 0.1, value, value) for seed, value in enumerate(base)],
        "cepo": [run(seed, 0.1, value + gain, value + gain, seconds=12.0) for seed, (value, gain) in
                 enumerate(zip(base, gains, strict=True))],
        "late": [run(7, 0.9, 0.5, 0.5)],  # whose untrained policy is GRPO's
    }  # fmt: skip
    untrained, grpo, cepo, late = summarize(arms)
    assert untrained["name"] == "base"
    assert untrained["early"]["mean"] == untrained["final"]["mean"] == pytest.approx(0.1)
    assert untrained["paired_difference_to_grpo"]["final"]["mean"] == pytest.approx(0.1 - base.mean())
    assert (grpo["paired_difference_to_grpo"], grpo["seconds_ratio"], untrained["seconds_ratio"]) == (None, 1.0, 0.0)
    difference = cepo["paired_difference_to_grpo"]["final"]
    assert difference["mean"] == pytest.approx(gains.mean())
    assert 0.02 < difference["low"] < difference["high"] < 0.03
    assert cepo["final"]["low"] < grpo["final"]["high"]
    assert cepo["seconds_ratio"] == pytest.approx(1.2)
    assert (late["pairs"], late["paired_difference_to_grpo"]["final"]["low"]) == (1, None)
    heads, lines = table_lines([untrained, grpo, cepo, late], {})
    assert heads == ["arm", "seeds", "", "accuracy, %", "minus GRPO", "time"]
    assert [line[:3] for line in lines[6:9]] == [["cepo", "8", "final"], ["", "", "early"], ["", "", "average"]]
    assert lines[6][4].startswith(f"+{100 * gains.mean():.1f} [")
    assert lines[6][5] == "1.20"


def test_the_band_has_all_evaluated_steps():
    points = band([run(0, 0.1, 0.3), run(1, 0.2, 0.5)])
    assert [(step, round(estimate.mean, 3)) for step, estimate in points] == [(0, 0.15), (5, 0.4)]


def test_rows_have_greedy_and_sampled_measures():
    before, after = Sampled(0.3, 0.8, 8, 0.5), Sampled(0.5, 0.9, 8, 0.1)
    sampled = [Run(seed, [(0, 0.4), (10, 0.6)], 9.0, before=before, after=after) for seed in (0, 1)]
    base, grpo, old = summarize({"grpo": sampled, "old": [Run(0, [(0, 0.4), (10, 0.7)], 9.0)]})
    assert (base["final"]["mean"], base["sampled"]["mean"], base["pass_at"]["mean"]) == (0.4, 0.3, 0.8)
    assert (grpo["sampled"]["mean"], grpo["pass_at"]["mean"], grpo["k"]) == (0.5, 0.9, 8)
    assert base["paired_difference_to_grpo"]["sampled"]["mean"] == pytest.approx(-0.2)
    assert (old["sampled"], old["paired_difference_to_grpo"]["sampled"]) == (None, None)
    _, lines = table_lines([base, grpo, old], {})
    assert [line[2] for line in lines[:5]] == ["final", "early", "average", "sampled", "pass@8"]


def test_the_table_fits_80_columns():
    rows = json.loads(RESULT.read_text())["arms"]
    rows[2]["name"] = "cepo [bold]"
    console = Console(width=80, soft_wrap=True, file=io.StringIO())
    console.print(comparison_table(rows, {}), soft_wrap=False)
    shown = console.file.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    assert "cepo [bold]" in shown
    for row in rows:
        for measure, estimate in (row["paired_difference_to_grpo"] or {}).items():
            assert percent(row[measure]) in shown
            assert percent(estimate, signed=True) in shown


def test_intervals_have_their_nominal_coverage():
    """Of 400 samples of five, the t interval misses about 20."""
    draw = np.random.default_rng(1)
    found = [Estimate.of(draw.normal(size=5)) for _ in range(400)]
    missed = sum(not e.low < 0 < e.high for e in found)
    assert binomtest(missed, 400, 0.05).pvalue > 0.01


BAD_CONFIGS = [
    ("arms: [grpo]", "`arms` names with options"),
    ("base: [1]", "`base` must hold options"),
    ("arms: {a: grpo}", "arm a must hold options"),
    ("arms: {a: {method: grpo}}\nseeds: many", "arm a: seeds must be a number"),
    ("arms: {a: {method: grpo, seeds: 0}}", "arm a: seeds must be a number"),
    ("arms: {base: {method: grpo}}", "arm 'base': choose another name"),
    ("arms: {lock: {method: grpo}}", "arm 'lock': choose another name"),
    ("arms: {'': {method: grpo}}", "arm '': choose another name"),
    ("arms: {..: {method: grpo}}", "arm '..': choose another name"),
    ("arms: {a: {method: opsd}}\nbase: {beta: 0.1}", "arm a: method='opsd': its loss is a divergence, in which beta"),
    ("arms: {a: {skip_zero_advantage: true, entropy_coef: 0.1}}", "arm a: skip_zero_advantage would change"),
    ("arms: {../../x: {method: grpo}}", "choose another name"),
    ("arms: {a: {method: grpo}", "is not YAML"),
    ("arms: {a: {method: grpo}}\nseed: 1", "unknown seed; the keys are against, arms"),
    ("[1]", "must hold options as `name: value` lines"),
    ("arms: {a: {method: grpo, reward_funcs: nonesuch}}", "arm a: "),
    ("arms: {a: {method: grpo, model_name_or_path: ./nowhere}}", "./nowhere"),
    ("arms: {a: {method: grpo}}\nfirst_seed: last", "first_seed must be a number, not 'last'"),
    ("arms: {a: {preset: papers}}", "arm a: unknown preset 'papers'"),
    ("arms: {a: {method: grpo}}\nbase: {preset: papers}", "unknown preset 'papers'"),
    ("arms: {a: {method: grpo}}\nagainst: [b]", "against must be a list of arms, a, not ['b']"),
    ("arms: {a: {method: grpo}}\nagainst: a", "against must be a list of arms, a, not 'a'"),
    ("arms: {a: {method: grpo}}\nbase: {dry_run: true}", "arm a: dry_run is an option of cepo compare"),
]


@pytest.mark.parametrize(("text", "named"), BAD_CONFIGS)
def test_errors_of_the_config_name_the_arm_or_key(text, named, tmp_path, capsys):
    config = tmp_path / "arms.yaml"
    config.write_text(text)
    assert cli.main(["compare", "--config", str(config), "--output_dir", str(tmp_path / "out")]) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_arms_from_file_and_flags_and_their_differences(tmp_path, capsys, monkeypatch):
    """Everything but the runs."""
    asked = []
    monkeypatch.setattr(jobs, "run_all", lambda work, *_: asked.extend(work))
    config = tmp_path / "arms.yaml"
    config.write_text("arms:\n  1: {method: sdpo, seeds: 1}\nseeds: 2")
    flags = ["--methods", "base, grpo, cepo", "--save_strategy", "no", "--reward_weights", "1", "--bf16", "false"]
    assert cli.main(["compare", "--config", str(config), "--output_dir", str(tmp_path / "out"), *flags]) == 1
    assert [(job.arm, job.seed) for job in asked] == [("1", 0), ("grpo", 0), ("cepo", 0), ("grpo", 1), ("cepo", 1)]
    assert asked[0].options["save_strategy"] == "no"
    printed = capsys.readouterr().out
    assert "- teacher_ema_decay: 0.95: 1; 0.999: cepo" in printed
    assert "- skip_zero_advantage: False: 1, grpo; True: cepo" in printed
    assert "- max_steps" not in printed
    result = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert result["differences"]["method"] == {"1": "sdpo", "grpo": "grpo", "cepo": "cepo"}
    assert "- teacher_ema_decay: 0.95: 1;" in (tmp_path / "out" / "compare.md").read_text()


def test_a_dry_run_lists_the_arms_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jobs, "run_all", lambda *_: pytest.fail("a run was started"))
    monkeypatch.chdir(tmp_path)
    arguments = ["compare", "--methods", "grpo,cepo", "--seeds", "4", "--dry_run"]
    assert cli.main(arguments) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "- method: 'grpo': grpo; 'cepo': cepo" in said
    assert "8 runs in comparison. Dry run: nothing was started." in said
    assert not list(tmp_path.iterdir())


def test_an_arms_preset_overrides_the_base_and_its_options_override_both(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(jobs, "run_all", lambda work, *_: asked.extend(work))
    config = tmp_path / "arms.yaml"
    config.write_text(
        "base: {evidence_clip: 0.9, teacher: ema}\nseeds: 1\n"
        "arms: {grpo: {method: grpo}, rlsd: {preset: rlsd, evidence_steps: 24}}"
    )
    cli.main(["compare", "--config", str(config), "--output_dir", str(tmp_path / "out")])
    grpo, rlsd = (job.options for job in asked)
    assert rlsd | preset_options("rlsd") | {"evidence_steps": 24} == rlsd
    assert not {"evidence_clip", "teacher"} & set(grpo)  # GRPO reads neither


def test_differences_to_further_reference_arms(tmp_path, monkeypatch, capsys):
    """For each measure, paired by seed, in compare.json, compare.md and on the terminal."""
    finals = {"grpo": (0.5, 0.6, 0.7), "control": (0.6, 0.7, 0.8), "cepo": (0.7, 0.9, 0.9)}
    monkeypatch.setattr(jobs, "run_all", lambda *_: None)
    monkeypatch.setattr(jobs.Job, "done", property(lambda _: True))

    def load(folder):
        seed = int(folder.name.removeprefix("seed-"))
        return run(seed, 0.1, 0.2, finals[folder.parent.name][seed])

    monkeypatch.setattr(jobs, "load_run", load)
    monkeypatch.setenv("COLUMNS", "120")
    config = tmp_path / "arms.yaml"
    config.write_text(
        "arms: {grpo: {method: grpo}, control: {negative_advantage_weight: 0.05, method: grpo}, cepo: {method: cepo}}\n"
        "seeds: 3\nagainst: [control, grpo, control]"
    )
    assert cli.main(["compare", "--config", str(config), "--output_dir", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert set(result["against"]) == {"control"}  # GRPO is always a reference
    ahead = result["against"]["control"]["final"]
    assert ahead["cepo"]["mean"] == pytest.approx((0.1 + 0.2 + 0.1) / 3)
    assert ahead["grpo"]["mean"] == pytest.approx(-0.1)
    assert ahead["cepo"]["low"] < ahead["cepo"]["mean"] < ahead["cepo"]["high"]
    assert result["against"]["control"]["average"]["cepo"]["mean"] == pytest.approx(0.25 * (0.1 + 0.2 + 0.1) / 3)
    listed = (tmp_path / "out" / "compare.md").read_text()
    assert "| accuracy, % | minus GRPO | minus control | time |" in listed
    assert "| cepo | 3 | final | 83.3 [54.6, 112.0] | +23.3 [+9.0, +37.7] | +13.3 [-1.0, +27.7] | 1.00 |" in listed
    assert "+13.3 [-1.0, +27.7]" in " ".join(capsys.readouterr().out.split())


def test_unequal_budgets_and_a_missing_reference_are_noted(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jobs, "run_all", lambda *_: None)
    config = tmp_path / "arms.yaml"
    config.write_text("base: {teacher: ema}\narms:\n  one: {method: cepo, max_steps: 3}\n  two: {method: opsd}")
    folder = tmp_path / "out"
    assert cli.main(["compare", "--config", str(config), "--output_dir", str(folder), "--max_steps", "2"]) == 1
    printed = capsys.readouterr().out
    assert "The budgets are not equal: max_steps differs (3: one; 2: two)." in printed
    assert "Without an arm 'grpo'" in printed
    assert "No run finished.\n- The budgets are not equal" in printed
    assert "- positive_content: 'answer': one; 'solution': two" in printed
    assert "- teacher: " not in printed  # equal in both arms
    assert "max_steps differs" in (folder / "compare.md").read_text()
    assert cli.main(["compare", "--methods", "grpo", "--output_dir", str(config)]) == 2
    assert str(config) in capsys.readouterr().err


def test_the_oracle_needs_token_labels(tmp_path, capsys):
    rows = [{"prompt": [{"role": "user", "content": "1 + 1?"}], "solution": "2"}] * 64
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ["--methods", "grpo,oracle", "--dataset_name", str(tmp_path), "--model_name_or_path", policy_path()]
    assert cli.main(["compare", *arguments, "--output_dir", str(tmp_path / "out")]) == 2
    assert (
        "arm oracle: method='oracle' cannot train on this dataset: it needs the token labels of the figures task"
        in capsys.readouterr().err
    )


def test_a_finished_run_with_other_options_is_refused(tmp_path):
    folder = tmp_path / "a" / "seed-0"
    folder.mkdir(parents=True)
    (folder / "options.json").write_text("{}")
    assert not job_of(tmp_path, "a", {"method": "grpo"}, 0).done
    (folder / "summary.json").write_text("{}")
    with pytest.raises(BusyError, match="other options"):
        job_of(tmp_path, "a", {"method": "grpo"}, 0)


MISTAKES = [
    ([], "--methods"),
    (["--methods", "grpo,ppo"], "'ppo'"),
    (["--methods", "grpo", "--evidence_clop", "1"], "unknown option --evidence_clop; did you mean"),
    (["--methods", "cepo", "--evidence_clip", "2"], "arm cepo: evidence_clip"),
    (["--methods", "grpo", "--seed", "3"], "seed is set for each run"),
    (["--config", "nowhere.yaml"], "nowhere.yaml"),
    (["loose", "--methods", "grpo"], "'loose'"),
    (["--methods", "grpo", "--max_steps", "3", "loose"], "unexpected 'loose'"),
    (["--methods", "grpo,cepo", "--against", "rlsd"], "against must be a list of arms, grpo, cepo, not ['rlsd']"),
    (["--methods", "grpo", "--eval_problems", "0"], "no held-out problems (eval_problems=0"),
    (["--methods", "grpo", "--dataset_test_split", "best"], "dataset_split: the figures task has no 'best'"),
]


@pytest.mark.parametrize(("arguments", "named"), MISTAKES)
def test_errors_are_found_before_any_run(arguments, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compare", *arguments]) == 2
    assert named in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_refused(tmp_path, capsys):
    with locked(tmp_path):
        assert cli.main(["compare", "--methods", "grpo", "--output_dir", str(tmp_path)]) == 2
    assert "is in use by other runs" in capsys.readouterr().err
    with locked(tmp_path):
        pass


# A run that prints a line, then waits for a file, fails or is killed.
RUN = """
import os, pathlib, signal, sys, time
folder, print_first, then = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
print(print_first, flush=True)
if then == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if then == "fail":
    sys.exit("no such thing")
while not (folder.parent / "go").exists():
    time.sleep(0.05)
(folder / "summary.json").touch()
"""


@pytest.fixture
def fake_runs(tmp_path, monkeypatch):
    """Runs three jobs, whose options give what each prints and does."""
    started = []

    def start(job, threads, lock):
        job.folder.mkdir(parents=True, exist_ok=True)
        with job.log.open("w") as log:
            words = [str(job.folder), job.options.get("prints", "step 1/9"), job.options.get("then", "end")]
            job.process = subprocess.Popen([sys.executable, "-c", RUN, *words], stdout=log, stderr=subprocess.STDOUT)
        started.append(job.arm)

    monkeypatch.setattr(jobs, "_start", start)
    work = [Job(name, 0, {}, tmp_path / name) for name in ("one", "two", "three")]

    def run(**options):
        for job in work:
            job.options.update(options.get(job.arm, {}))
        jobs.run_all(work, 2, None, Console(quiet=True))
        return work

    return run, started


def test_two_runs_at_a_time(tmp_path, fake_runs, monkeypatch):
    run, started = fake_runs
    seen = []
    sleep = time.sleep

    def look(seconds):
        seen.append(list(started))
        if len(seen) == 3:
            (tmp_path / "go").touch()
        sleep(0.1)

    monkeypatch.setattr(jobs.time, "sleep", look)
    assert all(job.done for job in run())
    assert seen[2] == ["one", "two"]
    assert started == ["one", "two", "three"]


def test_the_reason_of_a_failed_run(tmp_path, fake_runs):
    run, _ = fake_runs
    (tmp_path / "go").touch()
    one, two, three = run(one={"then": "kill"}, two={"then": "fail"})
    assert one.failure == ("killed (SIGKILL, perhaps out of memory; try fewer --jobs) after: step 1/9")
    assert two.failure == "no such thing"
    assert three.done
    assert three.failure is None


@pytest.mark.integration
def test_sigterm_stops_the_runs(tmp_path):
    arguments = ["--methods", "grpo", "--jobs=1", "--output_dir", str(tmp_path / "out")]
    command = subprocess.Popen(
        [sys.executable, "-m", "cepo.cli", "compare", *arguments], stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "out" / "grpo" / "seed-0" / "log.txt"
    deadline = time.monotonic() + 120
    while not (log.is_file() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.2)
    command.send_signal(signal.SIGTERM)
    _, errors = command.communicate(timeout=60)
    assert command.returncode == 130
    assert errors.splitlines()[-1] == "cepo: stopped; the same command resumes"
    with locked(tmp_path / "out"):  # no run holds the lock
        assert not (log.parent / "summary.json").exists()


@pytest.mark.integration
def test_compare_runs_reports_resumes_and_survives_a_failure(tmp_path, capsys):
    config = tmp_path / "arms.yaml"
    config.write_text(
        """
base: {max_steps: 2, per_device_train_batch_size: 16, accuracy_every: 1, eval_problems: 32, figures_problems: 64,
       eval_samples: 4, eval_sampled_problems: 16}
arms:
  grpo: {method: grpo}
  cepo: {method: cepo, evidence_steps: 2}
  opsd: {method: opsd, seeds: 1}
  sdpo: {method: sdpo, seeds: 1}
  oracle: {method: oracle, seeds: 1}
  broken: {method: opsd, lr_scheduler_kwargs: {nonesuch: 1}, seeds: 1}
seeds: 2
"""
    )
    folder = tmp_path / "out"
    assert cli.main(["compare", "--config", str(config), "--output_dir", str(folder)]) == 1
    result = json.loads((folder / "compare.json").read_text())
    rows = {row["name"]: row for row in result["arms"]}
    assert {name: row["seeds"] for name, row in rows.items()} == {
        "base": 2, "grpo": 2, "cepo": 2, "opsd": 1, "sdpo": 1, "oracle": 1
    }  # fmt: skip
    assert [failure["arm"] for failure in result["failed"]] == ["broken"]
    assert [step for step, _ in result["runs"]["cepo"][1]["accuracy"]] == [0, 1, 2]
    assert [sorted(versions) for versions in result["versions"]] == [["cepo", "torch", "transformers", "trl"]]
    finals = {name: [run["accuracy"][-1][1] for run in result["runs"][name]] for name in ("grpo", "cepo")}
    ahead = np.subtract(finals["cepo"], finals["grpo"]).mean()
    assert rows["cepo"]["paired_difference_to_grpo"]["final"]["mean"] == pytest.approx(ahead)
    assert rows["cepo"]["pairs"] == 2
    # Equal values give no interval.
    assert (rows["grpo"]["final"]["low"] is not None) == (finals["grpo"][0] != finals["grpo"][1])
    assert (folder / "compare.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "broken, seed 0: FAILED" in printed
    assert "cepo: method='cepo', evidence_steps=2" in printed

    # A second call runs the missing run, and the same seed gives the same accuracies.
    shutil.rmtree(folder / "cepo" / "seed-1")
    stamps = {path: path.stat().st_mtime for path in folder.glob("*/seed-*/summary.json")}
    config.write_text("\n".join(line for line in config.read_text().splitlines() if "broken" not in line))
    assert cli.main(["compare", "--config", str(config), "--output_dir", str(folder)]) == 0
    assert "6 of 7 runs have finished before" in capsys.readouterr().out
    assert stamps.items() < {path: path.stat().st_mtime for path in folder.glob("*/seed-*/summary.json")}.items()
    again = json.loads((folder / "compare.json").read_text())
    for name, runs in result["runs"].items():
        if name != "broken":
            assert [run["accuracy"] for run in again["runs"][name]] == [run["accuracy"] for run in runs]
    assert cli.main(["compare", "--config", str(config), "--output_dir", str(folder), "--max_steps", "3"]) == 2
    assert "holds a run with other options" in capsys.readouterr().err


@pytest.mark.integration
def test_comparison_of_adapters(tmp_path):
    """All arms, and the untrained policy, start from the output of a LoRA run."""
    small = ["--max_steps=1", "--per_device_train_batch_size=8", "--figures_problems=16", "--eval_problems=6"]
    small += ["--max_completion_length=16", "--eval_samples=2", "--eval_sampled_problems=4"]
    adapters, folder = tmp_path / "adapters", tmp_path / "out"
    assert cli.main(["train", *small, "--use_peft", "--lora_r=4", "--output_dir", str(adapters)]) == 0
    options = [*small, "--model_name_or_path", str(adapters), "--learning_rate=1e-3"]
    assert cli.main(["compare", "--methods=grpo,cepo", "--seeds=1", *options, "--output_dir", str(folder)]) == 0
    result = json.loads((folder / "compare.json").read_text())
    assert {"base", "grpo", "cepo"} == {row["name"] for row in result["arms"]}
    assert (folder / "grpo" / "seed-0" / "adapter_model.safetensors").is_file()
