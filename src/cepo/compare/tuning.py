"""A learning rate for each arm of `cepo compare`, chosen on seeds that are not reported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, TextIO

from rich.console import Console

from .jobs import Job, job_of, run_all
from .statistics import load_run, share_in_percent

# Far from those that are reported.
FIRST_SEED = 1000


@dataclass(frozen=True)
class Tuning:
    """What is tried.

    Attributes:
        rates: Learning rates for every arm; empty: each arm has its own, and nothing is tried.
        seeds: On how many seeds.
        beyond: How often an arm whose best rate is the first or the last of those tried gets a further one.
    """

    rates: list[float]
    seeds: int = 2
    beyond: int = 0

    @property
    def seed_numbers(self) -> range:
        return range(FIRST_SEED, FIRST_SEED + self.seeds)


@dataclass
class Tried:
    """What one arm was tried with.

    Attributes:
        jobs: The runs with each learning rate.
        scores: Average accuracy with each learning rate of which no run failed.
    """

    jobs: dict[float, list[Job]] = field(default_factory=dict)
    scores: dict[float, float] = field(default_factory=dict)

    @property
    def best(self) -> float | None:
        """The best of the learning rates."""
        return max(self.scores, key=self.scores.__getitem__, default=None)

    def score(self) -> None:
        """Read what the runs that are done have reached."""
        for rate, jobs in self.jobs.items():
            if all(job.done for job in jobs):
                self.scores[rate] = fmean(load_run(job.folder).average for job in jobs)


def parse_rates(given: str | list[Any] | None) -> list[float]:
    """Learning rates from ``1e-4,3e-4`` or a list.

    Raises:
        ValueError: If they are not numbers above 0.
    """
    try:
        rates = [float(part) for part in (given.split(",") if isinstance(given, str) else given or [])]
    except (TypeError, ValueError) as error:
        raise ValueError(f"tune_learning_rate: {given!r} is not a list of numbers") from error
    if any(not rate > 0 for rate in rates):
        raise ValueError(f"tune_learning_rate: rates must be above 0, got {given!r}")
    return rates


def further_rate(tried: Sequence[float], best: float | None) -> float | None:
    """The next rate outwards, in the ratio of the outermost two, if the best is an outermost one; else None."""
    rates = sorted(set(tried))
    if len(rates) < 2 or best not in (rates[0], rates[-1]):
        return None
    inner = rates[1] if best == rates[0] else rates[-2]
    return float(f"{best * best / inner:.6g}")


def tune(
    arms: Mapping[str, dict[str, Any]],
    tuning: Tuning,
    folder: Path,
    jobs: int | None,
    lock: TextIO,
    console: Console,
) -> dict[str, Tried]:
    """Try every arm with every learning rate, and with further ones while its best is an outermost one.

    Args:
        arms: The options of each arm.
        tuning: What to try.
        folder: Where; runs that are there are not run again.
        jobs, lock, console: As for `run_all`.
    """
    tried = {name: Tried() for name in arms}
    wanted = {name: list(tuning.rates) for name in arms}
    for _ in range(1 + tuning.beyond):
        work = []
        for name, rates in wanted.items():
            for rate in rates:
                options = {**arms[name], "learning_rate": rate}
                trials = [job_of(folder, f"{name}-{rate:g}", options, seed) for seed in tuning.seed_numbers]
                tried[name].jobs[rate] = trials
                work += trials
        if work:
            run_all(work, jobs, lock, console)
        for found in tried.values():
            found.score()
        outwards = {name: further_rate(list(found.jobs), found.best) for name, found in tried.items()}
        wanted = {name: [rate] for name, rate in outwards.items() if rate is not None}
    return tried


def rate_note(name: str, tried: Tried) -> str:
    """What was chosen, from what: average accuracy in percent, on the seeds that are not reported."""
    best = tried.best
    if best is None:
        return f"{name}: no learning rate went through"
    listing = ", ".join(f"{rate:g}: {share_in_percent(score)}" for rate, score in sorted(tried.scores.items()))
    edge = "" if further_rate(list(tried.jobs), best) is None else " It is the last of those tried."
    return f"{name}: learning rate {best:g} (average accuracy on other seeds: {listing}).{edge}"
