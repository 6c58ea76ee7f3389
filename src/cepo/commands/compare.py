"""`cepo compare`: several methods at one budget, seed by seed, with intervals."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import yaml
from rich.console import Console
from rich.markdown import Markdown

from ..checks import check_dataset
from ..comparison import BASE, MEASURES, REFERENCE, Run, load_run, summarise, table
from ..methods import METHODS
from .jobs import BusyError, Job, command_line, job_of, locked, run_all, stopped_by_signals
from .options import make_command_parser, not_negative, positive
from .report import draw_comparison
from .tuning import Tried, Tuning, parse_rates, rate_note, tune

INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it

# What every arm gets unless the user says otherwise.
_BASE: dict[str, Any] = {"accuracy_every": 7, "eval_problems": 400, "save_strategy": "no", "log_completions": False}
_SEEDS = 3
# Names of the untrained policy's row, and of the folder of trials.
_TAKEN = (BASE, "tuning")
_CONFIG_KEYS = {"base", "arms", "seeds", "tune_learning_rate", "tune_seeds", "tune_beyond"}


def make_parser() -> argparse.ArgumentParser:
    parser = make_command_parser(
        "compare",
        "Train each method with the same seeds, data, rollouts and evaluation problems, and compare them seed by seed. "
        "Further options are those of cepo train, for all arms.",
    )
    add = parser.add_argument
    add("--methods", default=None, help="arms by method: grpo,rlsd,cepo,opsd,sdpo,oracle")
    add(
        "--config",
        type=Path,
        default=None,
        help=f"YAML with {', '.join(sorted(_CONFIG_KEYS))}; an arm has options and `seeds`",
    )
    add("--seeds", type=positive, default=None, help="seeds of each arm: 0, 1, ... (none: as the config says, or 3)")
    add("--first_seed", type=int, default=0, help="the first of them, for trials whose seeds are not to be reported")
    add("--tune_learning_rate", default=None, help="learning rates to choose from, for each arm: 1e-4,3e-4,1e-3")
    add("--tune_seeds", type=positive, default=None, help="seeds on which they are chosen, not reported (none: 2)")
    add(
        "--tune_beyond",
        type=not_negative,
        default=None,
        help="how often an arm whose best rate is the lowest or highest tried gets a further one (none: 0)",
    )
    add("--jobs", type=positive, default=None, help="runs at a time (none: one for each core, as memory allows)")
    add("--output_dir", type=Path, default=Path("comparison"), help="a second call with it goes on there")
    return parser


@dataclass(frozen=True)
class Arm:
    """One way to train: options of `cepo train`, and how many seeds."""

    name: str
    options: dict[str, Any]
    seeds: int


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    Attributes:
        folder: Where.
        base: Options that all arms begin with.
        arms: The arms.
        first_seed: The first seed that is reported.
        tuning: Of learning rates.
        jobs: Runs at a time; None: one for each core.
    """

    folder: Path
    base: dict[str, Any]
    arms: list[Arm]
    first_seed: int
    tuning: Tuning
    jobs: int | None


def prepare(arguments: list[str]) -> Callable[[Console], int]:
    """Read the arms; what is returned runs them and gives the exit status.

    Raises:
        ValueError, OSError: For mistakes in the options of any arm.
    """
    options, rest = make_parser().parse_known_args(arguments)
    config = _read_config(options.config)
    base, arms = _arms(options, config, rest)
    plan = Plan(
        options.output_dir,
        base,
        arms,
        options.first_seed,
        _tuning(options, config),
        options.jobs,
    )
    reported = range(plan.first_seed, plan.first_seed + max(arm.seeds for arm in arms))
    others = plan.tuning.seed_numbers
    if plan.tuning.rates and set(reported) & set(others):
        raise ValueError(
            f"seeds {others.start} to {others.stop - 1} choose learning rates and cannot be "
            "reported too; give another --first_seed or fewer --seeds"
        )
    _check(arms)

    def compare(console: Console) -> int:
        plan.folder.mkdir(parents=True, exist_ok=True)
        try:
            with locked(plan.folder) as lock, stopped_by_signals():
                return _compare(plan, lock, console)
        except BusyError as error:
            print(f"cepo: error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\ncepo: stopped; the same command goes on, with the runs that were not done", file=sys.stderr)
            return INTERRUPTED

    return compare


def _read_config(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    if not path.is_file():
        raise ValueError(f"--config: there is no such file: {path}")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"--config: {path} is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(config, dict) or set(config) - _CONFIG_KEYS:
        raise ValueError(
            f"--config: {path} must hold {', '.join(sorted(_CONFIG_KEYS))}, or some of them, and nothing else"
        )
    base, arms = config.get("base") or {}, config.get("arms") or {}
    if not isinstance(base, dict) or not isinstance(arms, dict):
        raise ValueError(f"--config: in {path}, `base` must hold options, and `arms` names with options below each")
    for name, own in arms.items():
        if not isinstance(own or {}, dict):
            raise ValueError(f"--config: in {path}, arm {name} must hold options as `name: value` lines, not {own!r}")
    return config


def _arms(options: argparse.Namespace, config: dict[str, Any], rest: list[str]) -> tuple[dict[str, Any], list[Arm]]:
    base = {**_BASE, **(config.get("base") or {}), **_flags(rest)}
    named = {str(name): dict(own or {}) for name, own in (config.get("arms") or {}).items()}
    for method in [part.strip() for part in options.methods.split(",")] if options.methods else []:
        if method not in METHODS:
            raise ValueError(f"methods: unknown {method!r}; choose of {', '.join(METHODS)}")
        named.setdefault(method, {"method": method})
    if not named:
        raise ValueError("which arms? Give --methods grpo,cepo or a --config with `arms`")
    seeds = options.seeds or config.get("seeds", _SEEDS)
    arms = []
    for name, own in named.items():
        if name in _TAKEN or Path(name).name != name:
            raise ValueError(
                f"arm {name!r}: choose another name, that can be a folder's and is not {' or '.join(_TAKEN)}"
            )
        count = options.seeds or own.pop("seeds", seeds)
        own.pop("seeds", None)
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"arm {name}: seeds must be a number from 1 on, not {count!r}")
        arms.append(Arm(name, {**base, **own}, count))
    return base, arms


