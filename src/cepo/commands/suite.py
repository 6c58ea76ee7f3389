"""`cepo evaluate --suite paper`: the paper's five benchmarks, by lmms-eval as a process of its own."""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..compare.jobs import BusyError, locked, stopped_by_signals
from ..data.adapters import holds_adapters
from ..data.errors import LoadingError
from ..data.escape import escape, one_line
from ..data.files import write_whole
from ..data.merging import merge_adapters
from ..data.models import resolve_model
from ..inspection.tables import markdown_table, plain_table
from . import benchmarks, quiet_libraries
from .benchmarks import BENCHMARKS, PAPER, Benchmark, Score, SuiteError
from .options import make_command_parser, not_negative, positive, temperature

SUITES = ("paper",)
ABOUT = "paper: its five benchmarks, by lmms-eval, with options of their own: cepo evaluate --suite paper --help"
_HEADS = ("benchmark", "problems", "right, %", "95 % interval")


def make_parser() -> argparse.ArgumentParser:
    parser = make_command_parser(
        "evaluate --suite paper",
        "The paper's five benchmarks by lmms-eval: dynamath, logicvista, mathvision (testmini), mmmu (val), wemath "
        "(testmini). One that has been run with the same settings is not run again.",
    )
    add = parser.add_argument_group("suite").add_argument
    add("--suite", choices=SUITES, required=True, help="which benchmarks; paper: the paper's five")
    add("--tasks", help="some of them, with commas between; NAME=TASK runs a task of --include_path instead")
    add("--include_path", help="folder of further tasks of lmms-eval")
    add("--limit", type=positive, help="only the first problems of each (none: all)")
    add = parser.add_argument_group("model").add_argument
    add("--model_name_or_path", required=True, help="folder or name of a model, or of PEFT adapters: merged first")
    text = "transformers drops the presence penalty, and so needs it 0"
    add("--backend", choices=("vllm", "transformers"), default="vllm", help=text)
    add("--model_args", help="more for lmms-eval's model, such as tensor_parallel_size=4,max_model_len=40960")
    add("--device", help="for the transformers backend (none: cuda if there is one, else cpu)")
    add("--batch_size", type=positive, help="problems at a time (none: 256 with vllm, 1 with transformers)")
    add("--python", help="interpreter of an environment that has lmms-eval (none: this one)")
    add = parser.add_argument_group("sampling (the defaults are the paper's)").add_argument
    add("--temperature", type=temperature, default=1.0, help="0 takes the most likely token")
    add("--top_p", type=float, default=1.0, help="share of the probability from which a token is drawn")
    add("--top_k", type=positive, default=40, help="number of tokens from which one is drawn")
    add("--presence_penalty", type=float, default=2.0, help="what a token loses once it has been said")
    add("--max_new_tokens", type=positive, default=32000, help="longest answer, in tokens")
    add("--seed", type=not_negative, default=0, help="of sampling")
    add = parser.add_argument_group("output").add_argument
    add("--output_dir", type=Path, default=Path("suite"), help="suite.md, suite.json, and a folder for each benchmark")
    return parser


def prepare(arguments: list[str]) -> Callable[[Console], int]:
    """Check the command line; the returned function runs the benchmarks and returns the exit status.

    Raises:
        ValueError, OSError: For mistakes in options or model, and for packages that are not installed.
    """
    options = make_parser().parse_args(arguments)
    quiet_libraries()
    chosen = benchmarks.select_benchmarks(options.tasks)
    if options.include_path is not None and not Path(options.include_path).is_dir():
        raise SuiteError(f"--include_path: there is no such folder: {options.include_path}")
    options.model_name_or_path = resolve_model(options.model_name_or_path)
    if set(",=") & set(options.model_name_or_path):
        raise SuiteError(f"lmms-eval cannot read a name with a comma or an equals sign: {options.model_name_or_path}")
    if options.backend == "transformers" and options.presence_penalty:
        raise SuiteError(
            f"--backend transformers would drop --presence_penalty {options.presence_penalty:g} without a word; take "
            "--backend vllm, or say --presence_penalty 0, which is not the paper's setting"
        )
    options.python = options.python or sys.executable
    benchmarks.check_installed(options.python, options.backend)
    options.batch_size = options.batch_size or (256 if options.backend == "vllm" else 1)
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = {name: _settings(benchmark, options) for name, benchmark in chosen.items()}
    waiting = [name for name in chosen if not _is_done(options.output_dir / name, settings[name])]
    options.output_dir.mkdir(parents=True, exist_ok=True)

    def job(console: Console) -> int:
        try:
            with locked(options.output_dir), stopped_by_signals():
                return _run(chosen, settings, waiting, options, console)
        except (BusyError, LoadingError) as error:  # the folder is taken, or the adapters' model is not there
            print(f"cepo: error: {one_line(str(error))}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\ncepo: stopped; the same command goes on with the benchmarks that were not done", file=sys.stderr)
            return 130

    return job


