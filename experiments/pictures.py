"""Draw the figures of docs/results.md from the JSON results.

    python -m experiments.pictures

outcome.png and comparison.png: the comparison, in short and with all arms. Printed beside them: in how many seeds
cepo_additive is ahead, and how many runs collapsed. prediction.png: each arm's alignment before training against its
accuracy after training, with the rank correlation. credit.png and gradients.png: the studies of credit and gradients.
"""

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from cepo.compare.report import draw_comparison
from cepo.compare.statistics import BASE, Estimate, Run, band, percent
from cepo.inspection.pictures import plain_text

from . import credit_report, gradients
from .entropy_matched import MATCHED
from .labels import DOWN_WEIGHTED, label

FOLDER = Path(__file__).parent
CHOICE = "cepo_additive"


def read(name: str) -> dict:
    return json.loads((FOLDER / name).read_text())


def runs_of(comparison: dict) -> dict[str, list[Run]]:
    """The runs of each trained arm."""
    return {
        arm: [Run(run["seed"], run["accuracy"], run["seconds"]) for run in runs]
        for arm, runs in comparison["runs"].items()
        if arm not in (BASE, MATCHED)
    }


@plain_text
def outcome(comparison: dict, file: Path) -> None:
    """Left: accuracy over steps of three arms. Right: final accuracy of all arms minus GRPO's."""
    from matplotlib import pyplot

    runs = runs_of(comparison)
    colors = {CHOICE: "#c1271c", DOWN_WEIGHTED: "#d98a00", "grpo": "#2066ba"}
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    for name, color in colors.items():
        points = band(runs[name])
        steps = [step for step, _ in points]
        means, lows, highs = ([100 * getattr(one, key) for _, one in points] for key in ("mean", "low", "high"))
        left.plot(steps, means, color=color, marker="o", label=label(name))
        left.fill_between(steps, lows, highs, color=color, alpha=0.15, linewidth=0)
    left.set(xlabel="optimizer step", ylabel="greedy accuracy on held-out problems, %")
    left.set_xticks((0, 12, 24))
    left.legend(loc="lower right", frameon=False)
    rows = [
        row for row in comparison["arms"] if row["paired_difference_to_grpo"] and row["name"] not in (BASE, MATCHED)
    ]
    rows.sort(key=lambda row: row["paired_difference_to_grpo"]["final"]["mean"])
    for place, row in enumerate(rows):
        final = {key: 100 * value for key, value in row["paired_difference_to_grpo"]["final"].items()}
        color = colors.get(row["name"], "#444")
        right.plot([final["low"], final["high"]], [place, place], color=color)
        right.plot(final["mean"], place, "o", color=color)
    right.axvline(0, color="#999", linewidth=1)
    right.set_yticks(range(len(rows)), [textwrap.fill(label(row["name"]), 30, break_on_hyphens=False) for row in rows])
    right.set(xlabel="final accuracy minus GRPO's, points, 95 % CI")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=120)


def seed_counts(comparison: dict) -> list[str]:
    """For each arm: collapsed runs, seeds in which the choice ends ahead, and its lead in seeds without a collapse.

    A run has collapsed if its final greedy accuracy is below half of the untrained policy's.
    """
    finals = {arm: {run.seed: run.final for run in runs} for arm, runs in runs_of(comparison).items()}
    untrained = next(row["final"]["mean"] for row in comparison["arms"] if row["name"] == BASE)
    lines = []
    for arm, found in finals.items():
        collapsed = [seed for seed, final in found.items() if final < untrained / 2]
        rate = comparison["options"][arm]["learning_rate"]
        line = f"{label(arm)}, learning rate {rate:g}: {len(collapsed)} of {len(found)} collapsed"
        gaps = {seed: finals[CHOICE][seed] - final for seed, final in found.items() if seed in finals[CHOICE]}
        if arm != CHOICE and len(gaps) > 1:
            line += f"; {label(CHOICE)} is ahead in {sum(gap > 0 for gap in gaps.values())} of {len(gaps)} seeds"
            kept = [gap for seed, gap in gaps.items() if seed not in collapsed]
            if len(kept) < len(gaps):
                lead = percent(Estimate.of(kept).as_dict(), signed=True)
                line += f", by {lead} points in seeds that did not collapse"
        lines.append(line)
    return lines


