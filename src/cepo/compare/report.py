"""The report of a comparison: compare.json, tables and a figure."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..data.files import write_whole
from ..inspection.pictures import plain_text
from ..inspection.tables import counted, markdown_table, plain_table
from .arms import Comparison, grouped
from .jobs import Job
from .statistics import GREEDY, MEASURES, Run, band, paired_differences, percent, summarize

# Differences to each further reference arm, by measure and arm.
Against = dict[str, dict[str, dict[str, Any]]]


def print_arms(comparison: Comparison, console: Console) -> None:
    """Print the options of all arms and of each arm, their differences, and the notes."""
    console.print(f"all arms: {_listing(comparison.base)}")
    for arm in comparison.arms:
        own = {name: value for name, value in arm.options.items() if comparison.base.get(name) != value}
        console.print(f"{arm.name}: {_listing(own) or 'no further options'}")
    for line in [*_difference_lines(comparison), *(f"- {note}" for note in comparison.notes)]:
        console.print(line)


def report(
    folder: Path,
    comparison: Comparison,
    runs: Mapping[str, Sequence[Run]],
    failed: Sequence[Job],
    console: Console,
    *,
    notes: Sequence[str] = (),
    **more: Any,
) -> None:
    """Write compare.json, compare.md and compare.png, and print the table.

    Args:
        folder: Folder of the files.
        comparison: The comparison.
        runs: The finished runs of each arm.
        failed: The failed runs.
        console: Prints the table.
        notes: Lines to add to the comparison's notes.
        more: Keys to add to compare.json.
    """
    rows = summarize(runs)
    measures = [measure for measure in MEASURES if any(row[measure] for row in rows)]
    against = differences_to(comparison.against, runs, measures)
    versions = list(
        {str(run.versions): run.versions for of_arm in runs.values() for run in of_arm if run.versions}.values()
    )
    notes = [*comparison.notes, *notes, *(f"{job.arm}, seed {job.seed}, failed: {job.failure}" for job in failed)]
    if len(versions) > 1:
        notes.append(f"The runs used different versions: {'; '.join(map(_listing, versions))}.")
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
    listed = [f"- {note}" for note in notes]
    page = [markdown_table(*table_lines(rows, against)), *listed, "", *_difference_lines(comparison), ""]
    write_whole(folder / "compare.md", "\n".join(page))
    if rows:
        draw_comparison({name: found for name, found in runs.items() if found}, rows, folder / "compare.png")
        console.print(comparison_table(rows, against), soft_wrap=False)
    else:
        console.print("No run finished.")
    console.print("\n".join(listed))
    console.print(f"report: {folder / 'compare.md'}")


def differences_to(names: Sequence[str], runs: Mapping[str, Sequence[Run]], measures: Sequence[str]) -> Against:
    """The other arms' paired differences to each named arm with runs."""
    found: Against = {}
    for name in names:
        if runs.get(name):
            others = {arm: paired_differences(own, runs[name]) for arm, own in runs.items() if arm != name}
            found[name] = {m: {arm: one[m] for arm, one in others.items() if one and one[m]} for m in measures}
    return found


def _listing(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())


def _difference_lines(comparison: Comparison) -> list[str]:
    lines = [f"- {option}: {grouped(values)}" for option, values in comparison.differences.items()]
    return ["Options that differ between arms:", *lines] if lines else []


def table_lines(rows: Sequence[Mapping[str, Any]], against: Against) -> tuple[list[str], list[list[str]]]:
    """Column heads and lines, one for each arm and measure; accuracies and differences in percent."""
    heads = ["arm", "seeds", "", "accuracy, %", "minus GRPO", *(f"minus {name}" for name in against), "time"]
    sizes = " or ".join(map(str, sorted({row["k"] for row in rows if row["k"]})))
    lines = []
    for row in rows:
        differences = row["paired_difference_to_grpo"] or {}
        first = [row["name"], str(row["seeds"])]
        ratio = "" if row["seconds_ratio"] is None else f"{row['seconds_ratio']:.2f}"
        for measure in MEASURES:
            if any(other[measure] for other in rows):
                label = f"pass@{sizes}" if measure == "pass_at" else measure
                further = (found.get(measure, {}).get(row["name"]) for found in against.values())
                shown = [percent(one, signed=True) for one in (differences.get(measure), *further)]
                lines.append([*first, label, percent(row[measure]), *shown, ratio])
                first, ratio = ["", ""], ""
    return heads, lines


def comparison_table(rows: Sequence[Mapping[str, Any]], against: Against) -> Table:
    """The table for a terminal of 80 columns, or more with `against`."""
    heads, lines = table_lines(rows, against)
    table = plain_table(
        "means over seeds, 95 % intervals; differences: paired by seed; time: relative to GRPO\n"
        "final, early, average: greedy answers; sampled and pass@k: after training"
    )
    for index, name in enumerate(heads):
        table.add_column(Text(name), overflow="fold", no_wrap=index > 0 and not against)
    for line, following in zip(lines, [*lines[1:], [""]], strict=True):
        table.add_row(*map(Text, line), end_section=bool(following[0]))
    return table


@plain_text
def draw_comparison(arms: Mapping[str, Sequence[Run]], rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw each arm's greedy accuracy over steps and, below, its paired differences to GRPO with 95 % intervals."""
    from matplotlib import colormaps, pyplot

    compared = [row for row in rows if row["paired_difference_to_grpo"]]
    heights = [max(3.5, 0.2 * len(arms) + 0.8), 0.42 * len(compared) + 0.9]
    figure = pyplot.figure(figsize=(10, sum(heights)), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=heights)  # type: ignore[misc]
    # tab20: ten saturated colors, then ten light ones. The untrained policy has no curve.
    colors = {name: colormaps["tab20"](2 * (number % 10) + number // 10 % 2) for number, name in enumerate(arms)}
    curves = above.subplots()
    best_first = sorted(arms, key=lambda name: -band(arms[name])[-1][1].mean)
    for name in best_first:
        steps, means = zip(*((step, 100 * one.mean) for step, one in band(arms[name])), strict=True)
        line = ("-", "--", "-.", ":")[list(arms).index(name) % 4]
        label = textwrap.fill(f"{name} ({counted(len(arms[name]), 'seed')})", 36, break_on_hyphens=False)
        curves.plot(steps, means, line, color=colors[name], label=label)
    curves.set(xlabel="optimizer step", ylabel="greedy accuracy, mean over seeds, %")
    curves.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9)
    differences = below.subplots()
    for measure, shape, shift in zip(GREEDY, ("o", "s", "D"), (-0.22, 0.0, 0.22), strict=True):
        for index, row in enumerate(compared):
            mean, low, high = (row["paired_difference_to_grpo"][measure][part] for part in ("mean", "low", "high"))
            error = None if low is None else [[100 * (mean - low)], [100 * (high - mean)]]
            style = {"fmt": shape, "markersize": 5, "capsize": 3, "color": colors.get(row["name"], "#000")}
            differences.errorbar(100 * mean, index + shift, xerr=error, **style)
        differences.plot([], [], shape, color="#555", markersize=5, label=measure)
    differences.axvline(0, color="#999", linewidth=1)
    differences.set_xlabel("greedy accuracy minus GRPO's, points, paired by seed, 95 % CI")
    differences.set_yticks(
        range(len(compared)), [textwrap.fill(row["name"], 36, break_on_hyphens=False) for row in compared]
    )
    differences.set_ylim(len(compared) - 0.5, -0.5)
    below.legend(*differences.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    for axis in (curves, differences):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
