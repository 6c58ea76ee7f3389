"""Statistics of a comparison: means over seeds, paired differences and their intervals.

The runs of an arm differ in the seed alone. Runs of one seed share data order, initial weights and evaluation problems,
so arms are compared seed by seed.
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
# Of greedy answers; a comparison is about the first one.
GREEDY = ("final", "early", "average")
# Of sampled answers after training, too.
MEASURES = (*GREEDY, "sampled", "pass_at")


@dataclass(frozen=True)
class Sampled:
    """Sampled answers of a policy.

    Attributes:
        accuracy: Of one answer.
        pass_at: The chance that one of `k` is correct; None with one answer a problem.
        k: Answers to each problem.
        entropy: At the tokens that carry the solution where the task knows them, else at all [nats a token].
    """

    accuracy: float
    pass_at: float | None
    k: int
    entropy: float | None

    @classmethod
    def read(cls, found: Mapping[str, Any] | None) -> "Sampled | None":
        """From the `sampled` part of a summary.json, made by `Evaluation.as_dict`."""
        if found is None:
            return None
        entropy = found.get("content_entropy") or found.get("entropy") or {}
        passed = (found.get("pass_at") or {}).get("accuracy")
        return cls(found["accuracy"], passed, found["samples"], entropy.get("nats"))


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        seed: Its seed.
        accuracy: (optimiser step, accuracy of greedy answers to held-out problems), from step 0 on.
        seconds: Of its steps: sampling, grading, teachers, forward and backward, without the optimiser and evaluation.
        versions: Of the libraries.
        before, after: Sampled answers before and after training; None where not measured.
    """

    seed: int
    accuracy: list[tuple[int, float]]
    seconds: float
    versions: dict[str, str] = field(default_factory=dict)
    before: Sampled | None = None
    after: Sampled | None = None

    @property
    def sampled(self) -> float | None:
        """Accuracy of sampled answers after the last step."""
        return None if self.after is None else self.after.accuracy

    @property
    def pass_at(self) -> float | None:
        """The chance that one of k sampled answers is correct, after the last step."""
        return None if self.after is None else self.after.pass_at

    @property
    def final(self) -> float:
        """Accuracy after the last step."""
        return self.accuracy[-1][1]

    @property
    def early(self) -> float:
        """Mean height of the accuracy curve over the first half of training."""
        return self._height(self.accuracy[-1][0] / 2)

    @property
    def average(self) -> float:
        """Mean height of the whole curve, the measure with the least noise."""
        return self._height(self.accuracy[-1][0])

    def _height(self, end: float) -> float:
        if end == 0:
            return self.final
        steps, values = zip(*self.accuracy, strict=True)
        grid = sorted({step for step in steps if step <= end} | {end})
        return float(np.trapezoid(np.interp(grid, steps, values), grid) / end)

    def as_dict(self) -> dict[str, Any]:
        """For compare.json."""
        return {name: value for name, value in asdict(self).items() if name != "versions"}


