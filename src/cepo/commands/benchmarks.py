"""The paper's five benchmarks in lmms-eval 0.7.3: tasks, command line, results."""

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

from scipy.stats import binomtest


class SuiteError(ValueError):
    """The suite cannot be run as asked; the message says why and what to do."""


@dataclass(frozen=True)
class Benchmark:
    """A task of lmms-eval, scored by rules; `metric` is the share of correct answers, times `scale`. Answers to the
    `variants` of a question are not independent. `others` are further scores of the task."""

    task: str
    metric: str
    scale: float = 1.0
    variants: int = 1
    others: tuple[str, ...] = ()


BENCHMARKS = {
    "dynamath": Benchmark("dynamath_reasoning", "dynamath_average", variants=10, others=("dynamath_worst",)),
    "logicvista": Benchmark("logicvista_reasoning", "acc_score"),
    "mathvision": Benchmark("mathvision_testmini", "mathvision_standard_eval", scale=100.0),
    "mmmu": Benchmark("mmmu_val", "mmmu_acc"),
    "wemath": Benchmark("wemath_testmini_reasoning", "acc_score", others=("wemath_strict", "wemath_loose")),
}
# The paper's averages of five [%], by size of Qwen3-VL-Instruct (arXiv 2605.19436).
PAPER = {
    "2B": {"base": 39.73, "GRPO": 41.17, "OPSD": 34.96, "SDPO": 35.70, "RLSD": 40.05, "CEPO": 43.43},
    "4B": {"base": 58.36, "GRPO": 57.43, "OPSD": 56.23, "SDPO": 55.75, "RLSD": 58.51, "CEPO": 60.56},
}
# MathVision's rules import latex2sympy2, whose 1.5.4 (pip's choice beside today's antlr) cannot be imported: lmms-eval
# logs that once, and every answer fails with a NameError. math-verify ships a fork with the same function.
_START = """\
import sys, latex2sympy2_extended
sys.modules["latex2sympy2"] = latex2sympy2_extended
from lmms_eval.cli.dispatch import main
main()"""


def select_benchmarks(names: str | None) -> dict[str, Benchmark]:
    """Benchmarks by name, with commas between; None: all five. `NAME=TASK` runs another task as NAME.

    Raises:
        SuiteError: For an unknown name, or one that is named twice.
    """
    found: dict[str, Benchmark] = {}
    for part in BENCHMARKS if names is None else names.split(","):
        name, equals, task = (piece.strip() for piece in part.partition("="))
        if name not in BENCHMARKS:
            raise SuiteError(f"--tasks: there is no benchmark {name!r}; the five are {', '.join(BENCHMARKS)}")
        if name in found:
            raise SuiteError(f"--tasks: {name} is named twice")
        if equals and not task:
            raise SuiteError(f"--tasks: no task stands behind {name}=")
        found[name] = replace(BENCHMARKS[name], task=task, variants=1, others=()) if equals else BENCHMARKS[name]
    return found


def check_installed(python: str, backend: str) -> None:
    """Raise SuiteError if an interpreter's environment lacks what the backend needs, with the command that adds it."""
    needed = ["lmms_eval", "latex2sympy2_extended", "openai", "vllm" if backend == "vllm" else "decord"]
    code = f"from importlib.util import find_spec; print(*(n for n in {needed} if find_spec(n) is None))"
    try:
        missing = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError) as error:
        raise SuiteError(f"--python: cannot run {python}: {error}") from error
    if missing == ["vllm"]:
        raise SuiteError(
            "--backend vllm needs vllm, which is not installed: pip install vllm (it wants its own torch; name its "
            "environment with --python), or take --backend transformers --presence_penalty 0"
        )
    if missing:
        named = ", ".join(name for name in missing if name != "vllm")
        raise SuiteError(f"the suite needs {named}: pip install 'cepo[eval]', in a checkout '.[eval]'")


