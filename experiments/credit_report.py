"""Tables and figure of the study of credit quality."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

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
    """Write credit.png: a line of panels for each content and wording of hints, a row in it for each rule."""
    from matplotlib import pyplot

    panels = {
        "auroc": "AUROC, decisive\ntokens against filler",
        "filler_abs_mean": "mean |evidence|\nat filler, nats",
        "wrong_sign": "share of wrong signs\nat decisive tokens",
    }
    hints = list(dict.fromkeys((row["content"], row["hint"]) for row in rows))
    names = {one: list(dict.fromkeys(r["name"] for r in rows if (r["content"], r["hint"]) == one)) for one in hints}
    heights = [1 + 0.27 * len(names[one]) for one in hints]
    figure = pyplot.figure(figsize=(10, sum(heights)), layout="constrained")
    marks = {"correct": ("#2066ba", "o", -0.16), "incorrect": ("#cc6600", "s", 0.16)}
    lines = figure.subfigures(len(hints), 1, height_ratios=heights, squeeze=False)[:, 0]
    for line, one in zip(lines, hints, strict=True):
        if len(hints) > 1:
            line.suptitle(f"hint: {one[0]}, {one[1]} wording", fontsize=10)
        axes = line.subplots(1, len(panels), sharey=True)
        for axis, (key, title) in zip(axes, panels.items(), strict=True):
            for rollouts, (color, shape, shift) in marks.items():
                found = [
                    (names[one].index(row["name"]) + shift, *(row[key][part] for part in ("value", "low", "high")))
                    for row in rows
                    if (row["content"], row["hint"], row["rollouts"]) == (*one, rollouts)
                    and row[key]["value"] is not None
                ]
                if found:
                    places, values, lows, highs = map(np.array, zip(*found, strict=True))
                    error = np.maximum([values - lows, highs - values], 0.0)
                    style = {"color": color, "capsize": 3, "markersize": 4, "label": f"{rollouts} rollouts"}
                    axis.errorbar(values, places, xerr=error, fmt=shape, **style)
            axis.set_title(title, fontsize=10)
            axis.set_yticks(range(len(names[one])), names[one])
            axis.set_ylim(len(names[one]) - 0.5, -0.5)
            axis.grid(axis="x", color="#e3e6ea")
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(labelsize=9)
        line.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
