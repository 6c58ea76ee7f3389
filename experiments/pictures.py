"""Draw the figures of docs/results.md from the results beside this file.

    python -m experiments.pictures

outcome.png: the comparison; printed: in how many seeds additive evidence is ahead, and how many runs collapsed.
prediction.png: each arm's alignment before training against the outcome of training, with the rank correlation.
credit.png and gradients.png: the studies of credit and of gradients.
"""

import json
import textwrap
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from cepo.compare.statistics import BASE, Estimate, Run, band, percent
from cepo.inspection.pictures import plain_text

from . import credit_quality, gradients
from .labels import label
from .tempered import TEMPERED

HERE = Path(__file__).parent


def read(name: str) -> dict:
    return json.loads((HERE / name).read_text())


@plain_text
def outcome(picture: Path) -> None:
    """Left, how accuracy grows in the arms of the question; right, all arms against GRPO at the end."""
    from matplotlib import pyplot

    comparison = read("comparison.json")
    colours = {"cepo_additive": "#c1271c", "blame 0.05": "#d98a00", "grpo": "#2066ba"}
    sheet, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.8), layout="constrained", width_ratios=(1.2, 1))
    for name, colour in colours.items():
        points = band([Run(run["seed"], run["accuracy"], run["seconds"]) for run in comparison["runs"][name]])
        steps = [step for step, _ in points]
        means, lows, highs = ([100 * getattr(one, key) for _, one in points] for key in ("mean", "low", "high"))
        left.plot(steps, means, color=colour, marker="o")
        left.fill_between(steps, lows, highs, color=colour, alpha=0.15, linewidth=0)
        left.annotate(label(name), (steps[-1], means[-1]), xytext=(6, -3), textcoords="offset points", color=colour)
    left.set(xlabel="optimizer step", ylabel="correct greedy answers to held-out problems, %")
    left.set_xlim(-1, 38)
    left.set_xticks((0, 12, 24))
    rows = [
        row for row in comparison["arms"] if row["paired_difference_to_grpo"] and row["name"] not in (BASE, TEMPERED)
    ]
    rows.sort(key=lambda row: row["paired_difference_to_grpo"]["final"]["mean"])
    for place, row in enumerate(rows):
        final = {key: 100 * value for key, value in row["paired_difference_to_grpo"]["final"].items()}
        colour = colours.get(row["name"], "#444")
        right.plot([final["low"], final["high"]], [place, place], color=colour)
        right.plot(final["mean"], place, "o", color=colour)
    right.axvline(0, color="#999", linewidth=1)
    right.set_yticks(range(len(rows)), [textwrap.fill(label(row["name"]), 30) for row in rows])
    right.set(xlabel="final accuracy minus GRPO's, points, 95 % CI")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    sheet.savefig(picture, dpi=120)
    for line in count_seeds(comparison):
        print(line)


def count_seeds(comparison: dict, choice: str = "cepo_additive") -> list[str]:
    """The seeds in which the choice ends ahead, the runs that collapsed, and the lead over the runs that did not.

    A run has collapsed if its final greedy accuracy is below half of the untrained policy's.
    """
    finals = {
        arm: {run["seed"]: run["accuracy"][-1][1] for run in found}
        for arm, found in comparison["runs"].items()
        if arm not in (BASE, TEMPERED)
    }
    untrained = next(row["final"]["mean"] for row in comparison["arms"] if row["name"] == BASE)
    lines = []
    for arm, found in finals.items():
        collapsed = [seed for seed, final in found.items() if final < untrained / 2]
        rate = comparison["options"][arm]["learning_rate"]
        line = f"{label(arm)}, rate {rate:g}: {len(collapsed)} of {len(found)} collapsed"
        pairs = {seed: finals[choice][seed] - final for seed, final in found.items() if seed in finals[choice]}
        if arm != choice and len(pairs) > 1:
            line += f"; {label(choice)} is ahead in {sum(gap > 0 for gap in pairs.values())} of {len(pairs)} seeds"
            kept = [gap for seed, gap in pairs.items() if seed not in collapsed]
            if len(kept) < len(pairs):
                line += (
                    f", in those that did not collapse by {percent(Estimate.of(kept).as_dict(), signed=True)} points"
                )
        lines.append(line)
    return lines


def predictions(gradients: dict, comparison: dict) -> list[dict]:
    """For each arm in both: its name, Adam's column as a ratio to GRPO, and the final difference to GRPO."""
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
    """Spearman's, of prediction and outcome."""
    return spearmanr([one["predicted"]["value"] for one in found], [one["difference"]["mean"] for one in found])


@plain_text
def prediction(picture: Path) -> None:
    """A scatter with both intervals. GRPO is at (1, 0)."""
    from matplotlib import pyplot

    found = predictions(read("gradients-long.json"), read("comparison.json"))
    sheet, axis = pyplot.subplots(figsize=(8, 5), layout="constrained")
    axis.axvline(1, color="#999", linewidth=1)
    axis.axhline(0, color="#999", linewidth=1)
    for one in found:
        x, y = one["predicted"], one["difference"]
        across = [[x["value"] - x["low"]], [x["high"] - x["value"]]]
        up = [[100 * (y["mean"] - y["low"])], [100 * (y["high"] - y["mean"])]]
        axis.errorbar(x["value"], 100 * y["mean"], xerr=across, yerr=up, fmt="o", color="#2066ba", elinewidth=0.7)
    ranks = rank_correlation(found)
    axis.set(
        xlabel="before training: alignment after Adam's normalization, ratio to GRPO",
        ylabel="after training: greedy accuracy minus GRPO's, points",
        title=f"rank correlation over {len(found)} arms {ranks.statistic:.2f}, p = {ranks.pvalue:.2g}",
    )
    axis.spines[["top", "right"]].set_visible(False)
    annotate(axis, [(label(one["name"]), one["predicted"]["value"], 100 * one["difference"]["mean"]) for one in found])
    sheet.savefig(picture, dpi=120)
    print(f"{len(found)} arms, Spearman's rank correlation {ranks.statistic:.2f}, p = {ranks.pvalue:.2g}")
    for left_out in found:
        ranks = rank_correlation([one for one in found if one is not left_out])
        print(f"  without {label(left_out['name'])}: {ranks.statistic:.2f}, p = {ranks.pvalue:.2g}")


def annotate(axis: Any, points: list[tuple[str, float, float]]) -> None:
    """A name beside each point, without overlaps."""
    places = [(5, 4, "left"), (5, -11, "left"), (-5, 4, "right"), (-5, -11, "right"), (5, 14, "left"), (5, -21, "left")]
    taken: list[Any] = []
    axis.figure.canvas.draw()
    for name, x, y in points:
        text = axis.annotate(name, (x, y), xytext=places[0][:2], textcoords="offset points", fontsize=8)
        for across, up, side in places:
            text.set(position=(across, up), horizontalalignment=side)
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)


def credit(picture: Path) -> None:
    """The study of credit with hints that are answers, in the default wording."""
    rows = [row for row in read("credit.json")["rows"] if (row["content"], row["hint"]) == ("answer", "default")]
    credit_quality.draw(rows, picture)


def alignment(picture: Path) -> None:
    """The study of gradients on `default`."""
    found = read("gradients.json")
    rows = [{**row, "name": label(row["name"])} for row in found["rows"]]
    gradients.draw(rows, [{**part, "verdict": label(part["verdict"])} for part in found["parts"]], picture)


if __name__ == "__main__":
    outcome(HERE / "outcome.png")
    prediction(HERE / "prediction.png")
    credit(HERE / "credit.png")
    alignment(HERE / "gradients.png")
