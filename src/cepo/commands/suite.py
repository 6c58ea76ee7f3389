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
from .benchmarks import BENCHMARKS, Score, SuiteError, average_of, read_score, results_file, select_benchmarks
from .options import make_command_parser, positive, temperature

# MathVision imports latex2sympy2, whose 1.5.4 fails to import beside a current antlr; lmms-eval then scores every
# answer as incorrect. math-verify ships a fork with the same function.
_START = """\
import sys, latex2sympy2_extended
sys.modules["latex2sympy2"] = latex2sympy2_extended
from lmms_eval.cli.dispatch import main
main()"""
_SAMPLING = ("temperature", "top_p", "top_k", "presence_penalty", "max_new_tokens")


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
    add("--batch_size", type=positive, help="problems per batch (default: 256 with vllm, 1 with transformers)")
    add("--python", default=sys.executable, help="interpreter of an environment with lmms-eval")
    add = parser.add_argument_group("benchmarks").add_argument
    add(
        "--tasks",
        help="comma-separated benchmarks; NAME=TASK runs a task of --include_path as NAME (default: all five)",
    )
    add("--include_path", help="folder of further lmms-eval tasks")
    add("--limit", type=positive, help="number of problems per benchmark (default: all)")
    add = parser.add_argument_group("sampling (defaults: the paper's)").add_argument
    add("--temperature", type=temperature, default=1.0, help="sampling temperature; 0: greedy")
    add("--top_p", type=float, default=1.0, help="nucleus sampling probability")
    add("--top_k", type=positive, default=40, help="number of candidate tokens")
    add("--presence_penalty", type=float, default=2.0, help="penalty for tokens that occurred before")
    add("--max_new_tokens", type=positive, default=32000, help="maximum completion length [tokens]")
    add("--seed", type=int, default=0, help="sampling seed")
    add = parser.add_argument_group("output").add_argument
    add("--output_dir", type=Path, default=Path("suite"), help="folder of suite.md, suite.json and one per benchmark")
    return parser


def prepare(arguments: list[str]) -> Callable[[Console], int]:
    """Validate the command line and return the job that runs the benchmarks."""
    options = make_parser().parse_args(arguments)
    quiet_libraries()
    benchmarks = select_benchmarks(options.tasks)
    if shutil.which(options.python) is None:
        raise SuiteError(f"--python: no such program: {options.python}")
    if options.backend == "transformers" and options.presence_penalty:
        raise SuiteError(
            f"--backend transformers ignores --presence_penalty {options.presence_penalty:g}; use --backend vllm, or "
            "set --presence_penalty 0, which differs from the paper"
        )
    options.model_name_or_path = resolve_model(options.model_name_or_path)
    options.batch_size = options.batch_size or (256 if options.backend == "vllm" else 1)
    settings = {name: _settings(benchmark.task, options) for name, benchmark in benchmarks.items()}
    missing = [name for name in benchmarks if not _is_finished(options.output_dir / name, settings[name])]
    options.output_dir.mkdir(parents=True, exist_ok=True)

    def job(console: Console) -> int:
        scores: list[Score] = []
        failed: list[str] = []
        with locked(options.output_dir):
            given = {**vars(options), "model_name_or_path": _merged_model(options, console)} if missing else {}
            for name, benchmark in benchmarks.items():
                folder = options.output_dir / name
                try:
                    if name in missing:
                        console.print(f"{name}: lmms-eval runs {benchmark.task}; log: {folder / 'log.txt'}")
                        run_lmms_eval(options.python, lmms_eval_options(benchmark.task, given), settings[name], folder)
                    else:
                        console.print(f"{name}: finished before with these settings")
                    scores.append(read_score(name, benchmark, folder))
                except SuiteError as error:
                    failed.append(name)
                    print(f"cepo: error: {name}: {one_line(str(error))}", file=sys.stderr)
            _report(scores, failed, settings, options, console)
        return 1 if failed else 0

    return job


