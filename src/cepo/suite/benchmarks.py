"""The five benchmarks of the paper: their tasks in lmms-eval 0.7.3, the score that is reported, the paper's numbers.

The paper names the benchmarks and gives the average of five. It does not say which of a benchmark's scores it averages.
Reported here is, of every one, the share of answers that are right; other scores of a task are said beside it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: How the command line, folders and tables call it.
        task: In lmms-eval.
        dataset: On the Hub.
        metric: Of lmms-eval: the score that is reported.
        percent: Whether that is out of 100, not of 1.
        others: Further scores of the task, each with what it is.
    """

    name: str
    task: str
    dataset: str
    metric: str
    percent: bool = False
    others: Mapping[str, str] | None = None


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "dynamath",
            "dynamath_reasoning",
            "kcz358/DynaMath",
            "dynamath_average",
            others={"dynamath_worst": "right in all variants of a question"},
        ),
        Benchmark("logicvista", "logicvista_reasoning", "lscpku/LogicVista", "acc_score"),
        Benchmark("mathvision", "mathvision_testmini", "MathLLMs/MathVision", "mathvision_standard_eval", percent=True),
        Benchmark("mmmu", "mmmu_val", "lmms-lab-encoder/MMMU", "mmmu_acc"),
        Benchmark(
            "wemath",
            "wemath_testmini_reasoning",
            "We-Math/We-Math",
            "acc_score",
            others={
                "wemath_strict": "score of 525 families of problems, strict",
                "wemath_loose": "the same, loose",
            },
        ),
    )
}

# The paper's averages of five, in percent, by size of Qwen3-VL-Instruct (arXiv 2605.19436).
PAPER = {
    "2B": {"base": 39.73, "GRPO": 41.17, "OPSD": 34.96, "SDPO": 35.70, "RLSD": 40.05, "CEPO": 43.43},
    "4B": {"base": 58.36, "GRPO": 57.43, "OPSD": 56.23, "SDPO": 55.75, "RLSD": 58.51, "CEPO": 60.56},
}


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled; the defaults are the paper's.

    Attributes:
        temperature: 0 takes the most likely token.
        top_p, top_k: From what share, and how many, of the tokens is drawn.
        presence_penalty: What a token loses once it has been said [logits].
        max_new_tokens: Longest answer [tokens].
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 40
    presence_penalty: float = 2.0
    max_new_tokens: int = 32000


def chosen(names: str | None) -> dict[str, Benchmark]:
    """Benchmarks by their names, with commas between; `NAME=TASK` runs another task in the place of lmms-eval's own.

    Args:
        names: As on the command line; None: all five.

    Raises:
        ValueError: If there is no such benchmark, or one is named twice.
    """
    if names is None:
        return dict(BENCHMARKS)
    found: dict[str, Benchmark] = {}
    for part in names.split(","):
        name, equals, task = (piece.strip() for piece in part.partition("="))
        if name not in BENCHMARKS:
            raise ValueError(f"--tasks: there is no benchmark {name!r}; the five are {', '.join(BENCHMARKS)}")
        if name in found:
            raise ValueError(f"--tasks: {name} is named twice")
        if equals and not task:
            raise ValueError(f"--tasks: no task stands behind {name}=")
        found[name] = replace(BENCHMARKS[name], task=task) if equals else BENCHMARKS[name]
    return found
