"""A learning rate for each arm, chosen on seeds that are not reported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, TextIO

from rich.console import Console

from cepo.compare.jobs import Job, job_of, run_all
from cepo.compare.statistics import in_percent, load_run

FIRST_SEED = 1000  # far from the reported ones


@dataclass
class Tried:
    """The trials of one arm.

    Attributes:
        jobs: The runs with each learning rate.
        scores: Average accuracy with each learning rate of which no run failed.
    """

    jobs: dict[float, list[Job]] = field(default_factory=dict)
    scores: dict[float, float] = field(default_factory=dict)

    @property
    def best(self) -> float | None:
        """The learning rate with the highest score."""
        return max(self.scores, key=self.scores.__getitem__, default=None)

    def note(self, name: str) -> str:
        """The choice in words: average accuracy in percent, on the tuning seeds."""
        if self.best is None:
            return f"{name}: no run of any learning rate finished"
        listing = ", ".join(f"{rate:g}: {in_percent(score)}" for rate, score in sorted(self.scores.items()))
        edge = "" if further_rate(list(self.jobs), self.best) is None else " It is an outermost one."
        return f"{name}: learning rate {self.best:g} (average accuracy on other seeds: {listing}).{edge}"


def further_rate(tried: Sequence[float], best: float | None) -> float | None:
    """The next rate outwards, in the ratio of the outermost two, if the best is an outermost one; else None."""
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
) -> dict[str, Tried]:
    """Try every arm with every learning rate, and with further ones while its best is an outermost one.

    Args:
        arms: The options of each arm.
        rates: Learning rates.
        seeds: On how many seeds, from `FIRST_SEED` on.
        beyond: How many further rates an arm may get.
        folder: Where; finished runs are kept.
        jobs, lock, console: As for `run_all`.
    """
    tried = {name: Tried() for name in arms}
    wanted = {name: list(rates) for name in arms}
    for _ in range(1 + beyond):
        work = []
        for name, of_arm in wanted.items():
            for rate in of_arm:
                options = {**arms[name], "learning_rate": rate}
                trials = [job_of(folder, f"{name}-{rate:g}", options, FIRST_SEED + seed) for seed in range(seeds)]
                tried[name].jobs[rate] = trials
                work += trials
        if work:
            run_all(work, jobs, lock, console)
        for found in tried.values():
            for rate, trials in found.jobs.items():
                if all(job.done for job in trials):
                    found.scores[rate] = fmean(load_run(job.folder).average for job in trials)
        outwards = {name: further_rate(list(found.jobs), found.best) for name, found in tried.items()}
        wanted = {name: [rate] for name, rate in outwards.items() if rate is not None}
    return tried