def predictions(gradients: dict, comparison: dict) -> list[dict]:
    """For each arm in both: its alignment after Adam as a ratio to GRPO's, and its final difference to GRPO."""
    predicted = {row["name"]: row["adam"] for row in gradients["rows"]}
    return [
        {
            "name": arm["name"],
            "predicted": predicted[arm["name"]],
            "difference": arm["paired_difference_to_grpo"]["final"],
        }
        for arm in comparison["arms"]
        if arm["paired_difference_to_grpo"] and (predicted.get(arm["name"]) or {}).get("value") is not None
    ]


def rank_correlation(found: list[dict]) -> Any:
    """Spearman's rank correlation of prediction and outcome."""
    return spearmanr([one["predicted"]["value"] for one in found], [one["difference"]["mean"] for one in found])


@plain_text
def prediction(file: Path) -> None:
    """A scatter plot with both intervals; GRPO is at (1, 0)."""
    from matplotlib import pyplot

    found = predictions(read("gradients-long.json"), read("comparison.json"))
    found.sort(key=lambda one: -one["difference"]["mean"])
    figure, axis = pyplot.subplots(figsize=(10, 4.8), layout="constrained")
    axis.axvline(1, color="#999", linewidth=1)
    axis.axhline(0, color="#999", linewidth=1)
    for number, one in enumerate(found):
        x, y = one["predicted"], {key: 100 * value for key, value in one["difference"].items()}
        axis.errorbar(
            x["value"],
            y["mean"],
            xerr=[[x["value"] - x["low"]], [x["high"] - x["value"]]],
            yerr=[[y["mean"] - y["low"]], [y["high"] - y["mean"]]],
            fmt="osD^vPX<>*h"[number],
            color=f"C{number}" if number < 10 else "black",
            elinewidth=0.7,
            markersize=7,
            label=textwrap.fill(label(one["name"]), 30, break_on_hyphens=False),
        )
    ranks = rank_correlation(found)
    axis.set(
        xlabel="before training: alignment after Adam, ratio to GRPO",
        ylabel="after training: accuracy minus GRPO's, points",
        title=f"rank correlation over {len(found)} arms {ranks.statistic:.2f}, p = {ranks.pvalue:.2g}",
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(file, dpi=120)
    print(f"{len(found)} arms, Spearman's rank correlation {ranks.statistic:.2f}, p = {ranks.pvalue:.2g}")
    for left_out in found:
        ranks = rank_correlation([one for one in found if one is not left_out])
        print(f"  without {label(left_out['name'])}: {ranks.statistic:.2f}, p = {ranks.pvalue:.2g}")


def credit(file: Path) -> None:
    """The study of credit with hints that are answers, in the default wording."""
    rows = [row for row in read("credit.json")["rows"] if (row["content"], row["hint"]) == ("answer", "default")]
    credit_report.draw(rows, file)


def alignment(file: Path) -> None:
    """The study of gradients on `default`."""
    found = read("gradients.json")
    gradients.draw([{**row, "name": label(row["name"])} for row in found["rows"]], found["parts"], file)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    results = read("comparison.json")
    outcome(results, FOLDER / "outcome.png")
    labeled = {label(arm): runs for arm, runs in runs_of(results).items()}
    rows = [{**row, "name": label(row["name"])} for row in results["arms"]]
    draw_comparison(labeled, rows, FOLDER / "comparison.png")
    print("\n".join(seed_counts(results)))
    prediction(FOLDER / "prediction.png")
    credit(FOLDER / "credit.png")
    alignment(FOLDER / "gradients.png")
