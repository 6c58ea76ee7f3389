"""The picture of `cepo credit`."""

from pathlib import Path
from typing import Any


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