def _settings(benchmark: Benchmark, options: argparse.Namespace) -> dict[str, Any]:
    """What decides a benchmark's numbers: lmms-eval's options, and name, size and time of the model's files."""
    given = benchmarks.lmms_eval_options(benchmark.task, {**vars(options), "batch_size": None, "device": None})
    folder = Path(options.model_name_or_path)
    paths = [path for name in ("*.safetensors", "*.bin", "*config.json") for path in folder.glob(name)]
    files = sorted([path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths)
    return {**{name.removeprefix("--"): value for name, value in given.items()}, "files": files}


def _is_done(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a benchmark has been run with these settings; SuiteError if it has been run with others."""
    known = folder / "settings.json"
    if benchmarks.results_file(folder) is None or not known.is_file():
        return False
    before = json.loads(known.read_text(encoding="utf-8"))
    differ = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
    if differ:
        raise SuiteError(
            f"{folder} holds results with other settings ({', '.join(differ)}); name another --output_dir, or remove it"
        )
    return True


def _run(
    chosen: dict[str, Benchmark],
    settings: dict[str, dict[str, Any]],
    waiting: list[str],
    options: argparse.Namespace,
    console: Console,
) -> int:
    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    given, output, merged = dict(vars(options)), options.output_dir, options.output_dir / "merged"
    if waiting and holds_adapters(options.model_name_or_path):
        shutil.rmtree(merged, ignore_errors=True)  # perhaps of these adapters before they were trained again
        base = merge_adapters(options.model_name_or_path, merged).base
        say(f"merged {options.model_name_or_path} into {base}, in {merged}")
        given["model_name_or_path"] = str(merged)
    scores: list[Score] = []
    failed: list[str] = []
    for name, benchmark in chosen.items():
        folder = output / name
        try:
            if name in waiting:
                say(f"{name}: lmms-eval runs {benchmark.task}; its log is {folder / 'log.txt'}")
                folder.mkdir(parents=True, exist_ok=True)
                write_whole(folder / "settings.json", json.dumps(settings[name], indent=2) + "\n")
                command = benchmarks.lmms_eval_options(benchmark.task, given)
                benchmarks.run_lmms_eval(options.python, command, folder)
            else:
                say(f"{name}: has been run with these settings")
            scores.append(benchmarks.read_score(name, benchmark, folder))
        except SuiteError as error:
            failed.append(name)
            print(f"cepo: error: {name}: {one_line(str(error))}", file=sys.stderr)
    _report(scores, failed, settings, options, console)
    say(f"written to {output / 'suite.md'} and {output / 'suite.json'}")
    if failed:
        print(f"cepo: error: {', '.join(failed)}: no results; the same command tries again", file=sys.stderr)
    return 1 if failed else 0


def _report(
    scores: list[Score],
    failed: list[str],
    settings: dict[str, dict[str, Any]],
    options: argparse.Namespace,
    console: Console,
) -> None:
    """One table, to suite.json, suite.md and the console."""
    rows = [(one.name, str(one.problems), *_percent(one.value, one.low, one.high)) for one in scores]
    average = benchmarks.average_of(scores) if len(scores) == len(BENCHMARKS) else None
    if average is not None:
        rows.append(("average of 5", str(sum(one.problems for one in scores)), *_percent(*average)))
    notes = [
        f"{options.backend};{f' the first {options.limit} problems of each;' if options.limit else ''} temperature "
        f"{options.temperature:g}, top-p {options.top_p:g}, top-k {options.top_k}, presence penalty "
        f"{options.presence_penalty:g}, up to {options.max_new_tokens:,} tokens, seed {options.seed}."
    ]
    own = [name for name in settings if settings[name]["tasks"] != BENCHMARKS[name].task]
    notes += [f"Not the stock tasks: {', '.join(own)}."] if own else []
    notes += [f"{one.name}, {other}: {value}." for one in scores for other, value in one.others.items()]
    missing = [name for name in BENCHMARKS if name not in {one.name for one in scores}]
    notes += [f"No average of five: {', '.join(missing)} not run{' or failed' if failed else ''}."] if missing else []
    notes += [
        f"The paper, {size}: {', '.join(f'{n} {x:.2f}' for n, x in found.items())}." for size, found in PAPER.items()
    ]
    result = {
        "model": options.model_name_or_path,
        "settings": settings,
        "benchmarks": [asdict(one) for one in scores],
        "average": average and dict(zip(("value", "low", "high"), average, strict=True)),
        "failed": failed,
        "paper": PAPER,
    }
    write_whole(options.output_dir / "suite.json", json.dumps(result, indent=2) + "\n")
    page = [f"Share of right answers of {options.model_name_or_path}.\n", markdown_table(_HEADS, rows)]
    write_whole(options.output_dir / "suite.md", escape("\n".join([*page, *(f"- {note}" for note in notes)])) + "\n")
    if scores:
        shown = plain_table("\n".join(notes), gap=2)
        for head in _HEADS:
            shown.add_column(head, no_wrap=True)
        for row in rows:
            shown.add_row(*row)
        console.print(shown, soft_wrap=False)


def _percent(value: float, low: float, high: float) -> tuple[str, str]:
    return f"{100 * value:.2f}", f"[{100 * low:.2f}, {100 * high:.2f}]"
