"""The picture of `cepo credit`."""

from pathlib import Path
from typing import Any

from .pictures import plain_text


@plain_text
def draw_credit_quality(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the picture of `cepo credit`: AUROC and evidence at filler of each rule, on right and on wrong rollouts."""
    from matplotlib import pyplot

    told = list(dict.fromkeys((row["content"], row["hint"]) for row in rows))
    panels = (
        ("auroc", "AUROC, mistakes against filler"),
        ("filler_abs_mean", "mean |evidence| at filler, nats"),
        ("wrong_sign", "share of wrong signs at mistakes"),
    )
    own = {one: [row for row in rows if (row["content"], row["hint"]) == one] for one in told}
    names = {one: list(dict.fromkeys(row["name"] for row in own[one])) for one in told}
    heights = [0.9 + 0.24 * len(names[one]) for one in told]
    figure, axes = pyplot.subplots(
        *(len(told), len(panels)),
        figsize=(14, sum(heights)),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
        sharex="col",
    )
    marks = {"right": ("#2066ba", "o", -0.14), "wrong": ("#cc6600", "s", 0.14)}
    for line, one in zip(axes, told, strict=True):
        for axis, (measure, title) in zip(line, panels, strict=True):
            for row in own[one]:
                if row[measure]["value"] is None:
                    continue
                colour, shape, shift = marks[row["rollouts"]]
                value, low, high = (row[measure][part] for part in ("value", "low", "high"))
                error = [[max(0.0, value - low)], [max(0.0, high - value)]]
                label = f"{row['rollouts']} rollouts" if row["name"] == names[one][0] else None
                place = names[one].index(row["name"]) + shift
                axis.errorbar(value, place, xerr=error, fmt=shape, color=colour, capsize=3, markersize=4, label=label)
            axis.set(title=f"{title} (told {one[0]}, {one[1]} hint)", yticks=range(len(names[one])))
            axis.set_yticklabels(names[one] if axis is line[0] else [])
            axis.invert_yaxis()
            axis.grid(axis="x", color="#e3e6ea")
            axis.spines[["top", "right"]].set_visible(False)
            axis.title.set_size(9)
            axis.tick_params(labelsize=8)
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
