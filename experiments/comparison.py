"""The pre-registered comparisons: `cepo compare` with tuned learning rates and the arm `tempered`.

    python -m experiments.comparison --config experiments/comparison.yaml --output_dir comparison --jobs 2
    python -m experiments.comparison --config experiments/comparison.json --seeds 2 --output_dir again --jobs 2

The YAML file has, beside the keys of `cepo compare`, `tune_learning_rate` (a list), `tune_seeds` and `tune_beyond`. A
compare.json gives the same arms again, with the learning rates chosen there. A second call goes on where it stopped.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from cepo.commands import quiet_libraries
from cepo.commands.compare import in_folder, print_arms, print_report, run_arms, say_notes
from cepo.compare.arms import Comparison, read_comparison, read_config
from cepo.compare.report import write_report
from cepo.compare.statistics import REFERENCE, paired_differences, percent
from cepo.inspection.console import PlainConsole
from cepo.methods.registry import applicable_options

from .tempered import TEMPERED, tempered_runs
from .tuning import FIRST_SEED, Tried, tune


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration of `cepo compare`, and what is tuned: `learning_rate`, `seeds` and `beyond`."""
    config = again(json.loads(path.read_text(encoding="utf-8"))) if path.suffix == ".json" else read_config(path)
    defaults = {"learning_rate": [], "seeds": 2, "beyond": 0}
    return config, {name: config.pop(f"tune_{name}", default) for name, default in defaults.items()}


def again(result: dict[str, Any]) -> dict[str, Any]:
    """The arms and seeds of a compare.json, with their learning rates."""
    arms = {}
    first = []
    for name, own in result["options"].items():
        seeds = [
            run["seed"] for run in (*result["runs"].get(name, []), *result["failed"]) if run.get("arm", name) == name
        ]
        first += seeds
        arms[name] = {**applicable_options(own, own["method"]), "seeds": len(seeds)}
    return {"arms": arms, "first_seed": min(first, default=0), "against": list(result["against"])}


def run(comparison: Comparison, tuning: dict[str, Any], folder: Path, jobs: int, lock: TextIO, console: Console) -> int:
    """Tune, run, add the arm `tempered`, and report. Returns the exit status."""
    print_arms(comparison, console)
    tried: dict[str, Tried] = {}
    if tuning["learning_rate"]:
        options = {arm.name: arm.options for arm in comparison.arms}
        rates, seeds, beyond = tuning["learning_rate"], tuning["seeds"], tuning["beyond"]
        tried = tune(options, rates, seeds, beyond, folder / "tuning", jobs, lock, console)
        best = {name: found.best for name, found in tried.items() if found.best is not None}
        arms = [
            replace(arm, options={**arm.options, "learning_rate": best[arm.name]})
            for arm in comparison.arms
            if arm.name in best
        ]
        comparison = replace(comparison, arms=arms)
    runs, failed = run_arms(comparison.arms, comparison.first_seed, folder, jobs, lock, console)
    failed = [*(job for t in tried.values() for of in t.jobs.values() for job in of if not job.done), *failed]
    notes = [found.note(name) for name, found in tried.items()]
    reference = next((arm.options for arm in comparison.arms if arm.name == REFERENCE), None)
    if reference is not None and runs[REFERENCE]:
        quiet_libraries()
        with console.status(TEMPERED) as status:
            found = tempered_runs(runs[REFERENCE], reference, folder, status.update)
        if found is not None:
            runs[TEMPERED], note = found
            ahead = {name: paired_differences(own, runs[TEMPERED]) for name, own in runs.items() if name != TEMPERED}
            listed = "; ".join(f"{name} {percent(one['sampled'], signed=True)}" for name, one in ahead.items() if one)
            notes += [note, f"Sampled accuracy, points ahead of {TEMPERED}, paired by seed: {listed}."]
    scores = {name: found.scores for name, found in tried.items()}
    rows, against, notes = write_report(folder, comparison, runs, failed, notes=notes, tuning=scores)
    print_report(rows, against, notes, folder, console)
    return 1 if failed else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=None, help="of each arm (none: as the file says)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
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
        parser.error(f"seeds from {FIRST_SEED} on choose learning rates and cannot be reported")
    say_notes(comparison)
    job = in_folder(
        options.output_dir,
        lambda lock, console: run(comparison, tuning, options.output_dir, options.jobs, lock, console),
    )
    return job(PlainConsole(soft_wrap=True))


if __name__ == "__main__":
    sys.exit(main())
