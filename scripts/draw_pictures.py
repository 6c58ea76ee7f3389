"""Draw the pictures of README and docs that no command of ours leaves: all of them, or those that are named.

    python scripts/draw_pictures.py
    python scripts/draw_pictures.py credit-map figure outcome prediction

credit-map: rollouts of `cepo explain`, as Debian's Chromium shows them. figure: a problem of the figures task. outcome:
what the comparison of docs/comparison.md found; printed: in how many seeds the choice is ahead, how many runs
collapsed. prediction: what `cepo gradients` said of each arm before training, beside what training made of it, with the
rank correlation.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from scipy.stats import spearmanr

from cepo import cli, load_figures
from cepo.compare.statistics import BASE, TEMPERED, Estimate, Run, band, percent
from cepo.inspection.pictures import plain_text
from cepo.tasks.figures import problem_of
from cepo.tasks.figures.drawing import draw

DOCS = Path(__file__).parents[1] / "docs"


def credit_map(picture: Path) -> None:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory() as folder:
        cli.main(["explain", "--index", "3", "--num_generations", "4", "--output_dir", folder])
        page = Path(folder) / "explain.html"
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=960,2000", "--disable-sync")
        for flag in (*flags, "--force-device-scale-factor=1.5", f"--user-data-dir={folder}/profile"):
            options.add_argument(flag)
        browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        browser.get(page.as_uri())
        browser.execute_script("document.getElementById('details').remove()")
        first, last = (browser.find_element("id", name).rect for name in ("rollout-0-0", "rollout-0-3"))
        whole = Path(folder) / "whole.png"
        browser.save_screenshot(str(whole))
        browser.quit()
        scale, margin = 1.5, 6
        box = (
            first["x"] - margin,
            first["y"] - margin,
            first["x"] + first["width"] + margin,
            last["y"] + last["height"] + margin,
        )
        Image.open(whole).crop(tuple(round(scale * side) for side in box)).convert("RGB").quantize(64).save(picture)


def figure(picture: Path) -> None:
    draw(problem_of(load_figures("train", 4)[3]), scale=5).save(picture)


def read(name: str) -> dict:
    return json.loads((DOCS / name).read_text())


@plain_text
def outcome(picture: Path) -> None:
    """Left, how accuracy grows in the arms of the question; right, all arms against GRPO at the end."""
    from matplotlib import pyplot

    comparison = read("comparison.json")
    colours = {"cepo_added": "#c1271c", "blame 0.05": "#d98a00", "grpo": "#2066ba"}
    sheet, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for name, colour in colours.items():
        points = band([Run(run["seed"], run["accuracy"], run["seconds"]) for run in comparison["runs"][name]])
        steps = [step for step, _ in points]
        means, lows, highs = ([100 * getattr(one, key) for _, one in points] for key in ("mean", "low", "high"))
        left.plot(steps, means, color=colour, marker="o")
        left.fill_between(steps, lows, highs, color=colour, alpha=0.15, linewidth=0)
        left.annotate(name, (steps[-1], means[-1]), xytext=(6, -3), textcoords="offset points", color=colour)
    left.set(xlabel="optimiser step", ylabel="right, % of greedy answers to held-out problems")
    left.margins(x=0.2)
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
    right.set_yticks(range(len(rows)), [row["name"] for row in rows])
    right.set(xlabel="final greedy accuracy minus GRPO's, points, 95 %")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    sheet.savefig(picture, dpi=120)
    for line in seeds_counted(comparison):
        print(line)


def seeds_counted(comparison: dict, choice: str = "cepo_added") -> list[str]:
    """In how many seeds the choice ends ahead; how many runs collapsed; the lead where neither of a pair did.

    A run has collapsed if its greedy answers end below half of the untrained policy's accuracy.
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
        line = (
            f"{arm}, rate {comparison['options'][arm]['learning_rate']:g}: {len(collapsed)} of {len(found)} collapsed"
        )
        pairs = {seed: finals[choice][seed] - final for seed, final in found.items() if seed in finals[choice]}
        if arm != choice and len(pairs) > 1:
            line += f"; {choice} is ahead in {sum(gap > 0 for gap in pairs.values())} of {len(pairs)} seeds"
            kept = [gap for seed, gap in pairs.items() if seed not in collapsed]
            if len(kept) < len(pairs):
                line += (
                    f", in those that did not collapse by {percent(Estimate.of(kept).as_dict(), signed=True)} points"
                )
        lines.append(line)
    return lines


def predictions(gradients: dict, comparison: dict) -> list[dict]:
    """For each arm that both know: its name, Adam's column as a ratio to GRPO, and the final difference to GRPO."""
    foretold = {row["name"]: row["adam"] for row in gradients["rows"]}
    return [
        {
            "name": arm["name"],
            "predicted": foretold[arm["name"]],
            "difference": arm["paired_difference_to_grpo"]["final"],
        }
        for arm in comparison["arms"]
        if arm["paired_difference_to_grpo"] and (foretold.get(arm["name"]) or {}).get("value") is not None
    ]


def rank_correlation(found: list[dict]) -> Any:
    """Spearman's, of what was foretold and what came."""
    return spearmanr([one["predicted"]["value"] for one in found], [one["difference"]["mean"] for one in found])


@plain_text
def prediction(picture: Path) -> None:
    """A scatter with both intervals. GRPO itself stands at (1, 0)."""
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
        xlabel="before training: alignment after Adam's normalisation, ratio to GRPO",
        ylabel="after training: greedy accuracy minus GRPO's, points",
        title=f"rank correlation over {len(found)} arms {ranks.statistic:.2f}, p = {ranks.pvalue:.2g}",
    )
    axis.spines[["top", "right"]].set_visible(False)
    label(axis, [(one["name"], one["predicted"]["value"], 100 * one["difference"]["mean"]) for one in found])
    sheet.savefig(picture, dpi=120)
    print(f"{len(found)} arms, Spearman's rank correlation {ranks.statistic:.2f}, p = {ranks.pvalue:.2g}")
    for left_out in found:
        ranks = rank_correlation([one for one in found if one is not left_out])
        print(f"  without {left_out['name']}: {ranks.statistic:.2f}, p = {ranks.pvalue:.2g}")


def label(axis: Any, points: list[tuple[str, float, float]]) -> None:
    """A name beside each point, where it covers no other name."""
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


PICTURES = {"credit-map": credit_map, "figure": figure, "outcome": outcome, "prediction": prediction}

if __name__ == "__main__":
    for name in sys.argv[1:] or PICTURES:
        PICTURES[name](DOCS / f"{name}.png")
        print(f"docs/{name}.png")
