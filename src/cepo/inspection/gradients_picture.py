"""The picture of `cepo gradients`."""

from pathlib import Path
from typing import Any

from .pictures import plain_text

_PANELS = (
    ("alignment", "alignment with the true gradient, ratio to GRPO"),
    ("adam", "the same after Adam's normalisation"),
    ("norm", "norm, ratio to GRPO"),
    ("angle", "angle between its mean and the truth, degrees"),
)


@plain_text
def draw_gradients(rows: list[dict[str, Any]], parts: list[dict[str, Any]], path: Path) -> None:
    """Write the picture: the measures of each placement, and below where GRPO's signal and noise are.

    Args:
        rows: `name` and, for each measure, `value`, `low` and `high`.
        parts: `verdict`, `kind`, and `signal` and `noise` in the same form; may be empty.
        path: The PNG file.
    """
    from matplotlib import pyplot

    heights = [0.28 * len(rows) + 0.9, *([0.3 * len(parts) + 0.9] if parts else [])]
    figure = pyplot.figure(figsize=(15, sum(heights)), layout="constrained")
    subfigures = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    axes = subfigures[0].subplots(1, len(_PANELS), sharey=True)
    names = [row["name"] for row in rows]
    for axis, (measure, title) in zip(axes, _PANELS, strict=True):
        for place, row in enumerate(rows):
            _interval(axis, row[measure], place, "#2066ba")
        if measure != "angle":
            axis.axvline(1, color="#999", linewidth=1)
        axis.set(title=title, yticks=range(len(names)), yticklabels=names)
    axes[0].invert_yaxis()
    below = subfigures[1].subplots(1, 2, sharey=True) if parts else []
    labels = [f"{part['kind']}, {part['verdict']} rollouts" for part in parts]
    for axis, measure in zip(below, ("signal", "noise"), strict=False):
        for place, part in enumerate(parts):
            _interval(axis, part[measure], place, "#cc6600")
        axis.axvline(0, color="#999", linewidth=1)
        axis.set(title=f"share of GRPO's {measure}", yticks=range(len(labels)), yticklabels=labels)
    if parts:
        below[0].invert_yaxis()
    for axis in (*axes, *below):
        axis.grid(axis="x", color="#e3e6ea")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_size(9)
        axis.tick_params(labelsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _interval(axis: Any, estimate: dict[str, Any], place: int, colour: str) -> None:
    value, low, high = (estimate[part] for part in ("value", "low", "high"))
    if value is None:
        return
    error = None if low is None or high is None else [[max(0.0, value - low)], [max(0.0, high - value)]]
    axis.errorbar(value, place, xerr=error, fmt="o", color=colour, capsize=3, markersize=4)