def lmms_eval_options(task: str, given: Mapping[str, Any]) -> dict[str, str]:
    """lmms-eval's own command line for one task, from the options of `cepo evaluate --suite paper`."""
    model = given["model_name_or_path"]
    sampling = {name: given[name] for name in ("temperature", "top_p", "top_k", "presence_penalty", "max_new_tokens")}
    if given["backend"] == "vllm":
        # The engine takes the larger of the task's and the model's max_new_tokens, and its own seed is always 1.
        model_args = {"model": model, "max_new_tokens": given["max_new_tokens"], "trust_remote_code": False}
        sampling["seed"] = given["seed"]
    else:
        model_args = {"pretrained": model, "device": given["device"], "device_map": given["device"]}
        del sampling["presence_penalty"]  # lmms-eval's qwen3_vl records it and drops it
    options = {
        "--model": "vllm" if given["backend"] == "vllm" else "qwen3_vl",
        "--model_args": _pairs(model_args) + (f",{given['model_args']}" if given["model_args"] else ""),
        "--tasks": task,
        "--gen_kwargs": _pairs(sampling),
        "--process_docs_parallel": 1,  # in threads math-verify's time limit raises, and the answer counts as incorrect
        **{f"--{name}": given[name] for name in ("batch_size", "seed", "limit", "include_path")},
    }
    return {name: str(value) for name, value in options.items() if value is not None}


def _pairs(values: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in values.items())


def run_lmms_eval(python: str, options: Mapping[str, str], folder: Path) -> None:
    """Run lmms-eval: results in `folder`/MODEL/TIME_results.json, what it prints in `folder`/log.txt.

    Raises:
        SuiteError: If there are no results, with the end of the log; lmms-eval exits 0 even then.
    """
    for old in folder.glob("*/*_samples_*.jsonl"):  # of a run that was stopped; lmms-eval appends to them
        old.unlink()
    words = [word for pair in options.items() for word in pair]
    command = [python, "-c", _START, *words, "--output_path", str(folder), "--log_samples"]
    log = folder / "log.txt"
    with log.open("w", encoding="utf-8") as out:
        # In a session of its own: Ctrl-C reaches this process, which ends lmms-eval and its engine together.
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
        last = "\n".join(f"    {line[:400]}" for line in lines[-12:]) or "    (it printed nothing)"
        raise SuiteError(f"lmms-eval left no results (exit status {status}); its log is {log}, which ends\n{last}")


def results_file(folder: Path) -> Path | None:
    """The newest results file of lmms-eval in a folder; None if there is none."""
    return max(folder.glob("*/*_results.json"), default=None, key=lambda path: path.name)


@dataclass(frozen=True)
class Score:
    """Share of correct answers as lmms-eval reports it, its 95 % interval (Wilson's, of as many answers as there are
    questions), the number of problems, and further scores as lmms-eval has them."""

    name: str
    value: float
    low: float
    high: float
    problems: int
    others: Mapping[str, Any]


def read_score(name: str, benchmark: Benchmark, folder: Path) -> Score:
    """A benchmark's score from the newest results file in a folder; SuiteError if it is not there."""
    path = results_file(folder)
    if path is None:
        raise SuiteError(f"{folder} holds no results of lmms-eval")
    found = json.loads(path.read_text(encoding="utf-8"))
    scores = {key.partition(",")[0]: value for key, value in found.get("results", {}).get(benchmark.task, {}).items()}
    value = scores.get(benchmark.metric)
    if not isinstance(value, (int, float)):
        raise SuiteError(f"{path} has no number {benchmark.metric} of {benchmark.task}; is it {benchmark.task}'s?")
    problems = found.get("n-samples", {}).get(benchmark.task, {}).get("effective")
    if not problems:
        raise SuiteError(f"{path} does not say how many problems were asked")
    share, questions = value / benchmark.scale, max(1, problems // benchmark.variants)
    low, high = binomtest(round(share * questions), questions).proportion_ci(method="wilson")
    # We-Math counts families that were not asked as mastered: of a part of the benchmark its scores say nothing.
    others = () if found.get("config", {}).get("limit") else benchmark.others
    known = {name: scores[name] for name in others if name in scores}
    return Score(name, share, min(share, low), max(share, high), problems, known)


def average_of(scores: Sequence[Score]) -> tuple[float, float, float]:
    """Mean of independent scores and its 95 % interval: distances to their bounds add up as squares (MOVER)."""
    mean = fmean(score.value for score in scores)
    below = sqrt(sum((score.value - score.low) ** 2 for score in scores)) / len(scores)
    above = sqrt(sum((score.high - score.value) ** 2 for score in scores)) / len(scores)
    return mean, mean - below, mean + above
