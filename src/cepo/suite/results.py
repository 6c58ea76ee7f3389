"""What lmms-eval has left, as shares with intervals."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ..data.evaluation import Accuracy
from .benchmarks import BENCHMARKS, Benchmark
from .running import SuiteError, results_file

SAMPLES, SCORE = "from its answers", "from the score and the number of problems"


@dataclass(frozen=True)
class Score:
    """One benchmark's score.

    Attributes:
        name: Of the benchmark.
        value: Share of right answers, as lmms-eval reports it.
        interval: 95 %, Wilson's.
        problems: How many were asked.
        basis: What the interval was made from: `SAMPLES` or `SCORE`.
        others: Further scores of the task, as shares; of the whole benchmark alone.
        versions: Of lmms-eval and what it ran on.
    """

    name: str
    value: float
    interval: tuple[float, float]
    problems: int
    basis: str
    others: dict[str, float]
    versions: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        low, high = self.interval
        return {
            "name": self.name,
            "value": self.value,
            "low": low,
            "high": high,
            "problems": self.problems,
            "interval": self.basis,
            "others": self.others,
            "versions": self.versions,
        }


def read_score(benchmark: Benchmark, folder: Path) -> Score:
    """The score of a benchmark from the files that lmms-eval left.

    Raises:
        SuiteError: If there are none, or they do not hold the score.
    """
    path = results_file(folder)
    if path is None:
        raise SuiteError(f"{folder} holds no results of lmms-eval")
    found = json.loads(path.read_text(encoding="utf-8"))
    of_task = found.get("results", {}).get(benchmark.task, {})
    value = _share(of_task, benchmark.metric, benchmark.percent)
    if value is None:
        raise SuiteError(f"{path} has no number {benchmark.metric} of {benchmark.task}; is it {benchmark.task}'s?")
    samples = path.with_name(path.name.replace("_results.json", f"_samples_{benchmark.task}.jsonl"))
    lines = samples.read_text(encoding="utf-8").split("\n") if samples.is_file() else []  # an answer may hold U+2028
    rows = [json.loads(line) for line in lines if line]
    problems = found.get("n-samples", {}).get(benchmark.task, {}).get("effective") or len(rows)
    if not problems:
        raise SuiteError(f"{path} does not say how many problems were asked")
    accuracy = accuracy_of(rows, benchmark.metric)
    basis = SAMPLES
    if accuracy is None or not math.isclose(accuracy.value, value, abs_tol=1e-4):
        # No verdict on each answer, or one that does not add up to the score.
        basis, right = SCORE, round(value * problems)
        accuracy = Accuracy((1.0,) * right + (0.0,) * (problems - right))
    # Of We-Math's families, those that were not asked count as mastered: of a part they say nothing.
    whole = benchmark == BENCHMARKS[benchmark.name] and found.get("config", {}).get("limit") is None
    others = {name: _share(of_task, name, False) for name in benchmark.others or {} if whole}
    versions = {
        name: str(found[key])
        for name, key in (("lmms_eval", "lmms_eval_version"), ("transformers", "transformers_version"))
        if found.get(key)
    }
    return Score(
        benchmark.name,
        value,
        accuracy.interval,
        problems,
        basis,
        {name: other for name, other in others.items() if other is not None},
        versions,
    )


def _share(of_task: Mapping[str, Any], metric: str, percent: bool) -> float | None:
    """A score as a share: lmms-eval gives shares, numbers out of 100, and texts such as "41.33%"."""
    for key, value in of_task.items():
        if key.partition(",")[0] != metric:
            continue
        if isinstance(value, str) and value.endswith("%"):
            value, percent = value[:-1], True
        try:
            number = float(value)
        except (TypeError, ValueError):
            return None
        return number / 100 if percent else number
    return None


def accuracy_of(rows: Sequence[Mapping[str, Any]], metric: str) -> Accuracy | None:
    """The share of right answers from the lines of a file of samples.

    DynaMath asks variants of the same question, whose answers are not independent: they count together.

    Returns:
        None where a line does not say whether its answer is right.
    """
    groups: dict[Any, list[float]] = {}
    for row in rows:
        verdict = row.get(metric)
        group = row.get("doc_id")
        if isinstance(verdict, Mapping):
            group = verdict.get("variant_id", group)
            verdict = verdict["acc"] if "acc" in verdict else next(iter(verdict.get("scores", [])), None)
        if not isinstance(verdict, (bool, int, float)):
            return None
        groups.setdefault(group, []).append(float(verdict))
    if not groups:
        return None
    return Accuracy(tuple(fmean(values) for values in groups.values()), max(map(len, groups.values())))


def average_of(scores: Sequence[Score]) -> tuple[float, float, float]:
    """Mean of several scores, and its 95 % interval from theirs.

    The benchmarks are independent samples of problems, so the distances to their bounds add up as squares (MOVER).
    """
    number = len(scores)
    mean = fmean(score.value for score in scores)
    below = math.sqrt(sum((score.value - score.interval[0]) ** 2 for score in scores)) / number
    above = math.sqrt(sum((score.interval[1] - score.value) ** 2 for score in scores)) / number
    return mean, mean - below, mean + above
