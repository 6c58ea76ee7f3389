"""`cepo compare`: train several methods on an equal budget, and compare them seed by seed."""

import argparse
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from ..compare.arms import CONFIG_KEYS, Comparison, read_comparison
from ..compare.jobs import locked, run_arms
from ..compare.report import print_arms, report
from ..data.yaml_files import read_yaml
from ..methods.registry import METHODS
from .options import SWITCH, make_command_parser, positive


def make_parser() -> argparse.ArgumentParser:
    parser = make_command_parser(
        "compare",
        "Train each arm with the same seeds, data, number of rollouts and evaluation problems, and compare the arms "
        "seed by seed. Further options are those of cepo train, for all arms.",
    )
    add = parser.add_argument_group("arms").add_argument
    add("--methods", help=f"comma-separated methods, an arm each: {', '.join(METHODS)}, or package.module:name")
    add("--config", type=Path, help=f"YAML file with {', '.join(sorted(CONFIG_KEYS))}; an arm has options and `seeds`")
    add("--seeds", type=positive, help="number of seeds of each arm (default: of the config, or 3)")
    add("--first_seed", type=int, help="the first seed (default: of the config, or 0)")
    add("--against", help="comma-separated arms to compare the others with, beside grpo")
    add = parser.add_argument_group("runs").add_argument
    add("--jobs", type=positive, default=1, help="runs at a time; they share the CPU cores")
    add("--output_dir", type=Path, default=Path("comparison"), help="a second call resumes; finished runs are kept")
    add("--dry_run", **SWITCH, help="validate all arms and print them, without running")
    return parser


def prepare(arguments: list[str]) -> Callable[[Console], int]:
    """Validate the arms and return the job that runs them."""
    options, flags = make_parser().parse_known_args(arguments)
    comparison = read_comparison(
        {} if options.config is None else read_yaml(options.config),
        flags,
        methods=options.methods,
        seeds=options.seeds,
        first_seed=options.first_seed,
        against=options.against,
    )
    if not options.dry_run:
        options.output_dir.mkdir(parents=True, exist_ok=True)
    return lambda console: _compare(comparison, options, console)


def _compare(comparison: Comparison, options: argparse.Namespace, console: Console) -> int:
    print_arms(comparison, console)
    folder = options.output_dir
    if options.dry_run:
        count = sum(arm.seeds for arm in comparison.arms)
        console.print(f"{count} runs in {folder}. Dry run: no run was started. Memory: cepo train --dry_run.")
        return 0
    with locked(folder) as lock:
        runs, failed = run_arms(comparison.arms, comparison.first_seed, folder, options.jobs, lock, console)
        report(folder, comparison, runs, failed, console)
    return 1 if failed else 0
