"""Statistics of a comparison: means over seeds and paired differences, with 95 % intervals.

Runs of an arm differ in the seed only. Runs with the same seed share data order, initial weights and evaluation
problems, so that differences between arms are paired by seed.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from scipy.stats import t

REFERENCE, BASE = "grpo", "base"
# Measures of greedy answers; the first one is the primary outcome.
GREEDY = ("final", "early", "average")
MEASURES = (*GREEDY, "sampled", "pass_at")


@dataclass(frozen=True)
class Sampled:
    """Sampled answers of a policy.

    Attributes:
        accuracy: Share of correct answers.
        pass_at: pass@k; None with one answer per problem.
        k: Answers per problem.
        entropy: Of content tokens where the task labels them, else of all tokens [nats per token].
    """

    accuracy: float
    pass_at: float | None
    k: int
    entropy: float | None

    @classmethod
    def read(cls, found: Mapping[str, Any] | None) -> "Sampled | None":
        """From the `sampled` part of a summary.json (`Evaluation.as_dict`)."""
        if found is None:
            return None
        entropy = found.get("content_entropy") or found.get("entropy") or {}
        pass_at = (found.get("pass_at") or {}).get("accuracy")
        return cls(found["accuracy"], pass_at, found["samples"], entropy.get("nats"))


@dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        seed: Seed of the run.
        accuracy: (optimizer step, accuracy of greedy answers to held-out problems), from step 0 on.
        seconds: Duration of the steps, without evaluation and saving.
        versions: Versions of the libraries.
        before, after: Sampled answers before and after training.
    """

    seed: int
    accuracy: list[tuple[int, float]]
    seconds: float
    versions: dict[str, str] = field(default_factory=dict)
    before: Sampled | None = None
    after: Sampled | None = None

    @property
    def sampled(self) -> float | None:
        """Accuracy of sampled answers after training."""
        return self.after.accuracy if self.after else None

    @property
    def pass_at(self) -> float | None:
        """pass@k after training."""
        return self.after.pass_at if self.after else None

    @property
    def final(self) -> float:
        """Accuracy of greedy answers after training."""
        return self.accuracy[-1][1]

    @property
    def early(self) -> float:
        """Mean height of the accuracy curve over the first half of training."""
        return self._height(self.accuracy[-1][0] / 2)

    @property
    def average(self) -> float:
        """Mean height of the accuracy curve; of the three measures it has the least noise."""
        return self._height(self.accuracy[-1][0])

    def _height(self, end: float) -> float:
        if end == 0:
            return self.final
        steps, values = zip(*self.accuracy, strict=True)
        grid = sorted({step for step in steps if step <= end} | {end})
        return float(np.trapezoid(np.interp(grid, steps, values), grid) / end)

    def as_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "versions"}


def load_run(folder: Path) -> Run:
    """Read a finished run of `cepo train`."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    accuracy = [(entry["step"], entry["accuracy"]) for entry in summary["accuracy"]]
    times = [entry["step_time"] for entry in history if "step_time" in entry]  # means over logging intervals
    before, after = (Sampled.read((summary.get(when) or {}).get("sampled")) for when in ("before", "after"))
    seconds = fmean(times) * summary["steps"]
    return Run(summary["seed"], accuracy, seconds, summary.get("versions", {}), before, after)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval (Student's t); NaN bounds if the values are equal."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """Estimate the mean from a value per seed."""
        mean = fmean(values)
        if max(values) - min(values) < 1e-12:  # accuracies are fractions: those of few seeds may be equal
            return cls(mean, math.nan, math.nan)
        half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
        return cls(mean, mean - half, mean + half)

    def as_dict(self) -> dict[str, float | None]:
        """For JSON, without NaN."""
        return {name: None if math.isnan(value) else value for name, value in vars(self).items()}


# An `Estimate.as_dict`; None if a run lacks the measure.
Mean = dict[str, float | None] | None


def _mean(values: Sequence[float | None]) -> Mean:
    known = [value for value in values if value is not None]
    return Estimate.of(known).as_dict() if len(known) == len(values) else None


def paired_differences(runs: Sequence[Run], reference: Sequence[Run]) -> dict[str, Mean] | None:
    """Mean difference to the reference's runs with the same seeds, by measure; None without a common seed."""
    others = {run.seed: run for run in reference}
    pairs = [(run, others[run.seed]) for run in runs if run.seed in others]

    def difference(one: float | None, other: float | None) -> float | None:
        return None if one is None or other is None else one - other

    if not pairs:
        return None
    return {m: _mean([difference(getattr(run, m), getattr(other, m)) for run, other in pairs]) for m in MEASURES}


def summarize(arms: Mapping[str, Sequence[Run]]) -> list[dict[str, Any]]:
    """A row for each arm with runs, the untrained policy first.

    Returns:
        Rows with `name`, `seeds`, a mean of each of `MEASURES`, `k` (of pass@k), `seconds`, and, from the pairs of runs
        with GRPO's of the same seeds, `pairs`, `paired_difference_to_grpo` and `seconds_ratio` (None without pairs).
    """
    reference = list(arms.get(REFERENCE, []))
    by_seed = {run.seed: run for run in reference}
    # The untrained policy of a seed is the same in all arms; GRPO's run overrides the others.
    everyone = [*(run for runs in arms.values() for run in runs), *reference]
    untrained = {run.seed: Run(run.seed, run.accuracy[:1], 0.0, after=run.before) for run in everyone}
    rows = []
    for name, runs in {BASE: list(untrained.values()), **arms}.items():
        if not runs:
            continue
        pairs = [(run, by_seed[run.seed]) for run in runs if run.seed in by_seed]
        rows.append(
            {
                "name": name,
                "seeds": len(runs),
                **{measure: _mean([getattr(run, measure) for run in runs]) for measure in MEASURES},
                "k": next((run.after.k for run in runs if run.after), None),
                "seconds": fmean(run.seconds for run in runs),
                "pairs": len(pairs),
                "paired_difference_to_grpo": None if name == REFERENCE else paired_differences(runs, reference),
                "seconds_ratio": fmean(run.seconds / other.seconds for run, other in pairs) if pairs else None,
            }
        )
    return rows


def band(runs: Sequence[Run]) -> list[tuple[int, Estimate]]:
    """Mean accuracy over seeds at each evaluated step."""
    steps = sorted({step for run in runs for step, _ in run.accuracy})
    return [(step, Estimate.of([value for run in runs for at, value in run.accuracy if at == step])) for step in steps]


def percent(estimate: Mapping[str, float | None] | None, *, signed: bool = False) -> str:
    """A mean and its interval in percent; empty for None."""
    if estimate is None:
        return ""
    mean, low, high = (in_percent(estimate[name], signed=signed) for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]" if low and high else mean


def in_percent(share: float | None, *, signed: bool = False) -> str:
    """A share in percent, to a tenth; empty for None. Rounded twice: 100 * 0.2375 is 23.749999999999996."""
    return "" if share is None else format(round(100 * share, 9), "+.1f" if signed else ".1f")
