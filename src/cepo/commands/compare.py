"""`cepo compare`: several methods at one budget, seed by seed, with intervals."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from ..compare.arms import (
    CONFIG_KEYS,
    Arm,
    Differences,
    check_arms,
    grouped,
    read_against,
    read_arms,
    read_config,
    read_tuning,
)
from ..compare.jobs import BusyError, Job, job_of, locked, run_all, stopped_by_signals
from ..compare.report import comparison_table, draw_comparison
from ..compare.statistics import (
    MEASURES,
    REFERENCE,
    TEMPERED,
    Run,
    against_table,
    ahead_of,
    differences_to,
    load_run,
    mean_curves,
    measure_names,
    summarise,
    table,
)
from ..compare.tempered import tempered_runs
from ..compare.tuning import Tried, Tuning, rate_note, tune
from ..data.escape import one_line
from ..data.files import write_whole
from ..methods.registry import METHODS
from . import quiet_libraries
from .options import SWITCH, make_command_parser, not_negative, positive

INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it


def make_parser() -> argparse.ArgumentParser:
    parser = make_command_parser(
        "compare",
        "Train each method with the same seeds, data, rollouts and evaluation problems, and compare them seed by seed. "
        "Further options are those of cepo train, for all arms.",
    )
    add = parser.add_argument_group("arms").add_argument
    add(
        "--methods",
        default=None,
        help=f"arms by method, with commas between: {', '.join(METHODS)}, or package.module:name; base (untrained) "
        "is added",
    )
    add(
        "--config",
        type=Path,
        default=None,
        help=f"YAML with {', '.join(sorted(CONFIG_KEYS))}; an arm has options and `seeds`. Or a compare.json: its arms "
        "again, with the learning rates chosen there",
    )
    add("--seeds", type=positive, default=None, help="seeds of each arm: 0, 1, ... (none: as the config says, or 3)")
    add(
        "--first_seed",
        type=int,
        default=None,
        help="the first of them, for trials whose seeds are not to be reported (none: 0)",
    )
    add(
        "--against",
        default=None,
        help="arms, with commas between, that all others are held against too, beside grpo (none: as the config says)",
    )
    add = parser.add_argument_group("learning rates").add_argument
    add("--tune_learning_rate", default=None, help="to choose from, for each arm: 1e-4,3e-4,1e-3 (none: as given)")
    add("--tune_seeds", type=positive, default=None, help="seeds on which they are chosen, not reported (none: 2)")
    add(
        "--tune_beyond",
        type=not_negative,
        default=None,
        help="how often an arm whose best rate is the lowest or highest tried gets a further one (none: 0)",
    )
    add = parser.add_argument_group("the run").add_argument
    add("--jobs", type=positive, default=None, help="runs at a time (none: one for each core, as memory allows)")
    add("--output_dir", type=Path, default=Path("comparison"), help="a second call with it goes on there")
    add("--dry_run", **SWITCH, help="check all arms and say what would be run; nothing is written")
    return parser


@dataclass(frozen=True)
class Plan:
    """What is to be run, as the user asked for it.

    Attributes:
        folder: Where.
        base: Options that all arms begin with.
        arms: The arms.
        first_seed: The first seed that is reported.
        tuning: Of learning rates.
        jobs: Runs at a time; None: one for each core.
        differences: In what the arms differ.
        notes: What a reader of the results should know.
        against: Arms that all others are held against, beside GRPO.
    """

    folder: Path
    base: dict[str, Any]
    arms: list[Arm]
    first_seed: int
    tuning: Tuning
    jobs: int | None
    differences: Differences
    notes: list[str]
    against: list[str]


def prepare(arguments: list[str]) -> Callable[[Console], int]:
    """Read the arms; what is returned runs them and gives the exit status.

    Raises:
        ValueError, OSError: For mistakes in the options of any arm.
    """
    options, rest = make_parser().parse_known_args(arguments)
    config = read_config(options.config)
    base, arms = read_arms(options, config, rest)
    tuning = read_tuning(options, config)
    against = read_against(options.against, config, arms)
    first_seed = config.get("first_seed", 0) if options.first_seed is None else options.first_seed
    if not isinstance(first_seed, int):
        raise ValueError(f"first_seed must be a number, not {first_seed!r}")
    reported = range(first_seed, first_seed + max(arm.seeds for arm in arms))
    others = tuning.seed_numbers
    if tuning.rates and set(reported) & set(others):
        raise ValueError(
            f"seeds {others.start} to {others.stop - 1} choose learning rates and cannot be "
            "reported too; give another --first_seed or fewer --seeds"
        )
    differences, notes = check_arms(arms)
    for note in notes:
        print(f"cepo: {one_line(note)}", file=sys.stderr)
    plan = Plan(options.output_dir, base, arms, first_seed, tuning, options.jobs, differences, notes, against)
    if options.dry_run:
        return lambda console: _say(plan, console)
    plan.folder.mkdir(parents=True, exist_ok=True)

    def compare(console: Console) -> int:
        try:
            with locked(plan.folder) as lock, stopped_by_signals():
                return _compare(plan, lock, console)
        except BusyError as error:
            print(f"cepo: error: {one_line(str(error))}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\ncepo: stopped; the same command goes on, with the runs that were not done", file=sys.stderr)
            return INTERRUPTED

    return compare


def _say(plan: Plan, console: Console) -> int:
    """What would be run."""
    _print_differences(plan, console)
    reported = sum(arm.seeds for arm in plan.arms)
    trials = len(plan.arms) * len(plan.tuning.rates) * plan.tuning.seeds
    more = ", more for an arm whose best is an outermost one," if plan.tuning.beyond else ""
    tuning = f"{trials} runs to choose learning rates{more} and " if trials else ""
    console.print(
        f"{tuning}{reported} runs would be made in {plan.folder}. Nothing was started: this is a dry run. What one run "
        "takes says cepo train --dry_run.",
        highlight=False,
        markup=False,
    )
    return 0


def _compare(plan: Plan, lock: TextIO, console: Console) -> int:
    _print_differences(plan, console)
    tried: dict[str, Tried] = {}
    arms = plan.arms
    if plan.tuning.rates:
        options = {arm.name: arm.options for arm in plan.arms}
        tried = tune(options, plan.tuning, plan.folder / "tuning", plan.jobs, lock, console)
        best = {name: found.best for name, found in tried.items() if found.best is not None}
        arms = [
            replace(arm, options={**arm.options, "learning_rate": best[arm.name]}) for arm in arms if arm.name in best
        ]
    # Seed by seed, so that arms can be compared from the first ones on.
    work = [
        job_of(plan.folder, arm.name, arm.options, plan.first_seed + number)
        for number in range(max((arm.seeds for arm in arms), default=0))
        for arm in arms
        if number < arm.seeds
    ]
    run_all(work, plan.jobs, lock, console)
    trials = [job for found in tried.values() for jobs in found.jobs.values() for job in jobs]
    failed = [job for job in (*trials, *work) if not job.done]
    runs = {arm.name: [load_run(job.folder) for job in work if job.arm == arm.name and job.done] for arm in arms}
    note = _add_tempered(plan, arms, runs, console)
    _report(plan, arms, runs, tried, failed, note, console)
    return 1 if failed else 0


def _add_tempered(plan: Plan, arms: list[Arm], runs: dict[str, list[Run]], console: Console) -> list[str]:
    """The untrained policy as sharp as the trained GRPO, beside the arms; what is to be said of it."""
    options = next((arm.options for arm in arms if arm.name == REFERENCE), None)
    if options is None or not runs.get(REFERENCE):
        return []
    quiet_libraries()
    with console.status(TEMPERED) as status:
        found = tempered_runs(runs[REFERENCE], options, plan.folder, status.update)
    if found is None:
        return ["No arm tempered: GRPO's entropy was not measured in all of its runs (eval_samples)."]
    runs[TEMPERED], note = found
    ahead = differences_to(runs[TEMPERED], _without(runs, TEMPERED))
    return [note, ahead_of(TEMPERED, "Sampled accuracy", ahead)]


# Reporting ------------------------------------------------------------------------------------------------------------


def _listing(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())


def _print_differences(plan: Plan, console: Console) -> None:
    console.print(f"all arms: {_listing(plan.base)}", highlight=False, markup=False)
    for arm in plan.arms:
        own = {name: value for name, value in arm.options.items() if plan.base.get(name) != value}
        console.print(f"{arm.name}: {_listing(own) or 'nothing of its own'}", highlight=False, markup=False)
    for line in _differing(plan):
        console.print(line, highlight=False, markup=False)


def _differing(plan: Plan) -> list[str]:
    """A line for each option in which the arms differ, what their methods imply included."""
    lines = [f"- {option}: {grouped(values)}" for option, values in plan.differences.items()]
    return ["Options in which the arms differ:", *lines] if lines else []


def _report(
    plan: Plan,
    arms: list[Arm],
    runs: dict[str, list[Run]],
    tried: dict[str, Tried],
    failed: list[Job],
    of_tempered: list[str],
    console: Console,
) -> None:
    rows = summarise(runs)
    folder = plan.folder
    measures = measure_names(rows)
    ahead = {
        name: {measure: differences_to(runs[name], _without(runs, name), measure) for measure in measures}
        for name in plan.against
        if runs.get(name)
    }
    notes = plan.notes + of_tempered + [rate_note(name, found) for name, found in tried.items()]
    notes += [f"{job.arm}, seed {job.seed}, failed: {job.failure}" for job in failed]
    versions = _versions(runs)
    if len(versions) > 1:
        notes.append(f"The runs were made with different versions: {'; '.join(map(_listing, versions))}.")
    notes += _skipping_note(plan.differences) + _oracle_note(rows)
    result = {
        "arms": rows,
        "options": {arm.name: arm.options for arm in arms},
        "against": ahead,
        "differences": plan.differences,
        "tuning": {name: found.scores for name, found in tried.items()},
        "failed": [{"arm": job.arm, "seed": job.seed, "reason": job.failure} for job in failed],
        "notes": notes,
        "runs": {
            name: [
                {
                    "seed": run.seed,
                    "accuracy": run.accuracy,
                    "seconds": run.seconds,
                    "before": run.before and vars(run.before),
                    "after": run.after and vars(run.after),
                }
                for run in found
            ]
            for name, found in runs.items()
        },
        "curves": {name: mean_curves(found) for name, found in runs.items()},
        "versions": versions,
    }
    write_whole(folder / "compare.json", json.dumps(result, indent=1, default=str) + "\n")
    said = "".join(f"- {note}\n" for note in notes)
    differing = "".join(f"{line}\n" for line in ["", *_differing(plan)])
    beside = "".join(f"{against_table(name, found, measures)}\n" for name, found in ahead.items())
    write_whole(folder / "compare.md", f"{table(rows)}\n{beside}{said}{differing}")
    if not rows:
        console.print(f"No run went through.\n{said}", highlight=False, markup=False)
        return
    draw_comparison(runs, rows, folder / "compare.png")
    console.print(comparison_table(rows), soft_wrap=False)
    for name, found in ahead.items():
        said += f"- {ahead_of(name, 'Final greedy accuracy', found[MEASURES[0]])}\n"
    console.print(said, highlight=False, markup=False)
    console.print(f"compare.json, compare.md and compare.png are in {folder}", highlight=False)


def _without(runs: Mapping[str, Sequence[Run]], name: str) -> dict[str, Sequence[Run]]:
    return {arm: its for arm, its in runs.items() if arm != name}


def _versions(runs: Mapping[str, Sequence[Run]]) -> list[dict[str, str]]:
    """Of the libraries that the runs were made with, each set once."""
    found: list[dict[str, str]] = []
    for run in (run for of_arm in runs.values() for run in of_arm):
        if run.versions and run.versions not in found:
            found.append(run.versions)
    return found


def _skipping_note(differences: Differences) -> list[str]:
    skips = differences.get("skip_zero_advantage")
    if not skips:
        return []
    return [
        f"Rollouts without advantage are left out of the update in some arms ({grouped(skips)}): there entropy over "
        "training is that of the others, and the update takes less time."
    ]


def _oracle_note(rows: list[dict[str, Any]]) -> list[str]:
    difference = next((row["paired_difference_to_grpo"] for row in rows if row["name"] == "oracle"), None)
    if not difference:
        return []
    level = [measure for measure in MEASURES if difference[measure]["low"] is None or difference[measure]["low"] <= 0]
    if not level:
        return []
    return [
        f"Oracle credit is not clearly ahead of GRPO in {' and '.join(level)} accuracy: whether better credit would "
        "help there, this comparison cannot tell."
    ]
