"""Pictures and tables of what the commands found, for people."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from ..inspection.pictures import plain_text
from ..inspection.tables import counted, plain_table
from .statistics import CURVES, MEASURES, Run, band, mean_curves, measure_names, of_shared_seeds, percent


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What `summarise` made of the arms, for a terminal of 80 columns: a line for each measure, no number cut."""
    caption = (
        "means over seeds, 95 % intervals; minus GRPO's: paired by seed; time: of GRPO's\n"
        "final, early, average: of greedy answers; sampled and pass@k: after training"
    )
    shown = plain_table(caption)
    shown.add_column("arm", overflow="fold")
    for name in ("seeds", "", "accuracy, %", "minus GRPO's", "time"):
        shown.add_column(name, no_wrap=True)
    for row in rows:
        differences = row["paired_difference_to_grpo"] or {}
        ratio = "" if row["seconds_ratio"] is None else f"{row['seconds_ratio']:.2f}"
        first = (row["name"], str(row["seeds"]), ratio)
        for measure, called in measure_names(rows).items():
            name, seeds, time = first
            own, difference = percent(row.get(measure)), percent(differences.get(measure), signed=True)
            shown.add_row(Text(name), seeds, called.removesuffix(", greedy"), own, difference, time)
            first = ("", "", "")
        shown.add_section()
    return shown


@plain_text
def draw_comparison(arms: Mapping[str, Sequence[Run]], rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the picture of `cepo compare`: accuracy over steps, differences to GRPO, and metrics over training.

    Metrics are means over the seeds that all arms have; accuracy is over all seeds of an arm.

    Args:
        arms: The finished runs of each arm.
        rows: What `summarise` made of them.
        path: The PNG file.
    """
    from matplotlib import pyplot

    shown = {
        name: label
        for name, label in CURVES.items()
        if any(name in run.curves for runs in arms.values() for run in runs)
    }
    figure = pyplot.figure(figsize=(14, 8.4), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[1.6, 1], squeeze=False)[:, 0]
    accuracy, differences = upper.subplots(1, 2, width_ratios=[1.3, 1])
    others = lower.subplots(1, max(1, len(shown)), squeeze=False)[0, : len(shown)]
    shared = of_shared_seeds(arms)
    colours = {name: _colour(number) for number, name in enumerate(arms)}
    for number, (name, runs) in enumerate(arms.items()):
        if not runs:
            continue
        style: dict[str, Any] = {"color": colours[name], "linestyle": ("-", "--", "-.", ":")[number % 4]}
        points = band(runs)
        steps = [step for step, _ in points]
        accuracy.plot(steps, [100 * e.mean for _, e in points], label=f"{name} ({counted(len(runs), 'seed')})", **style)
        low, high = ([100 * getattr(e, bound) for _, e in points] for bound in ("low", "high"))
        accuracy.fill_between(steps, low, high, color=colours[name], alpha=0.08, linewidth=0)
        curves = mean_curves(shared[name])
        for axis, metric in zip(others, shown, strict=True):
            if metric in curves:
                axis.plot(*zip(*curves[metric], strict=True), linewidth=1.2, **style)
    accuracy.set(title="greedy held-out accuracy, %: mean and 95 % interval over seeds", xlabel="optimiser step")
    upper.legend(*accuracy.get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside upper left", ncols=6)
    _draw_differences(differences, rows, colours)
    for axis, label in zip(others, shown.values(), strict=True):
        axis.set(title=label, xlabel="optimiser step")
    seeds = max(map(len, shared.values()), default=0)
    if shown and any(len(runs) > seeds for runs in arms.values()):
        lower.suptitle(f"means over the {seeds} seeds that all arms have", fontsize=10)
    for axis in (accuracy, differences, *others):
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_fontsize(10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _colour(number: int) -> Any:
    """Ten strong colours, then ten light ones."""
    from matplotlib import colormaps

    return colormaps["tab20"](2 * (number % 10) + number // 10 % 2)


def _draw_differences(axis: Any, rows: Sequence[Mapping[str, Any]], colours: Mapping[str, Any]) -> None:
    """Paired differences to GRPO with their intervals, a line for each arm."""
    compared = [row for row in rows if row["paired_difference_to_grpo"]]
    for place, row in enumerate(compared):
        for measure, shape, shift in zip(MEASURES, ("o", "s", "D"), (-0.22, 0.0, 0.22), strict=True):
            found = row["paired_difference_to_grpo"][measure]
            low, high = (found["mean"] if found[bound] is None else found[bound] for bound in ("low", "high"))
            axis.errorbar(
                100 * found["mean"],
                place + shift,
                xerr=[[100 * max(0.0, found["mean"] - low)], [100 * max(0.0, high - found["mean"])]],
                fmt=shape,
                color=colours.get(row["name"], "#000"),  # the untrained policy has no curve
                markersize=5,
                capsize=3,
            )
    for measure, shape in zip(MEASURES, ("o", "s", "D"), strict=True):
        axis.plot([], [], shape, color="#555", markersize=5, label=measure)
    axis.axvline(0, color="#999", linewidth=1)
    axis.set(
        title="points ahead of GRPO (greedy answers), paired by seed, 95 %",
        yticks=range(len(compared)),
        yticklabels=[row["name"] for row in compared],
    )
    axis.grid(axis="x", color="#e3e6ea")
    axis.set_axisbelow(True)
    axis.invert_yaxis()
    if compared:
        axis.legend(frameon=False, fontsize=8)
