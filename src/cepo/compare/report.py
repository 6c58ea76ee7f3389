"""The results of a comparison: compare.json, tables and a picture."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from ..data.files import write_whole
from ..inspection.pictures import plain_text
from ..inspection.tables import counted, markdown_table, plain_table
from .arms import Comparison, grouped
from .jobs import Job
from .statistics import (
    GREEDY,
    Run,
    band,
    measure_names,
    paired_differences,
    percent,
    summarise,
)

# For each arm of `against`, each measure's difference to it, by arm.
Against = dict[str, dict[str, dict[str, Any]]]


def write_report(
    folder: Path,
    comparison: Comparison,
    runs: Mapping[str, Sequence[Run]],
    failed: Sequence[Job],
    *,
    notes: Sequence[str] = (),
    **more: Any,
) -> tuple[list[dict[str, Any]], Against, list[str]]:
    """Write compare.json, compare.md and, if any run finished, compare.png.

    Args:
        folder: Where.
        comparison: The comparison.
        runs: The finished runs of each arm.
        failed: The runs that failed.
        notes: Further notes.
        more: Further keys of compare.json.

    Returns:
        The rows of `summarise`, the differences to the arms of `against`, and all notes.
    """
    rows = summarise(runs)
    against = differences_to(comparison.against, runs, list(measure_names(rows)))
    versions: list[dict[str, str]] = []
    for run in (run for of_arm in runs.values() for run in of_arm):
        if run.versions and run.versions not in versions:
            versions.append(run.versions)
    notes = [
        *comparison.notes,
        *notes,
        *(f"{job.arm}, seed {job.seed}, failed: {job.failure}" for job in failed),
        *(
            [f"The runs were made with different versions: {'; '.join(map(listing, versions))}."]
            if versions[1:]
            else []
        ),
    ]
    result = {
        "arms": rows,
        "options": {arm.name: arm.options for arm in comparison.arms},
        "against": against,
        "differences": comparison.differences,
        **more,
        "failed": [{"arm": job.arm, "seed": job.seed, "reason": job.failure} for job in failed],
        "notes": notes,
        "runs": {name: [run.as_dict() for run in found] for name, found in runs.items()},
        "versions": versions,
    }
    write_whole(folder / "compare.json", json.dumps(result, indent=1, default=str) + "\n")
    lines = [*(f"- {note}" for note in notes), "", *difference_lines(comparison)]
    table = markdown_table(*table_lines(rows, against))
    write_whole(folder / "compare.md", "\n".join([table, *lines, ""]))
    if rows:
        draw_comparison({name: found for name, found in runs.items() if found}, rows, folder / "compare.png")
    return rows, against, notes


def differences_to(names: Sequence[str], runs: Mapping[str, Sequence[Run]], measures: Sequence[str]) -> Against:
    """For each of these arms that has runs, the other arms' paired differences to it, by measure and arm."""
    found: Against = {}
    for name in names:
        if runs.get(name):
            others = {arm: paired_differences(own, runs[name]) for arm, own in runs.items() if arm != name}
            found[name] = {m: {arm: one[m] for arm, one in others.items() if one and one[m]} for m in measures}
    return found


def listing(options: Mapping[str, Any]) -> str:
    """Options as text."""
    return ", ".join(f"{name}={value!r}" for name, value in options.items())


def difference_lines(comparison: Comparison) -> list[str]:
    """A line for each option in which the arms differ, including what their methods imply."""
    lines = [f"- {option}: {grouped(values)}" for option, values in comparison.differences.items()]
    return ["Options in which the arms differ:", *lines] if lines else []


