"""`cepo compare`: several methods at one budget, seed by seed, with intervals."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from rich.console import Console

from ..compare.arms import CONFIG_KEYS, Arm, Comparison, read_comparison, read_config
from ..compare.jobs import BusyError, Job, job_of, locked, run_all, stopped_by_signals
from ..compare.report import comparison_table, difference_lines, listing, write_report
from ..compare.statistics import Run, load_run
from ..data.escape import one_line
from ..methods.registry import METHODS
from .options import SWITCH, make_command_parser, positive

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
        help=f"YAML with {', '.join(sorted(CONFIG_KEYS))}; an arm has options and `seeds`",
    )
    add("--seeds", type=positive, default=None, help="seeds of each arm: 0, 1, ... (none: as the config says, or 3)")
    add("--first_seed", type=int, default=None, help="the first seed (none: 0)")
    add("--against", default=None, help="arms, with commas between, to compare with beside grpo")
    add = parser.add_argument_group("the run").add_argument
    add("--jobs", type=positive, default=1, help="runs at a time; they share the cores")
    add("--output_dir", type=Path, default=Path("comparison"), help="a second call with it goes on there")
    add("--dry_run", **SWITCH, help="check all arms and say what would be run; nothing is written")
    return parser


def prepare(arguments: list[str]) -> Callable[[Console], int]:
    """Read the arms; the returned function runs them and gives the exit status.

    Raises:
        ValueError, OSError: For mistakes in the options of any arm.
    """
    options, rest = make_parser().parse_known_args(arguments)
    comparison = read_comparison(
        read_config(options.config),
        rest,
        methods=options.methods,
        seeds=options.seeds,
        first_seed=options.first_seed,
        against=options.against,
    )
    say_notes(comparison)
    if options.dry_run:
        return lambda console: _say(comparison, options.output_dir, console)
    folder, jobs = options.output_dir, options.jobs
    return in_folder(folder, lambda lock, console: _compare(comparison, folder, jobs, lock, console))


def say_notes(comparison: Comparison) -> None:
    """Print the comparison's notes before anything runs."""
    for note in comparison.notes:
        print(f"cepo: {one_line(note)}", file=sys.stderr)


def in_folder(folder: Path, work: Callable[[TextIO, Console], int]) -> Callable[[Console], int]:
    """The work with the folder locked, stopped by signals; its exit status."""
    folder.mkdir(parents=True, exist_ok=True)

    def locked_work(console: Console) -> int:
        try:
            with locked(folder) as lock, stopped_by_signals():
                return work(lock, console)
        except BusyError as error:
            print(f"cepo: error: {one_line(str(error))}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\ncepo: stopped; the same command goes on with the runs that are missing", file=sys.stderr)
            return INTERRUPTED

    return locked_work


def _say(comparison: Comparison, folder: Path, console: Console) -> int:
    print_arms(comparison, console)
    console.print(
        f"{sum(arm.seeds for arm in comparison.arms)} runs would be made in {folder}. This is a dry run: nothing was "
        "started. For the memory of one run: cepo train --dry_run."
    )
    return 0


def _compare(comparison: Comparison, folder: Path, jobs: int, lock: TextIO, console: Console) -> int:
    print_arms(comparison, console)
    runs, failed = run_arms(comparison.arms, comparison.first_seed, folder, jobs, lock, console)
    rows, against, notes = write_report(folder, comparison, runs, failed)
    print_report(rows, against, notes, folder, console)
    return 1 if failed else 0


def run_arms(
    arms: Sequence[Arm], first_seed: int, folder: Path, jobs: int, lock: TextIO, console: Console
) -> tuple[dict[str, list[Run]], list[Job]]:
    """Run every arm with its seeds, seed by seed. Returns the finished runs of each arm, and the failed jobs."""
    work = [
        job_of(folder, arm.name, arm.options, first_seed + number)
        for number in range(max((arm.seeds for arm in arms), default=0))
        for arm in arms
        if number < arm.seeds
    ]
    run_all(work, jobs, lock, console)
    runs = {arm.name: [load_run(job.folder) for job in work if job.arm == arm.name and job.done] for arm in arms}
    return runs, [job for job in work if not job.done]


def print_arms(comparison: Comparison, console: Console) -> None:
    """Print the options of all arms, of each arm, and those in which arms differ."""
    console.print(f"all arms: {listing(comparison.base)}")
    for arm in comparison.arms:
        own = {name: value for name, value in arm.options.items() if comparison.base.get(name) != value}
        console.print(f"{arm.name}: {listing(own) or 'no options of its own'}")
    for line in difference_lines(comparison):
        console.print(line)


def print_report(rows, against, notes: Sequence[str], folder: Path, console: Console) -> None:
    """Print what `write_report` returned."""
    said = "".join(f"- {note}\n" for note in notes)
    if not rows:
        console.print(f"No run finished.\n{said}")
        return
    console.print(comparison_table(rows, against), soft_wrap=False)
    console.print(said)
    console.print(f"compare.json, compare.md and compare.png are in {folder}")
