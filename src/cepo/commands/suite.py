"""`cepo suite`: the paper's five benchmarks, run by lmms-eval 0.7.3 in a process of its own."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..compare.jobs import locked
from ..data.adapters import holds_adapters
from ..data.escape import escape, one_line
from ..data.files import write_whole
from ..data.merging import merge_adapters
from ..data.models import resolve_model
from ..inspection.tables import markdown_table
from . import quiet_libraries
from .benchmarks import (
    BENCHMARKS,
    PAPER,
    Benchmark,
    Score,
    SuiteError,
    average_of,
    read_score,
    results_file,
    select_benchmarks,
)
from .options import make_command_parser, not_negative, positive, temperature

# MathVision imports latex2sympy2, whose 1.5.4 fails to import beside a current antlr; lmms-eval then scores every
# answer as incorrect. math-verify ships a fork with the same function.
_START = """\
import sys, latex2sympy2_extended
sys.modules["latex2sympy2"] = latex2sympy2_extended
from lmms_eval.cli.dispatch import main
main()"""
_COLUMNS = ("benchmark", "problems", "correct, %", "95 % interval")


def make_parser() -> argparse.ArgumentParser:
    parser = make_command_parser(
        "suite",
        "Run the paper's five benchmarks with lmms-eval: dynamath, logicvista, mathvision (testmini), mmmu (val), "
        "wemath (testmini). Finished benchmarks with the same settings are not run again.",
    )
    add = parser.add_argument_group("model").add_argument
    add("--model_name_or_path", required=True, help="folder or Hub name of a model or PEFT adapter (merged first)")
    add(
        "--backend",
        choices=("vllm", "transformers"),
        default="vllm",
        help="transformers ignores the presence penalty and therefore requires --presence_penalty 0",
    )
    add("--model_args", help="further arguments of lmms-eval's model: tensor_parallel_size=4,max_model_len=40960")
    add("--device", help="device of the transformers backend (none: cuda if available, else cpu)")
    add("--batch_size", type=positive, help="problems per batch (none: 256 with vllm, 1 with transformers)")
    add("--python", default=sys.executable, help="interpreter of an environment with lmms-eval")
    add = parser.add_argument_group("benchmarks").add_argument
    add("--tasks", help="comma-separated benchmarks; NAME=TASK runs a task of --include_path as NAME (none: all five)")
    add("--include_path", help="folder of further lmms-eval tasks")
    add("--limit", type=positive, help="number of problems per benchmark (none: all)")
    add = parser.add_argument_group("sampling (defaults: the paper's)").add_argument
    add("--temperature", type=temperature, default=1.0, help="sampling temperature; 0: greedy")
    add("--top_p", type=float, default=1.0, help="nucleus sampling probability")
    add("--top_k", type=positive, default=40, help="number of candidate tokens")
    add("--presence_penalty", type=float, default=2.0, help="penalty for tokens that occurred before")
    add("--max_new_tokens", type=positive, default=32000, help="maximum completion length [tokens]")
    add("--seed", type=not_negative, default=0, help="sampling seed")
    add = parser.add_argument_group("output").add_argument
    add("--output_dir", type=Path, default=Path("suite"), help="folder of suite.md, suite.json and one per benchmark")
    return parser


def prepare(arguments: list[str]) -> Callable[[Console], int]:
    """Validate the command line and return the job that runs the benchmarks.

    Raises:
        ValueError, OSError: For invalid options, a missing model or missing packages.
    """
    options = make_parser().parse_args(arguments)
    quiet_libraries()
    benchmarks = select_benchmarks(options.tasks)
    if shutil.which(options.python) is None:
        raise SuiteError(f"--python: no such program: {options.python}")
    if options.include_path is not None and not Path(options.include_path).is_dir():
        raise SuiteError(f"--include_path: no such folder: {options.include_path}")
    options.model_name_or_path = resolve_model(options.model_name_or_path)
    if set(",=") & set(options.model_name_or_path):
        raise SuiteError(f"lmms-eval cannot parse a name with a comma or an equals sign: {options.model_name_or_path}")
    if options.backend == "transformers" and options.presence_penalty:
        raise SuiteError(
            f"--backend transformers ignores --presence_penalty {options.presence_penalty:g}; use --backend vllm, or "
            "set --presence_penalty 0, which differs from the paper"
        )
    options.batch_size = options.batch_size or (256 if options.backend == "vllm" else 1)
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = {name: _settings(benchmark, options) for name, benchmark in benchmarks.items()}
    missing = [name for name in benchmarks if not _is_finished(options.output_dir / name, settings[name])]
    options.output_dir.mkdir(parents=True, exist_ok=True)

    def job(console: Console) -> int:
        with locked(options.output_dir):
            return _run(benchmarks, settings, missing, options, console)

    return job


def lmms_eval_options(task: str, given: Mapping[str, Any]) -> dict[str, str]:
    """lmms-eval's command line for one task, from the options of `cepo suite`."""
    model = given["model_name_or_path"]
    sampling = {name: given[name] for name in ("temperature", "top_p", "top_k", "presence_penalty", "max_new_tokens")}
    if given["backend"] == "vllm":
        # The engine uses the larger of the task's and the model's max_new_tokens; without gen_kwargs its seed is 1.
        model_args = {"model": model, "max_new_tokens": given["max_new_tokens"], "trust_remote_code": False}
        sampling["seed"] = given["seed"]
    else:
        model_args = {"pretrained": model, "device": given["device"], "device_map": given["device"]}
        del sampling["presence_penalty"]  # lmms-eval's qwen3_vl ignores it
    options = {
        "--model": "vllm" if given["backend"] == "vllm" else "qwen3_vl",
        "--model_args": _pairs(model_args) + (f",{given['model_args']}" if given["model_args"] else ""),
        "--tasks": task,
        "--gen_kwargs": _pairs(sampling),
        "--process_docs_parallel": 1,  # math-verify's time limit fails in threads, and scores the answer as incorrect
        **{f"--{name}": given[name] for name in ("batch_size", "seed", "limit", "include_path")},
    }
    return {name: str(value) for name, value in options.items() if value is not None}


