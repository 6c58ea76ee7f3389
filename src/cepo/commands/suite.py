"""`cepo evaluate --suite paper`: the paper's five benchmarks, by lmms-eval."""

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..compare.jobs import BusyError, locked, stopped_by_signals
from ..data.escape import one_line
from ..data.files import write_whole
from ..data.loading import LoadingError, holds_adapters, resolve_model
from ..data.merging import merge_adapters
from ..inspection.tables import plain_table
from ..suite.benchmarks import Benchmark, Sampling, chosen
from ..suite.results import Score, read_score
from ..suite.running import (
    BACKENDS,
    Settings,
    SuiteError,
    check_backend,
    check_installed,
    fingerprint,
    how_to_get,
    is_done,
    missing_datasets,
    recorded,
    run,
)
from ..suite.table import HEADS, markdown, notes_of, paper_heads, paper_rows, result_of, rows_of
from . import quiet_libraries
from .options import make_command_parser, not_negative, positive, temperature

SUITES = ("paper",)
ABOUT = "paper: its five benchmarks, by lmms-eval, with options of their own: cepo evaluate --suite paper --help"


def make_parser() -> argparse.ArgumentParser:
    paper = Sampling()
    parser = make_command_parser(
        "evaluate --suite paper",
        "The paper's five benchmarks by lmms-eval: dynamath, logicvista, mathvision (testmini), mmmu (val), wemath "
        "(testmini). One that has been run with the same settings is not run again.",
    )
    add = parser.add_argument_group("suite").add_argument
    add("--suite", choices=SUITES, required=True, help="which benchmarks; paper: the paper's five")
    add(
        "--tasks",
        default=None,
        help="some of them, with commas between; NAME=TASK runs a task of --include_path instead",
    )
    add("--include_path", default=None, help="folder of further tasks of lmms-eval")
    add("--limit", type=positive, default=None, help="only the first problems of each (none: all)")
    add = parser.add_argument_group("model").add_argument
    add(
        "--model_name_or_path",
        required=True,
        help="folder or name of a model, or folder of PEFT adapters: merged first",
    )
    add(
        "--backend", choices=BACKENDS, default="vllm", help="transformers drops the presence penalty, and so needs it 0"
    )
    add(
        "--model_args",
        default=None,
        help="more for lmms-eval's model, such as tensor_parallel_size=4,max_model_len=40960",
    )
    add("--device", default=None, help="for the transformers backend (none: cuda if there is one, else cpu)")
    add(
        "--batch_size",
        type=positive,
        default=None,
        help="problems at a time (none: 256 with vllm, 1 with transformers)",
    )
    add("--python", default=None, help="interpreter of an environment that has lmms-eval (none: this one)")
    add = parser.add_argument_group("sampling (the defaults are the paper's)").add_argument
    add("--temperature", type=temperature, default=paper.temperature, help="0 takes the most likely token")
    add("--top_p", type=float, default=paper.top_p, help="from what share of the tokens is drawn")
    add("--top_k", type=positive, default=paper.top_k, help="from how many tokens is drawn")
    add(
        "--presence_penalty",
        type=float,
        default=paper.presence_penalty,
        help="what a token loses once it has been said",
    )
    add("--max_new_tokens", type=positive, default=paper.max_new_tokens, help="longest answer, in tokens")
    add("--seed", type=not_negative, default=0, help="of sampling")
    add = parser.add_argument_group("output").add_argument
    add("--output_dir", type=Path, default=Path("suite"), help="suite.md, suite.json, and a folder for each benchmark")
    return parser


