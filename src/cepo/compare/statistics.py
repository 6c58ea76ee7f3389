"""What several runs of several arms say: means over seeds, paired differences, and their intervals.

An arm is a way to train; its runs differ in the seed alone. Runs of one seed share data order, initial weights and
evaluation problems, so arms are compared seed by seed.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from scipy.stats import bootstrap, ttest_1samp

from ..inspection.tables import markdown_table

REFERENCE = "grpo"
# Of greedy answers; the first one is what a comparison is about.
MEASURES = ("final", "early", "average")
# Of sampled answers after training, and how to call them.
SAMPLED = ("sampled", "pass_at")
NAMES = {"final": "final, greedy", "early": "early, greedy", "average": "average, greedy", "sampled": "sampled"}
BASE, TEMPERED = "base", "tempered"

# What is drawn over training beside accuracy: TRL's and our metrics, and how to call them.
CURVES = {
    "entropy": "entropy in the update, nats a token",
    "completions/mean_length": "completion length, tokens",
    "frac_reward_zero_std": "groups without variance, share",
    "cepo/credit/at_bound": "tokens at a bound, share",
}


@dataclass(frozen=True)
class Sampled:
    """What sampled answers of a policy show.

    Attributes:
        accuracy: Of one answer.
        pass_at: The chance that one of `k` is right; None where there is one answer to a problem.
        k: Answers to each problem.
        entropy: At the tokens that carry the solution where the task knows them, else at all [nats a token].
    """

    accuracy: float
    pass_at: float | None
    k: int
    entropy: float | None

    @classmethod
    def read(cls, found: Mapping[str, Any] | None) -> "Sampled | None":
        """From the `sampled` part of a summary.json, which `Evaluation.as_dict` made."""
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
        seconds: Of its steps: sampling, grading, teachers, forward and backward. The optimiser's own and evaluation
            are left out.
        curves: Metrics over steps, by their names in `CURVES`.
        versions: Of the libraries it ran with; empty where it did not say.
        before, after: Of sampled answers before and after training; None where these were not measured.
    """

    seed: int
    accuracy: list[tuple[int, float]]
    seconds: float
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    before: Sampled | None = None
    after: Sampled | None = None

    @property
    def sampled(self) -> float | None:
        """Accuracy of sampled answers after the last step."""
        return None if self.after is None else self.after.accuracy

    @property
    def pass_at(self) -> float | None:
        """The chance that one of several sampled answers is right, after the last step."""
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
        """Mean height of the whole curve: of all measures the one with the least noise."""
        return self._height(self.accuracy[-1][0])

    def _height(self, end: float) -> float:
        if end == 0:
            return self.final
        steps, values = zip(*self.accuracy, strict=True)
        grid = sorted({step for step in steps if step <= end} | {end})
        return float(np.trapezoid(np.interp(grid, steps, values), grid) / end)


def load_run(folder: Path) -> Run:
    """A finished run of `cepo train`."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    curves = {
        name: [(entry["step"], entry[name]) for entry in history if entry.get(name) is not None] for name in CURVES
    }
    accuracy = [(entry["step"], entry["accuracy"]) for entry in summary["accuracy"]]
    times = [entry["step_time"] for entry in history if "step_time" in entry]  # each a mean over a logging interval
    seconds = fmean(times) * summary["steps"]
    curves = {name: points for name, points in curves.items() if points}
    before, after = (Sampled.read((summary.get(when) or {}).get("sampled")) for when in ("before", "after"))
    return Run(summary["seed"], accuracy, seconds, curves, summary.get("versions", {}), before, after)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with 95 % intervals; NaN bounds where the seeds show no spread, as a single one, or equal ones.

    Attributes:
        mean: The mean.
        low, high: Student's t interval, the one that is printed.
        bootstrap_low, bootstrap_high: By resampling seeds (BCa). Of so few values it is too narrow: of normal ones it
            holds the mean in 85 % of cases for 5 seeds and in 91 % for 16.
    """

    mean: float
    low: float
    high: float
    bootstrap_low: float
    bootstrap_high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """From one value for each seed."""
        mean = fmean(values)
        if max(values) - min(values) < 1e-12:  # accuracies are fractions: few seeds agree by chance
            return cls(mean, *[math.nan] * 4)
        within = ttest_1samp(values, 0.0).confidence_interval(0.95)
        drawn = bootstrap((np.asarray(values),), np.mean, n_resamples=9999, rng=np.random.default_rng(0))
        around = drawn.confidence_interval
        return cls(mean, *map(float, (within.low, within.high, around.low, around.high)))

    def as_dict(self) -> dict[str, float | None]:
        return {name: None if value != value else value for name, value in vars(self).items()}