def table_lines(rows: Sequence[Mapping[str, Any]], against: Against) -> tuple[list[str], list[list[str]]]:
    """Heads and lines of the table, a line for each arm and measure; accuracies and differences in percent."""
    heads = ["arm", "seeds", "", "accuracy, %", "minus GRPO", *(f"minus {name}" for name in against), "time"]
    lines = []
    for row in rows:
        differences = row["paired_difference_to_grpo"] or {}
        ratio = "" if row["seconds_ratio"] is None else f"{row['seconds_ratio']:.2f}"
        first, last = [row["name"], str(row["seeds"])], ratio
        for measure, called in measure_names(rows).items():
            beside = (found.get(measure, {}).get(row["name"]) for found in against.values())
            shown = [percent(one, signed=True) for one in (differences.get(measure), *beside)]
            lines.append([*first, called, percent(row.get(measure)), *shown, last])
            first, last = ["", ""], ""
    return heads, lines


def comparison_table(rows: Sequence[Mapping[str, Any]], against: Against) -> Table:
    """The table for the terminal; 80 columns hold it without `against`."""
    heads, lines = table_lines(rows, against)
    caption = (
        "means over seeds, 95 % intervals; differences: paired by seed; time: of GRPO's\n"
        "final, early, average: of greedy answers; sampled and pass@k: after training"
    )
    shown = plain_table(caption)
    for place, name in enumerate(heads):
        shown.add_column(Text(name), overflow="fold", no_wrap=place > 0 and not against)
    for place, cells in enumerate(lines):
        shown.add_row(*map(Text, cells), end_section=place + 1 < len(lines) and bool(lines[place + 1][0]))
    return shown


@plain_text
def draw_comparison(arms: Mapping[str, Sequence[Run]], rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the picture: greedy accuracy over steps, and paired differences to GRPO, with 95 % intervals.

    Args:
        arms: The finished runs of each arm.
        rows: Of `summarise`.
        path: The PNG file.
    """
    from matplotlib import colormaps, pyplot

    figure, (accuracy, differences) = pyplot.subplots(
        1, 2, figsize=(14, 5), width_ratios=[1.3, 1], layout="constrained"
    )
    # Ten strong colours, then ten light ones; the untrained policy has no curve.
    colours = {name: colormaps["tab20"](2 * (number % 10) + number // 10 % 2) for number, name in enumerate(arms)}
    for number, (name, runs) in enumerate(arms.items()):
        points = band(runs)
        steps = [step for step, _ in points]
        means, lows, highs = ([100 * getattr(one, part) for _, one in points] for part in ("mean", "low", "high"))
        style = ("-", "--", "-.", ":")[number % 4]
        label = f"{name} ({counted(len(runs), 'seed')})"
        accuracy.plot(steps, means, label=label, color=colours[name], linestyle=style)
        accuracy.fill_between(steps, lows, highs, color=colours[name], alpha=0.08, linewidth=0)
    accuracy.set(title="greedy held-out accuracy, %: mean and 95 % interval over seeds", xlabel="optimiser step")
    figure.legend(*accuracy.get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside upper left", ncols=6)
    compared = [row for row in rows if row["paired_difference_to_grpo"]]
    for measure, shape, shift in zip(GREEDY, ("o", "s", "D"), (-0.22, 0.0, 0.22), strict=True):
        for place, row in enumerate(compared):
            mean, low, high = (row["paired_difference_to_grpo"][measure][part] for part in ("mean", "low", "high"))
            error = None if low is None or high is None else [[100 * (mean - low)], [100 * (high - mean)]]
            marker: dict[str, Any] = {
                "fmt": shape,
                "color": colours.get(row["name"], "#000"),
                "markersize": 5,
                "capsize": 3,
            }
            differences.errorbar(100 * mean, place + shift, xerr=error, **marker)
        differences.plot([], [], shape, color="#555", markersize=5, label=measure)
    differences.axvline(0, color="#999", linewidth=1)
    names = [row["name"] for row in compared]
    title = "points ahead of GRPO (greedy answers), paired by seed, 95 %"
    differences.set(title=title, yticks=range(len(names)), yticklabels=names)
    differences.invert_yaxis()
    differences.legend(frameon=False, fontsize=8)
    for axis in (accuracy, differences):
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_fontsize(10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
