"""Choose a learning rate for each arm, on seeds that are not reported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, TextIO

from rich.console import Console

from cepo.compare.jobs import Job, job_of, run_all
from cepo.compare.statistics import in_percent, load_run

FIRST_SEED = 1000


@dataclass
class Trials:
    """The tuning runs of one arm.

    Attributes:
        jobs: The runs with each learning rate.
        scores: Average accuracy of each learning rate whose runs all finished.
    """

    jobs: dict[float, list[Job]] = field(default_factory=dict)
    scores: dict[float, float] = field(default_factory=dict)

    @property
    def best(self) -> float | None:
        """The learning rate with the highest score."""
        return max(self.scores, key=self.scores.__getitem__, default=None)

    def note(self, name: str) -> str:
        """The choice in a sentence: average accuracy [%] of each rate."""
        if self.best is None:
            return f"{name}: no run of any learning rate finished"
        listing = ", ".join(f"{rate:g}: {in_percent(score)}" for rate, score in sorted(self.scores.items()))
        edge = "" if further_rate(list(self.jobs), self.best) is None else " It is at the edge of the grid."
        return f"{name}: learning rate {self.best:g} (average accuracy on other seeds: {listing}).{edge}"


def further_rate(tried: Sequence[float], best: float | None) -> float | None:
    """The next rate beyond the edge of the grid if the best is at the edge, by the ratio of the last two; else None."""
    rates = sorted(set(tried))
    if len(rates) < 2 or best not in (rates[0], rates[-1]):
        return None
    inner = rates[1] if best == rates[0] else rates[-2]
    return float(f"{best * best / inner:.6g}")


def tune(
    arms: Mapping[str, dict[str, Any]],
    rates: Sequence[float],
    seeds: int,
    beyond: int,
    folder: Path,
    jobs: int,
    lock: TextIO,
    console: Console,
) -> dict[str, Trials]:
    """Run every arm with every learning rate, and with further ones while its best is at the edge of the grid.

    Args:
        arms: The options of each arm.
        rates: The grid.
        seeds: Number of seeds, from `FIRST_SEED` on.
        beyond: Most further rates of an arm.
        folder: Holds the runs; finished ones are reused.
        jobs, lock, console: As for `run_all`.
    """
    trials = {name: Trials() for name in arms}
    pending = {name: list(rates) for name in arms}
    for _ in range(1 + beyond):
        work = []
        for name, new in pending.items():
            for rate in new:
                options = {**arms[name], "learning_rate": rate}
                runs = [job_of(folder, f"{name}-{rate:g}", options, FIRST_SEED + seed) for seed in range(seeds)]
                trials[name].jobs[rate] = runs
                work += runs
        if work:
            run_all(work, jobs, lock, console)
        for arm in trials.values():
            for rate, runs in arm.jobs.items():
                if all(job.done for job in runs):
                    arm.scores[rate] = fmean(load_run(job.folder).average for job in runs)
        outer = {name: further_rate(list(arm.jobs), arm.best) for name, arm in trials.items()}
        pending = {name: [rate] for name, rate in outer.items() if rate is not None}
    return trials
