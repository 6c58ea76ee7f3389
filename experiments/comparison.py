"""The pre-registered comparisons: `cepo compare` with tuned learning rates and the arm `entropy-matched base`.

    python -m experiments.comparison --config experiments/comparison.yaml --output_dir comparison --jobs 2
    python -m experiments.comparison --config experiments/comparison.json --seeds 2 --output_dir again --jobs 2

The YAML file has the keys of `cepo compare`, and `tune_learning_rate` (a list), `tune_seeds` and `tune_beyond`. A
compare.json repeats its arms with the learning rates chosen there. A second call continues an interrupted comparison.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from cepo.commands import quiet_libraries
from cepo.compare.arms import Comparison, read_comparison
from cepo.compare.jobs import locked, run_arms
from cepo.compare.report import print_arms, report
from cepo.compare.statistics import REFERENCE, paired_differences, percent
from cepo.data.yaml_files import read_yaml
from cepo.inspection.console import PlainConsole
from cepo.methods.registry import applicable_options

from .entropy_matched import MATCHED, matched_runs
from .tuning import FIRST_SEED, Trials, tune


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration for `cepo compare`, and the tuning: `learning_rate`, `seeds` and `beyond`."""
    config = repeated(json.loads(path.read_text(encoding="utf-8"))) if path.suffix == ".json" else read_yaml(path)
    defaults = {"learning_rate": [], "seeds": 2, "beyond": 0}
    return config, {name: config.pop(f"tune_{name}", default) for name, default in defaults.items()}


def repeated(result: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the arms, seeds and learning rates of a compare.json."""
    arms = {}
    first = []
    for name, options in result["options"].items():
        runs = (*result["runs"].get(name, []), *result["failed"])
        seeds = [run["seed"] for run in runs if run.get("arm", name) == name]
        first += seeds
        arms[name] = {**applicable_options(options, options["method"]), "seeds": len(seeds)}
    return {"arms": arms, "first_seed": min(first, default=0), "against": list(result["against"])}


def run(comparison: Comparison, tuning: dict[str, Any], folder: Path, jobs: int, lock: TextIO, console: Console) -> int:
    """Tune, run the arms, add `entropy-matched base`, and report. Returns the exit status."""
    print_arms(comparison, console)
    trials: dict[str, Trials] = {}
    if tuning["learning_rate"]:
        options = {arm.name: arm.options for arm in comparison.arms}
        rates, seeds, beyond = tuning["learning_rate"], tuning["seeds"], tuning["beyond"]
        trials = tune(options, rates, seeds, beyond, folder / "tuning", jobs, lock, console)
        best = {name: arm.best for name, arm in trials.items() if arm.best is not None}
        arms = [
            replace(arm, options={**arm.options, "learning_rate": best[arm.name]})
            for arm in comparison.arms
            if arm.name in best
        ]
        comparison = replace(comparison, arms=arms)
    runs, failed = run_arms(comparison.arms, comparison.first_seed, folder, jobs, lock, console)
    tuned = [job for arm in trials.values() for jobs_of_rate in arm.jobs.values() for job in jobs_of_rate]
    failed = [*(job for job in tuned if not job.done), *failed]
    notes = [arm.note(name) for name, arm in trials.items()]
    reference = next((arm.options for arm in comparison.arms if arm.name == REFERENCE), None)
    if reference is not None and runs[REFERENCE]:
        quiet_libraries()
        with console.status(MATCHED) as status:
            found = matched_runs(runs[REFERENCE], reference, folder, status.update)
        if found is not None:
            runs[MATCHED], note = found
            ahead = {name: paired_differences(arm, runs[MATCHED]) for name, arm in runs.items() if name != MATCHED}
            listed = "; ".join(f"{name} {percent(one['sampled'], signed=True)}" for name, one in ahead.items() if one)
            notes += [note, f"Sampled accuracy, points ahead of {MATCHED}, paired by seed: {listed}."]
    scores = {name: arm.scores for name, arm in trials.items()}
    report(folder, comparison, runs, failed, console, notes=notes, tuning=scores)
    return 1 if failed else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=None, help="seeds of each arm (default: as in the file)")
    parser.add_argument("--jobs", type=int, default=1, help="parallel runs")
    parser.add_argument("--output_dir", type=Path, default=Path("comparison"))
    options, rest = parser.parse_known_args(arguments)
    config, tuning = read(options.config)
    try:
        comparison = read_comparison(config, rest, seeds=options.seeds)
    except ValueError as error:
        print(f"comparison: error: {error}", file=sys.stderr)
        return 2
    last = comparison.first_seed + max(arm.seeds for arm in comparison.arms)
    if tuning["learning_rate"] and last > FIRST_SEED:
        parser.error(f"seeds from {FIRST_SEED} on are for tuning and cannot be reported")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    with locked(options.output_dir) as lock:
        return run(comparison, tuning, options.output_dir, options.jobs, lock, PlainConsole(soft_wrap=True))


if __name__ == "__main__":
    sys.exit(main())
