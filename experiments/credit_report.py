"""Tables and figure of the study of credit quality."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cepo.inspection.pictures import plain_text
from cepo.inspection.tables import interval, markdown_table
from cepo.tasks.figures import GroupKind

MISTAKES: tuple[GroupKind, ...] = ("reading", "arithmetic")


def tables(result: dict[str, Any]) -> str:
    """The tables of credit.md: measures and origins of mistakes for each content and wording, and hint following."""
    parts = []
    for content, wording in dict.fromkeys((row["content"], row["hint"]) for row in result["rows"]):
        rows = [row for row in result["rows"] if (row["content"], row["hint"]) == (content, wording)]
        heads = ["rule", "rollouts", "AUROC", *(f"of {kind}" for kind in MISTAKES), "filler, nats"]
        heads += [*(f"wrong sign, {kind}" for kind in MISTAKES), "contexts"]
        lines = [
            [
                *(row["name"], row["rollouts"], interval(row["auroc"], ".3f")),
                *(interval(row[kind]["auroc"], ".3f") for kind in MISTAKES),
                interval(row["filler_abs_mean"], ".3f"),
                *(interval(row[kind]["wrong_sign"], ".1%") for kind in MISTAKES),
                f"{row['contexts']:.1f}",
            ]
            for row in rows
        ]
        origins = [
            [row["name"], origin, str(one["tokens"]), interval(one["auroc"], ".3f"), interval(one["wrong_sign"], ".1%")]
            for row in rows
            for origin, one in row.get("origins", {}).items()
        ]
        heads_of_origins = ("rule", "mistakes of incorrect rollouts", "tokens", "AUROC", "wrong sign")
        parts.append(f"## Hint: {content}, {wording} wording\n\n{markdown_table(heads, lines)}")
        parts.append(markdown_table(heads_of_origins, origins))
    followed = [
        [
            row["name"],
            *(
                f"{one['accuracy']:.1%} [{one['low']:.1%}, {one['high']:.1%}]"
                for one in (row["correct"], row["incorrect"])
            ),
        ]
        for row in result["following"]
    ]
    parts.append(
        f"## Hint following\n\n{markdown_table(('hint', 'correct, followed', 'incorrect, followed'), followed)}"
    )
    return "\n".join(["# Credit quality\n", *parts])


@plain_text
def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write credit.png: AUROC, evidence at filler and wrong signs of each variant."""
    from matplotlib import pyplot

    panels = {
        "auroc": "AUROC, mistakes against filler",
        "filler_abs_mean": "mean |evidence| at filler, nats",
        "wrong_sign": "share of wrong signs at mistakes",
    }
    hints = list(dict.fromkeys((row["content"], row["hint"]) for row in rows))
    names = {one: list(dict.fromkeys(r["name"] for r in rows if (r["content"], r["hint"]) == one)) for one in hints}
    heights = [0.9 + 0.24 * len(names[one]) for one in hints]
    layout: dict[str, Any] = {"height_ratios": heights, "layout": "constrained", "squeeze": False, "sharex": "col"}
    figure, axes = pyplot.subplots(len(hints), len(panels), figsize=(14, sum(heights)), **layout)
    marks = {"correct": ("#2066ba", "o", -0.14), "incorrect": ("#cc6600", "s", 0.14)}
    for line, one in zip(axes, hints, strict=True):
        for axis, (key, title) in zip(line, panels.items(), strict=True):
            for row in rows:
                if (row["content"], row["hint"]) != one or row[key]["value"] is None:
                    continue
                color, shape, shift = marks[row["rollouts"]]
                value, low, high = (row[key][part] for part in ("value", "low", "high"))
                error = [[max(0.0, value - low)], [max(0.0, high - value)]]
                label = f"{row['rollouts']} rollouts" if row["name"] == names[one][0] else None
                style = {"fmt": shape, "color": color, "capsize": 3, "markersize": 4, "label": label}
                axis.errorbar(value, names[one].index(row["name"]) + shift, xerr=error, **style)
            axis.set(title=f"{title} ({one[0]}, {one[1]} wording)", yticks=range(len(names[one])))
            axis.set_yticklabels(names[one] if axis is line[0] else [])
            axis.invert_yaxis()
            axis.grid(axis="x", color="#e3e6ea")
            axis.spines[["top", "right"]].set_visible(False)
            axis.title.set_size(9)
            axis.tick_params(labelsize=8)
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