def _pairs(values: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in values.items())


def _settings(benchmark: Benchmark, options: argparse.Namespace) -> dict[str, Any]:
    """Settings that determine a benchmark's score: lmms-eval's options, and name, size and time of the model files."""
    given = lmms_eval_options(benchmark.task, {**vars(options), "batch_size": None, "device": None})
    folder = Path(options.model_name_or_path)
    paths = [path for name in ("*.safetensors", "*.bin", "*config.json") for path in folder.glob(name)]
    files = sorted([path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths)
    return {**{name.removeprefix("--"): value for name, value in given.items()}, "files": files}


def _is_finished(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the folder holds results with these settings; SuiteError if it holds others."""
    path = folder / "settings.json"
    if results_file(folder) is None or not path.is_file():
        return False
    before = json.loads(path.read_text(encoding="utf-8"))
    differ = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
    if differ:
        raise SuiteError(
            f"{folder} holds results with other settings ({', '.join(differ)}); change --output_dir, or remove it"
        )
    return True


def _run(
    benchmarks: dict[str, Benchmark],
    settings: dict[str, dict[str, Any]],
    missing: list[str],
    options: argparse.Namespace,
    console: Console,
) -> int:
    given, output = dict(vars(options)), options.output_dir
    if missing and holds_adapters(options.model_name_or_path):
        given["model_name_or_path"] = str(output / "merged")
        shutil.rmtree(output / "merged", ignore_errors=True)  # the adapters may have been trained further
        base = merge_adapters(options.model_name_or_path, output / "merged").base
        console.print(f"merged {options.model_name_or_path} into {base}, in {output / 'merged'}")
    scores: list[Score] = []
    failed: list[str] = []
    for name, benchmark in benchmarks.items():
        folder = output / name
        try:
            if name in missing:
                console.print(f"{name}: lmms-eval runs {benchmark.task}; log: {folder / 'log.txt'}")
                folder.mkdir(parents=True, exist_ok=True)
                write_whole(folder / "settings.json", json.dumps(settings[name], indent=2) + "\n")
                run_lmms_eval(options.python, lmms_eval_options(benchmark.task, given), folder)
            else:
                console.print(f"{name}: finished before with these settings")
            scores.append(read_score(name, benchmark, folder))
        except SuiteError as error:
            failed.append(name)
            print(f"cepo: error: {name}: {one_line(str(error))}", file=sys.stderr)
    _report(scores, failed, settings, options, console)
    return 1 if failed else 0


def run_lmms_eval(python: str, options: Mapping[str, str], folder: Path) -> None:
    """Run lmms-eval: results in `folder`/MODEL/TIME_results.json, output in `folder`/log.txt.

    Raises:
        SuiteError: Without results, for which lmms-eval exits with status 0, too.
    """
    for old in folder.glob("*/*_samples_*.jsonl"):  # of an interrupted run; lmms-eval appends to them
        old.unlink()
    words = [word for pair in options.items() for word in pair]
    command = [python, "-c", _START, *words, "--output_path", str(folder), "--log_samples"]
    log = folder / "log.txt"
    with log.open("w", encoding="utf-8") as out:
        # In a new session: Ctrl-C reaches this process alone, which then terminates lmms-eval and its engine.
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status = process.wait()
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
    if results_file(folder) is None:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        fix = "; pip install 'cepo[eval]', in a checkout '.[eval]'" if "ModuleNotFoundError" in " ".join(lines) else ""
        raise SuiteError(
            f"lmms-eval wrote no results (exit status {status}); {log} ends with: {' '.join(lines[-5:])}{fix}"
        )


def _report(
    scores: list[Score],
    failed: list[str],
    settings: dict[str, dict[str, Any]],
    options: argparse.Namespace,
    console: Console,
) -> None:
    """Write suite.json and suite.md, and print the table."""
    rows = [(one.name, str(one.problems), *_percent(one.value, one.low, one.high)) for one in scores]
    average = average_of(scores) if len(scores) == len(BENCHMARKS) else None
    if average is not None:
        rows.append(("average of 5", str(sum(one.problems for one in scores)), *_percent(*average)))
    notes = [
        f"{options.backend};{f' first {options.limit} problems of each;' if options.limit else ''} temperature "
        f"{options.temperature:g}, top-p {options.top_p:g}, top-k {options.top_k}, presence penalty "
        f"{options.presence_penalty:g}, at most {options.max_new_tokens:,} tokens, seed {options.seed}."
    ]
    notes += [
        f"{name}: task {own['tasks']}." for name, own in settings.items() if own["tasks"] != BENCHMARKS[name].task
    ]
    missing = [name for name in BENCHMARKS if name not in {one.name for one in scores}]
    notes += [f"No average of five without {', '.join(missing)}."] if missing else []
    notes += [f"Failed: {', '.join(failed)}; the same command tries again."] if failed else []
    notes += [f"Paper, {size}: {', '.join(f'{n} {x:.2f}' for n, x in found.items())}." for size, found in PAPER.items()]
    result = {
        "model": options.model_name_or_path,
        "settings": settings,
        "benchmarks": [asdict(one) for one in scores],
        "average": average and dict(zip(("value", "low", "high"), average, strict=True)),
        "failed": failed,
    }
    write_whole(options.output_dir / "suite.json", json.dumps(result, indent=2) + "\n")
    lines = [f"Share of correct answers of {options.model_name_or_path}.\n", markdown_table(_COLUMNS, rows)]
    page = escape("\n".join([*lines, *(f"- {note}" for note in notes)]))
    write_whole(options.output_dir / "suite.md", page + "\n")
    console.print(f"{page}\nwritten to {options.output_dir / 'suite.md'} and {options.output_dir / 'suite.json'}")


def _percent(value: float, low: float, high: float) -> tuple[str, str]:
    return f"{100 * value:.2f}", f"[{100 * low:.2f}, {100 * high:.2f}]"