def lmms_eval_options(task: str, given: Mapping[str, Any]) -> dict[str, str]:
    """lmms-eval's command line for one task, from the options of `cepo suite`."""
    model, sampling = given["model_name_or_path"], {name: given[name] for name in _SAMPLING}
    if given["backend"] == "vllm":
        # The engine uses the larger of the task's and the model's max_new_tokens; without gen_kwargs its seed is 1.
        model_args = {"model": model, "max_new_tokens": given["max_new_tokens"], "trust_remote_code": False}
        sampling["seed"] = given["seed"]
    else:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model_args = {"pretrained": model, "device": device, "device_map": device}
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


def _settings(task: str, options: argparse.Namespace) -> dict[str, Any]:
    """Settings that determine a benchmark's score: sampling, model and task, and size and time of the model files."""
    names = ("model_name_or_path", "backend", "model_args", "limit", "include_path", "seed", *_SAMPLING)
    folder = Path(options.model_name_or_path)
    paths = [path for name in ("*.safetensors", "*.bin", "*config.json") for path in folder.glob(name)]
    files = sorted([path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths)
    return {"task": task, **{name: getattr(options, name) for name in names}, "files": files}


def _is_finished(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the folder holds results with these settings; SuiteError if it holds results with others."""
    if results_file(folder) is None:
        return False
    before = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    if differ := [name for name in settings if before[name] != settings[name]]:
        raise SuiteError(
            f"{folder} holds results with other settings ({', '.join(differ)}); change --output_dir, or remove it"
        )
    return True


def _merged_model(options: argparse.Namespace, console: Console) -> str:
    """The model for lmms-eval: adapters are merged into the output directory."""
    if not holds_adapters(options.model_name_or_path):
        return options.model_name_or_path
    output = options.output_dir / "merged"
    shutil.rmtree(output, ignore_errors=True)  # the adapters may have been trained further
    merge_adapters(options.model_name_or_path, output)
    console.print(f"merged {options.model_name_or_path} into its base model, in {output}")
    return str(output)


def run_lmms_eval(python: str, options: Mapping[str, str], settings: Mapping[str, Any], folder: Path) -> None:
    """Run lmms-eval: results in `folder`/MODEL/TIME_results.json, output in `folder`/log.txt.

    Raises:
        SuiteError: Without results, for which lmms-eval exits with status 0, too.
    """
    shutil.rmtree(folder, ignore_errors=True)  # lmms-eval would append to the samples of an interrupted run
    folder.mkdir()
    write_whole(folder / "settings.json", json.dumps(settings, indent=2) + "\n")
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
    shown = (name for name in ("backend", *_SAMPLING, "seed", "limit") if getattr(options, name) is not None)
    notes = [f"{_pairs({name: getattr(options, name) for name in shown})}."]
    notes += [f"Failed: {', '.join(failed)}; the same command tries again."] if failed else []
    result = {
        "model": options.model_name_or_path,
        "settings": settings,
        "benchmarks": [asdict(one) for one in scores],
        "average": average and dict(zip(("value", "low", "high"), average, strict=True)),
        "failed": failed,
    }
    write_whole(options.output_dir / "suite.json", json.dumps(result, indent=2) + "\n")
    heads = ("benchmark", "problems", "correct, %", "95 % interval")
    lines = [f"Share of correct answers of {options.model_name_or_path}.\n", markdown_table(heads, rows)]
    page = escape("\n".join([*lines, *(f"- {note}" for note in notes)]))
    write_whole(options.output_dir / "suite.md", page + "\n")
    console.print(f"{page}\nwritten to {options.output_dir / 'suite.md'} and {options.output_dir / 'suite.json'}")


def _percent(value: float, low: float, high: float) -> tuple[str, str]:
    return f"{100 * value:.2f}", f"[{100 * low:.2f}, {100 * high:.2f}]"
