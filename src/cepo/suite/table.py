"""The suite's result in one table: for a terminal, as Markdown, as JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..inspection.tables import markdown_table
from .benchmarks import BENCHMARKS, PAPER
from .results import SCORE, Score, average_of

HEADS = ("benchmark", "problems", "right, %", "95 % interval")


def result_of(
    source: str, settings: Mapping[str, Any], scores: Sequence[Score], failed: Sequence[str]
) -> dict[str, Any]:
    """What a run of the suite found, for suite.json.

    Args:
        source: The model as the user named it.
        settings: How it was asked.
        scores: Of the benchmarks that were run.
        failed: Names of those that left no results.
    """
    average = None
    if len(scores) == len(BENCHMARKS):
        mean, low, high = average_of(scores)
        average = {"value": mean, "low": low, "high": high}
    return {
        "model": source,
        "settings": dict(settings),
        "benchmarks": [score.as_dict() for score in scores],
        "average": average,
        "failed": list(failed),
        "paper": PAPER,
    }


def rows_of(scores: Sequence[Score]) -> list[tuple[str, str, str, str]]:
    """A line for each benchmark, and one for the average if all five are there; in percent."""
    rows = [(s.name, str(s.problems), f"{100 * s.value:.2f}", _interval(*s.interval)) for s in scores]
    if len(scores) == len(BENCHMARKS):
        mean, low, high = average_of(scores)
        rows.append(("average of 5", str(sum(s.problems for s in scores)), f"{100 * mean:.2f}", _interval(low, high)))
    return rows


def _interval(low: float, high: float) -> str:
    return f"[{100 * low:.2f}, {100 * high:.2f}]"


def notes_of(scores: Sequence[Score], failed: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    """What a reader of the table has to know: settings, what is missing, what else was scored."""
    sampling = settings["sampling"]
    limit = "" if settings["limit"] is None else f" the first {settings['limit']} problems of each;"
    notes = [
        f"{settings['backend']};{limit} temperature {sampling['temperature']:g}, top-p {sampling['top_p']:g}, top-k "
        f"{sampling['top_k']}, presence penalty {sampling['presence_penalty']:g}, up to "
        f"{sampling['max_new_tokens']:,} tokens, seed {settings['seed']}."
    ]
    own = [name for name, task in settings["tasks"].items() if task != BENCHMARKS[name].task]
    if own:
        notes.append(f"Not the stock tasks: {', '.join(own)}.")
    guessed = [score.name for score in scores if score.basis == SCORE]
    if guessed:
        notes.append(f"Interval {SCORE}, lmms-eval keeping no verdicts: {', '.join(guessed)}.")
    for score in scores:
        meant = BENCHMARKS[score.name].others or {}
        for name, value in score.others.items():
            notes.append(f"{score.name}, {meant[name]} ({name}): {100 * value:.2f} %.")
    missing = [name for name in BENCHMARKS if name not in {score.name for score in scores}]
    if missing:
        notes.append(f"No average of five: {', '.join(missing)} not run{' or failed' if failed else ''}.")
    return notes


def paper_rows() -> list[tuple[str, ...]]:
    """The paper's averages of five, a line for each size."""
    return [(size, *(f"{value:.2f}" for value in averages.values())) for size, averages in PAPER.items()]


def paper_heads() -> tuple[str, ...]:
    return ("Qwen3-VL-Instruct", *next(iter(PAPER.values())))


def markdown(source: str, scores: Sequence[Score], failed: Sequence[str], settings: Mapping[str, Any]) -> str:
    """The table, its notes and the paper's averages."""
    return "\n".join(
        [
            f"Share of right answers of {source}.\n",
            markdown_table(HEADS, rows_of(scores)),
            *(f"- {note}" for note in notes_of(scores, failed, settings)),
            "\nThe paper's averages of five (it does not say which of a benchmark's scores it took):\n",
            markdown_table(paper_heads(), paper_rows()),
        ]
    )