def _flags(rest: list[str]) -> dict[str, Any]:
    """`--name value`, `--name=value`, `--name value value` and `--name` as a dictionary."""
    found: dict[str, Any] = {}
    words = iter([part for word in rest for part in (word.split("=", 1) if word.startswith("--") else [word])])
    name: str | None = None
    for word in words:
        if word.startswith("--"):
            name = word[2:]
            found[name] = True
        elif name is None:
            raise ValueError(f"unexpected {word!r}; options of cepo train take the form --name value")
        elif found[name] is True:
            found[name] = word
        else:
            found[name] = [*(found[name] if isinstance(found[name], list) else [found[name]]), word]
    return found


def _tuning(options: argparse.Namespace, config: dict[str, Any]) -> Tuning:
    given = {name: getattr(options, f"tune_{name}") for name in ("seeds", "beyond")}
    counts = {name: config.get(f"tune_{name}") if count is None else count for name, count in given.items()}
    for name, count in counts.items():
        if count is not None and (not isinstance(count, int) or count < (name == "seeds")):
            raise ValueError(f"tune_{name} must be a number{' from 1 on' if name == 'seeds' else ''}, not {count!r}")
    rates = parse_rates(options.tune_learning_rate or config.get("tune_learning_rate"))
    return Tuning(rates, **{name: count for name, count in counts.items() if count is not None})


def _check(arms: list[Arm]) -> None:
    """Refuse now what a run would refuse in an hour."""
    from .train import check_sources, parse

    parsed = {}
    for arm in arms:
        for own in ("seed", "output_dir"):
            if own in arm.options:
                raise ValueError(f"arm {arm.name}: {own} is chosen for each run; leave it out")
        with _named(arm):
            parsed[arm.name] = parse(command_line({**arm.options, "output_dir": "unused"}))
    seen = []
    for arm in arms:
        script_args, training_args, model_args = parsed[arm.name]
        needs = METHODS[training_args.method].needs_teachers
        if (script_args, model_args, needs) in seen:
            continue
        seen.append((script_args, model_args, needs))
        with _named(arm):
            *_, train_dataset, held_out = check_sources(script_args, training_args, model_args)
            if held_out is None:
                raise ValueError(
                    f"no held-out problems to compare on (eval_problems={script_args.eval_problems}, "
                    f"dataset_test_split={script_args.dataset_test_split!r} of {script_args.dataset_name}); give a "
                    "folder or a dataset on the Hub with that split, and at least one problem"
                )
            if needs:
                check_dataset(train_dataset, needs_solution=True)
    if not any(arm.name == REFERENCE for arm in arms):
        print(f"cepo: there is no arm {REFERENCE!r}, so that no differences to it will be given", file=sys.stderr)


@contextmanager
def _named(arm: Arm) -> Iterator[None]:
    """Says in which arm a mistake is."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise ValueError(f"arm {arm.name}: {error}") from error


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
    _report(plan.folder, arms, runs, tried, failed, console)
    return 1 if failed else 0


# Reporting ------------------------------------------------------------------------------------------------------------


def _listing(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())


def _print_differences(plan: Plan, console: Console) -> None:
    console.print(f"all arms: {_listing(plan.base)}", highlight=False, markup=False)
    for arm in plan.arms:
        own = {name: value for name, value in arm.options.items() if plan.base.get(name) != value}
        implied = {k: v for k, v in METHODS[arm.options.get("method", "cepo")].defaults.items() if k not in own}
        by_method = f"; by its method {_listing(implied)}" if implied else ""
        console.print(f"{arm.name}: {_listing(own) or 'nothing of its own'}{by_method}", highlight=False, markup=False)


def _report(
    folder: Path,
    arms: list[Arm],
    runs: dict[str, list[Run]],
    tried: dict[str, Tried],
    failed: list[Job],
    console: Console,
) -> None:
    rows = summarise(runs)
    notes = [rate_note(name, found) for name, found in tried.items()]
    notes += [f"{job.arm}, seed {job.seed}, failed: {job.failure}" for job in failed]
    notes += _oracle_note(rows)
    result = {
        "arms": rows,
        "options": {arm.name: arm.options for arm in arms},
        "tuning": {name: found.scores for name, found in tried.items()},
        "failed": [{"arm": job.arm, "seed": job.seed, "reason": job.failure} for job in failed],
        "notes": notes,
        "runs": {
            name: [{"seed": run.seed, "accuracy": run.accuracy, "seconds": run.seconds} for run in found]
            for name, found in runs.items()
        },
        "versions": {name: version(name) for name in ("cepo", "trl", "transformers", "torch")},
    }
    (folder / "compare.json").write_text(json.dumps(result, indent=1, default=str) + "\n")
    text = table(rows) + "\n" + "".join(f"- {note}\n" for note in notes)
    (folder / "compare.md").write_text(text)
    if any(runs.values()):
        draw_comparison(runs, rows, folder / "compare.png")
    console.print(Markdown(text))
    console.print(f"compare.json, compare.md and compare.png are in {folder}", highlight=False)


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
