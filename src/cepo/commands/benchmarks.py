"""The paper's five benchmarks as tasks of lmms-eval, and their scores."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from statistics import fmean

from scipy.stats import binomtest


class SuiteError(ValueError):
    """The suite cannot run; the message gives the reason and the fix."""


@dataclass(frozen=True)
class Benchmark:
    """A task of lmms-eval that is scored by rules.

    Attributes:
        task: lmms-eval's name.
        metric: Share of correct answers, times `scale`.
        scale: 100 for a metric in percent.
        variants: Problems per question. Answers to variants of one question are not independent.
    """

    task: str
    metric: str
    scale: float = 1.0
    variants: int = 1


BENCHMARKS = {
    "dynamath": Benchmark("dynamath_reasoning", "dynamath_average", variants=10),
    "logicvista": Benchmark("logicvista_reasoning", "acc_score"),
    "mathvision": Benchmark("mathvision_testmini", "mathvision_standard_eval", scale=100.0),
    "mmmu": Benchmark("mmmu_val", "mmmu_acc"),
    "wemath": Benchmark("wemath_testmini_reasoning", "acc_score"),
}


def select_benchmarks(names: str | None) -> dict[str, Benchmark]:
    """Benchmarks by comma-separated names; None: all five. `NAME=TASK` runs another task as NAME."""
    selected: dict[str, Benchmark] = {}
    for part in BENCHMARKS if names is None else names.split(","):
        name, _, task = (piece.strip() for piece in part.partition("="))
        if name not in BENCHMARKS:
            raise SuiteError(f"--tasks: unknown benchmark {name!r}; choose from {', '.join(BENCHMARKS)}")
        selected[name] = replace(BENCHMARKS[name], task=task, variants=1) if task else BENCHMARKS[name]
    return selected


def results_file(folder: Path) -> Path | None:
    """lmms-eval's results file in a folder."""
    return next(folder.glob("*/*_results.json"), None)


@dataclass(frozen=True)
class Score:
    """A benchmark's share of correct answers, with Wilson's 95 % interval for one independent answer per question."""

    name: str
    value: float
    low: float
    high: float
    problems: int


def read_score(name: str, benchmark: Benchmark, folder: Path) -> Score:
    """Read a benchmark's score from the results file in a folder."""
    path = results_file(folder)
    found = json.loads(path.read_text(encoding="utf-8")) if path else {}
    scores = {key.partition(",")[0]: value for key, value in found.get("results", {}).get(benchmark.task, {}).items()}
    value, problems = scores.get(benchmark.metric), found.get("n-samples", {}).get(benchmark.task, {}).get("effective")
    if not isinstance(value, (int, float)) or not problems:
        raise SuiteError(f"{folder} holds no results of lmms-eval with {benchmark.metric} of {benchmark.task}")
    share, questions = value / benchmark.scale, max(1, problems // benchmark.variants)
    low, high = binomtest(round(share * questions), questions).proportion_ci(method="wilson")
    return Score(name, share, min(share, low), max(share, high), problems)


def average_of(scores: Sequence[Score]) -> tuple[float, float, float]:
    """Mean of independent scores with its 95 % interval (MOVER: distances to the bounds add in squares)."""
    mean = fmean(score.value for score in scores)
    below = sqrt(sum((score.value - score.low) ** 2 for score in scores)) / len(scores)
    above = sqrt(sum((score.high - score.value) ** 2 for score in scores)) / len(scores)
    return mean, mean - below, mean + above