def prepare(arguments: list[str]) -> Callable[[Console], int]:
    """Check what the command line names; what is returned runs the benchmarks and gives the exit status.

    Raises:
        ValueError, OSError: For mistakes in options or model, and for what is not installed or not downloaded.
    """
    options = make_parser().parse_args(arguments)
    quiet_libraries()
    benchmarks = chosen(options.tasks)
    if options.include_path is not None and not Path(options.include_path).is_dir():
        raise SuiteError(f"--include_path: there is no such folder: {options.include_path}")
    source = resolve_model(options.model_name_or_path)
    sampling = Sampling(**{name: getattr(options, name) for name in Sampling.__dataclass_fields__})
    check_backend(options.backend, sampling, source)
    python = options.python or sys.executable
    check_installed(python, options.backend)
    missing = missing_datasets(benchmarks.values())
    if missing:
        error = SuiteError(f"not downloaded: {', '.join(missing)}. Get what is missing, with the network, by")
        error.add_note(how_to_get(missing))
        raise error
    settings = Settings(
        source,
        options.backend,
        sampling,
        options.seed,
        options.batch_size or (256 if options.backend == "vllm" else 1),
        python,
        options.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        options.limit,
        options.include_path,
        options.model_args,
    )
    output = options.output_dir
    wanted = {name: recorded(benchmark, settings, source) for name, benchmark in benchmarks.items()}
    waiting = [name for name in benchmarks if not is_done(output / name, wanted[name])]
    output.mkdir(parents=True, exist_ok=True)

    def job(console: Console) -> int:
        try:
            with locked(output), stopped_by_signals():
                return _run(benchmarks, settings, wanted, waiting, output, console)
        except (
            BusyError,
            LoadingError,
            SuiteError,
        ) as error:  # the folder is taken, or the adapters' model is not there
            print(f"cepo: error: {one_line(str(error))}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\ncepo: stopped; the same command goes on with the benchmarks that were not done", file=sys.stderr)
            return 130

    return job


def _run(
    benchmarks: dict[str, Benchmark],
    settings: Settings,
    wanted: dict[str, dict[str, Any]],
    waiting: list[str],
    output: Path,
    console: Console,
) -> int:
    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    source = settings.model
    scores: list[Score] = []
    failed: list[str] = []
    if waiting and holds_adapters(source):
        settings = replace(settings, model=str(_merged(source, output, say)))
        check_backend(settings.backend, settings.sampling, settings.model)
    for name, benchmark in benchmarks.items():
        folder, failure = output / name, None
        if name in waiting:
            say(f"{name}: lmms-eval runs {benchmark.task}; its log is {folder / 'log.txt'}")
            failure = run(benchmark, settings, folder, wanted[name])
        else:
            say(f"{name}: has been run with these settings")
        try:
            if failure is None:
                scores.append(read_score(benchmark, folder))
        except SuiteError as error:
            failure = str(error)
        if failure is not None:
            failed.append(name)
            print(f"cepo: error: {name}: {one_line(str(failure))}", file=sys.stderr)
    about = {
        **{name: value for name, value in asdict(settings).items() if name not in ("model", "python")},
        "tasks": {name: benchmark.task for name, benchmark in benchmarks.items()},
    }
    result = result_of(source, about, scores, failed)
    write_whole(output / "suite.json", json.dumps(result, indent=2) + "\n")
    write_whole(output / "suite.md", markdown(source, scores, failed, about))
    if scores:
        _show(scores, failed, about, console)
    say(f"written to {output / 'suite.md'} and {output / 'suite.json'}")
    if failed:
        print(f"cepo: error: {', '.join(failed)}: no results; the same command tries again", file=sys.stderr)
    return 1 if failed else 0


def _merged(source: str, output: Path, say: Callable[[str], None]) -> Path:
    """The adapters' model in one folder below `output`, made unless it is there from these adapters."""
    folder, known = output / "merged", output / "merged.json"
    files = json.loads(json.dumps(fingerprint(source)))
    if folder.is_dir():
        if known.is_file() and json.loads(known.read_text(encoding="utf-8")) == [source, files]:
            say(f"{source} is merged already, in {folder}")
            return folder
        shutil.rmtree(folder)  # of other adapters, or of these before they were trained again
    merged = merge_adapters(source, folder)
    write_whole(known, json.dumps([source, files]) + "\n")
    say(f"merged {source} into {merged.base}, in {folder}")
    return folder


def _show(scores: list[Score], failed: list[str], about: dict[str, Any], console: Console) -> None:
    shown = plain_table("\n".join(notes_of(scores, failed, about)), gap=2)
    for head in HEADS:
        shown.add_column(head, no_wrap=True)
    for row in rows_of(scores):
        shown.add_row(*row)
    console.print(shown, soft_wrap=False)
    paper = plain_table("the paper's averages of five", gap=2)
    for head in paper_heads():
        paper.add_column(head, no_wrap=True)
    for line in paper_rows():
        paper.add_row(*line)
    console.print(paper, soft_wrap=False)