def summarise(arms: Mapping[str, Sequence[Run]]) -> list[dict[str, Any]]:
    """One row for each arm that has runs, the untrained policy first.

    Args:
        arms: The finished runs of each arm.

    Returns:
        Rows of `name`, `seeds`, `final`, `early`, `average`, `sampled`, `pass_at` (with its `k`) and `seconds`, and,
        against GRPO's runs of the same seeds, `pairs`, `paired_difference_to_grpo` (of each measure) and
        `seconds_ratio`. The last two are None where no seed is shared, a measure where some run lacks it; GRPO has no
        difference to itself.
    """
    reference = {run.seed: run for run in arms.get(REFERENCE, [])}
    # A seed's untrained policy is the reference's where there is one; all arms should have the same.
    everyone = (*(run for runs in arms.values() for run in runs), *reference.values())
    untrained = {run.seed: Run(run.seed, run.accuracy[:1], 0.0, after=run.before) for run in everyone}
    rows: list[dict[str, Any]] = []
    for name, runs in {BASE: list(untrained.values()), **arms}.items():
        if not runs:
            continue
        row: dict[str, Any] = {"name": name, "seeds": len(runs)}
        for measure in (*MEASURES, *SAMPLED):
            row[measure] = _mean([getattr(run, measure) for run in runs])
        row["k"] = next((run.after.k for run in runs if run.after), None)
        row["seconds"] = fmean(run.seconds for run in runs)
        pairs = [(run, reference[run.seed]) for run in runs if run.seed in reference]
        row["pairs"] = len(pairs)
        row["paired_difference_to_grpo"] = row["seconds_ratio"] = None
        if pairs:
            row["seconds_ratio"] = fmean(run.seconds / its.seconds for run, its in pairs)
        if pairs and name != REFERENCE:
            row["paired_difference_to_grpo"] = {
                measure: _mean([_minus(getattr(run, measure), getattr(its, measure)) for run, its in pairs])
                for measure in (*MEASURES, *SAMPLED)
            }
        rows.append(row)
    return rows


def differences_to(
    runs: Sequence[Run], arms: Mapping[str, Sequence[Run]], measure: str = "sampled"
) -> dict[str, dict[str, float | None]]:
    """Of each arm the mean difference to some runs, paired by seed; arms without such pairs are left out."""
    reference = {run.seed: getattr(run, measure) for run in runs}
    found = {
        name: _mean([_minus(getattr(run, measure), reference[run.seed]) for run in own if run.seed in reference])
        for name, own in arms.items()
        if any(run.seed in reference for run in own)
    }
    return {name: difference for name, difference in found.items() if difference is not None}


def others_named(names: Any, known: Sequence[str], called: str, *, always: Sequence[str] = ()) -> list[str]:
    """What all are held against beside GRPO, each once.

    Args:
        names: As the user wrote them.
        known: Those there are.
        called: What they are: arms, placements.
        always: Those that are there without being named.

    Raises:
        ValueError: Naming what is no such name.
    """
    if not isinstance(names, list):
        raise ValueError(f"against must be a list of {called}s, not {names!r}")
    for name in names:
        if name not in (*always, *known):
            raise ValueError(f"against: there is no {called} {name!r}, only {', '.join(known)}")
    return [name for name in dict.fromkeys(names) if name != REFERENCE]


