"""Pictures and tables of what the commands found, for people."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from .statistics import CURVES, MEASURES, Run, band, mean_curves, percent

_CURVES = (
    ("reward", "reward", "mean reward of a step"),
    ("cepo/coefficient", "lambda", "share redistributed by evidence"),
    ("entropy", "entropy", "nats a token"),
    ("completions/mean_length", "length", "tokens a completion"),
)


def draw_curves(log_history: list[dict[str, Any]], path: Path, *, title: str, before: Any = None, after: Any = None):
    """Write the curves of a run, with its held-out accuracy before and after where it was measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps = [entry for entry in log_history if "reward" in entry]
    figure, axes = pyplot.subplots(1, len(_CURVES), figsize=(14, 3.2), layout="constrained")
    for axis, (key, name, unit) in zip(axes, _CURVES, strict=True):
        points = [(entry["step"], entry[key]) for entry in steps if entry.get(key) is not None]
        axis.plot([x for x, _ in points], [y for _, y in points], color="#0b5394", linewidth=1.5)
        axis.set(title=name, xlabel="optimiser step", ylabel=unit)
        axis.spines[["top", "right"]].set_visible(False)
    last = max((entry["step"] for entry in steps), default=1)
    marks = ((0, before, "before", "#b45f06"), (last, after, "after", "#38761d"))
    for step, accuracy, name, colour in marks:
        if accuracy is not None:
            low, high = accuracy.interval
            error = [[accuracy.value - low], [high - accuracy.value]]
            axes[0].errorbar(step, accuracy.value, error, fmt="o", color=colour, capsize=4, label=f"held-out, {name}")
    if before is not None or after is not None:
        axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def draw_credit_quality(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the picture of `cepo credit`: AUROC and evidence at filler of each rule, on right and on wrong rollouts."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    hints = list(dict.fromkeys(row["hint"] for row in rows))
    names = list(dict.fromkeys(row["name"] for row in rows))
    panels = (
        ("auroc", "AUROC, decisive against filler"),
        ("filler_abs_mean", "mean |evidence| at filler, nats"),
        ("wrong_sign", "share of wrong signs at decisive tokens"),
    )
    figure, axes = pyplot.subplots(
        len(hints), len(panels), figsize=(14, 0.9 + 3.1 * len(hints)), layout="constrained", squeeze=False, sharey=True
    )
    marks = {"correct": ("#2066ba", "o", -0.14), "wrong": ("#cc6600", "s", 0.14)}
    for line, hint in zip(axes, hints, strict=True):
        for axis, (measure, title) in zip(line, panels, strict=True):
            for row in rows:
                if row["hint"] != hint or row[measure]["value"] != row[measure]["value"]:
                    continue
                colour, shape, shift = marks[row["rollouts"]]
                value, low, high = (row[measure][part] for part in ("value", "low", "high"))
                error = [[max(0.0, value - low)], [max(0.0, high - value)]]
                label = f"{row['rollouts']} rollouts" if row["name"] == names[0] else None
                place = names.index(row["name"]) + shift
                axis.errorbar(value, place, xerr=error, fmt=shape, color=colour, capsize=3, markersize=5, label=label)
            axis.set(title=f"{title} ({hint} hint)", yticks=range(len(names)), yticklabels=names)
            axis.grid(axis="x", color="#e3e6ea")
            axis.spines[["top", "right"]].set_visible(False)
            axis.title.set_size(10)
    axes[0][0].invert_yaxis()
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What `summarise` made of the arms, for a terminal of 80 columns: three lines an arm, no number cut."""
    caption = "means over seeds, 95 % intervals; minus GRPO's: paired by seed; time: of GRPO's"
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
    shown.add_column("arm", overflow="fold")
    for name in ("seeds", "", "accuracy, %", "minus GRPO's", "time"):
        shown.add_column(name, no_wrap=True)
    for row in rows:
        differences = row["paired_difference_to_grpo"] or {}
        ratio = "" if row["seconds_ratio"] is None else f"{row['seconds_ratio']:.2f}"
        first = (escape(row["name"]), str(row["seeds"]), ratio)
        for measure in MEASURES:
            name, seeds, time = first
            shown.add_row(
                name, seeds, measure, percent(row[measure]), percent(differences.get(measure), signed=True), time
            )
            first = ("", "", "")
        shown.add_section()
    return shown


def draw_comparison(arms: Mapping[str, Sequence[Run]], rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the picture of `cepo compare`: accuracy over steps, differences to GRPO, and metrics over training.

    Args:
        arms: The finished runs of each arm.
        rows: What `summarise` made of them.
        path: The PNG file.
    """
    import matplotlib

    matplotlib.use("Agg")
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
    colours = {name: f"C{number % 10}" for number, name in enumerate(arms)}
    for number, (name, runs) in enumerate(arms.items()):
        if not runs:
            continue
        style: dict[str, Any] = {"color": colours[name], "linestyle": ("-", "--", "-.", ":")[number % 4]}
        points = band(runs)
        steps = [step for step, _ in points]
        accuracy.plot(steps, [100 * e.mean for _, e in points], label=f"{name} ({len(runs)} seeds)", **style)
        low, high = ([100 * getattr(e, bound) for _, e in points] for bound in ("low", "high"))
        accuracy.fill_between(steps, low, high, color=colours[name], alpha=0.08, linewidth=0)
        curves = mean_curves(runs)
        for axis, metric in zip(others, shown, strict=True):
            if metric in curves:
                axis.plot(*zip(*curves[metric], strict=True), linewidth=1.2, **style)
    accuracy.set(title="held-out accuracy, %: mean and 95 % interval over seeds", xlabel="optimiser step")
    upper.legend(*accuracy.get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside upper left", ncols=6)
    _draw_differences(differences, rows, colours)
    for axis, label in zip(others, shown.values(), strict=True):
        axis.set(title=label, xlabel="optimiser step")
    for axis in (accuracy, differences, *others):
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_fontsize(10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_differences(axis: Any, rows: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> None:
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
        title="points ahead of GRPO, paired by seed, 95 %",
        yticks=range(len(compared)),
        yticklabels=[row["name"] for row in compared],
    )
    axis.grid(axis="x", color="#e3e6ea")
    axis.set_axisbelow(True)
    axis.invert_yaxis()
    if compared:
        axis.legend(frameon=False, fontsize=8)