def load_run(folder: Path) -> Run:
    """A finished run of `cepo train`."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    accuracy = [(entry["step"], entry["accuracy"]) for entry in summary["accuracy"]]
    times = [entry["step_time"] for entry in history if "step_time" in entry]  # means over logging intervals
    before, after = (Sampled.read((summary.get(when) or {}).get("sampled")) for when in ("before", "after"))
    seconds = fmean(times) * summary["steps"]
    return Run(summary["seed"], accuracy, seconds, summary.get("versions", {}), before, after)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval (Student's t); NaN bounds where the seeds have no spread."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """From one value for each seed."""
        mean = fmean(values)
        if max(values) - min(values) < 1e-12:  # accuracies are fractions: a few seeds may agree
            return cls(mean, math.nan, math.nan)
        half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
        return cls(mean, mean - half, mean + half)

    def as_dict(self) -> dict[str, float | None]:
        """For JSON, which has no NaN."""
        return {name: None if value != value else value for name, value in vars(self).items()}


# A mean over seeds as `Estimate.as_dict` has it; None where some run lacks the measure.
Mean = dict[str, float | None] | None


def _mean(values: Sequence[float | None]) -> Mean:
    known = [value for value in values if value is not None]
    return Estimate.of(known).as_dict() if len(known) == len(values) else None


def paired_differences(runs: Sequence[Run], reference: Sequence[Run]) -> dict[str, Mean] | None:
    """The mean difference to another arm's runs of the same seeds, for each measure; None without a shared seed."""
    others = {run.seed: run for run in reference}
    pairs = [(run, others[run.seed]) for run in runs if run.seed in others]

    def difference(one: float | None, other: float | None) -> float | None:
        return None if one is None or other is None else one - other

    if not pairs:
        return None
    return {m: _mean([difference(getattr(run, m), getattr(its, m)) for run, its in pairs]) for m in MEASURES}


def summarise(arms: Mapping[str, Sequence[Run]]) -> list[dict[str, Any]]:
    """One row for each arm that has runs, the untrained policy first.

    Args:
        arms: The finished runs of each arm.

    Returns:
        Rows of `name`, `seeds`, each of `MEASURES`, `k` (of pass@k) and `seconds`, and against GRPO's runs of the same
        seeds `pairs`, `paired_difference_to_grpo` and `seconds_ratio`. The last two are None where no seed is shared, a
        measure where some run lacks it; GRPO has no difference to itself.
    """
    reference = {run.seed: run for run in arms.get(REFERENCE, [])}
    # A seed's untrained policy is the reference's where there is one; all arms should have the same.
    everyone = (*(run for runs in arms.values() for run in runs), *reference.values())
    untrained = {run.seed: Run(run.seed, run.accuracy[:1], 0.0, after=run.before) for run in everyone}
    rows: list[dict[str, Any]] = []
    for name, runs in {BASE: list(untrained.values()), **arms}.items():
        if not runs:
            continue
        pairs = [(run, reference[run.seed]) for run in runs if run.seed in reference]
        rows.append(
            {
                "name": name,
                "seeds": len(runs),
                **{measure: _mean([getattr(run, measure) for run in runs]) for measure in MEASURES},
                "k": next((run.after.k for run in runs if run.after), None),
                "seconds": fmean(run.seconds for run in runs),
                "pairs": len(pairs),
                "paired_difference_to_grpo": None
                if name == REFERENCE
                else paired_differences(runs, list(reference.values())),
                "seconds_ratio": fmean(run.seconds / its.seconds for run, its in pairs) if pairs else None,
            }
        )
    return rows


def measure_names(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The measures that some row has, and their headings."""
    sizes = sorted({row["k"] for row in rows if row.get("k")})
    names = {"sampled": "sampled", "pass_at": f"pass@{' or '.join(map(str, sizes))}"}
    return {measure: names.get(measure, measure) for measure in MEASURES if any(row.get(measure) for row in rows)}


def band(runs: Sequence[Run]) -> list[tuple[int, Estimate]]:
    """Mean accuracy at each evaluated step and its interval over seeds."""
    steps = sorted({step for run in runs for step, _ in run.accuracy})
    return [(step, Estimate.of([value for run in runs for at, value in run.accuracy if at == step])) for step in steps]


def percent(estimate: Mapping[str, float | None] | None, *, signed: bool = False) -> str:
    """A mean and its interval in percent, "" for None."""
    if estimate is None or estimate["mean"] is None:
        return ""
    mean, low, high = (in_percent(estimate[name], signed=signed) for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]" if low and high else mean


def in_percent(share: float | None, *, signed: bool = False) -> str:
    """To a tenth, "" for None. 100 * 0.2375 is 23.749999999999996, and means 23.75."""
    return "" if share is None else format(round(100 * share, 9), "+.1f" if signed else ".1f")