def ahead_of(name: str, called: str, ahead: Mapping[str, Mapping[str, float | None]]) -> str:
    """A line of what `differences_to` found in one measure."""
    listed = "; ".join(f"{arm} {percent(difference, signed=True)}" for arm, difference in ahead.items())
    return f"{called}, points ahead of {name}, paired by seed: {listed}."


def against_table(name: str, ahead: Mapping[str, Mapping[str, Any]], named: Mapping[str, str]) -> str:
    """Points ahead of one arm, in Markdown.

    Args:
        name: That arm.
        ahead: measure -> what `differences_to` found.
        named: The measures, and how to call them.
    """
    arms = dict.fromkeys(arm for found in ahead.values() for arm in found)
    lines = [
        [arm, *(percent(ahead[measure].get(arm), signed=True) if measure in ahead else "" for measure in named)]
        for arm in arms
    ]
    return markdown_table((f"minus {name}, paired by seed", *named.values()), lines)


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _mean(values: Sequence[float | None]) -> dict[str, float | None] | None:
    known = [value for value in values if value is not None]
    return Estimate.of(known).as_dict() if len(known) == len(values) else None


def measure_names(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The measures that some row has, and how to call them."""
    sizes = sorted({row["k"] for row in rows if row.get("k")})
    names = {**NAMES, "pass_at": f"pass@{' or '.join(map(str, sizes))}"}
    return {measure: name for measure, name in names.items() if any(row.get(measure) for row in rows)}


def band(runs: Sequence[Run]) -> list[tuple[int, Estimate]]:
    """Mean accuracy at each evaluated step and its interval over seeds."""
    steps = sorted({step for run in runs for step, _ in run.accuracy})
    return [(step, Estimate.of([value for run in runs for at, value in run.accuracy if at == step])) for step in steps]


def of_shared_seeds(arms: Mapping[str, Sequence[Run]]) -> dict[str, list[Run]]:
    """The runs of the seeds that every arm with runs has. Seeds differ by more than arms do, in some metrics."""
    seeds = [{run.seed for run in runs} for runs in arms.values() if runs]
    shared = set.intersection(*seeds) if seeds else set()
    return {name: [run for run in runs if run.seed in shared] for name, runs in arms.items()}


def mean_curves(runs: Sequence[Run]) -> dict[str, list[tuple[int, float]]]:
    """Each metric of `CURVES` over steps, a mean over the runs that have it."""
    curves = {}
    for metric in CURVES:
        seen: dict[int, list[float]] = {}
        for step, value in (point for run in runs for point in run.curves.get(metric, [])):
            seen.setdefault(step, []).append(value)
        if seen:
            curves[metric] = [(step, fmean(seen[step])) for step in sorted(seen)]
    return curves


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows in Markdown; accuracies and differences in percent."""
    measures = measure_names(rows)
    heads = [*measures.values(), *(f"{name}, minus GRPO" for name in measures.values())]
    lines = []
    for row in rows:
        differences = row["paired_difference_to_grpo"] or {}
        cells = [
            row["name"],
            str(row["seeds"]),
            *(percent(row[measure]) for measure in measures),
            *(percent(differences.get(measure), signed=True) for measure in measures),
            f"{row['seconds']:.0f}",
            "" if row["seconds_ratio"] is None else f"{row['seconds_ratio']:.2f}",
        ]
        lines.append(cells)
    return markdown_table(("arm", "seeds", *heads, "seconds", "of GRPO's"), lines)


def percent(estimate: Mapping[str, float | None] | None, *, signed: bool = False) -> str:
    """A mean and its interval in percent, "" for None."""
    if estimate is None or estimate["mean"] is None:
        return ""

    mean, low, high = (share_in_percent(estimate[name], signed=signed) for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]" if low and high else mean


def share_in_percent(share: float | None, *, signed: bool = False) -> str:
    """To a tenth, "" for None. 100 * 0.2375 is 23.749999999999996, and means 23.75."""
    return "" if share is None else format(round(100 * share, 9), "+.1f" if signed else ".1f")
