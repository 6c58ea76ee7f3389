"""Draw the pictures of README and docs that no command of ours leaves: all of them, or those that are named.

    python scripts/draw_pictures.py
    python scripts/draw_pictures.py credit-map figure prediction

credit-map: rollouts of `cepo explain`, as Debian's Chromium shows them. figure: a problem of the figures task.
prediction: what `cepo gradients` said of each arm before training, beside what training made of it, with the rank
correlation.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from scipy.stats import spearmanr

from cepo import cli, load_figures
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


def prediction(picture: Path) -> None:
    """A scatter with both intervals. GRPO itself stands at (1, 0)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = predictions(*(json.loads((DOCS / name).read_text()) for name in ("gradients-long.json", "comparison.json")))
    sheet, axis = pyplot.subplots(figsize=(8, 5), layout="constrained")
    axis.axvline(1, color="#999", linewidth=1)
    axis.axhline(0, color="#999", linewidth=1)
    for one in found:
        x, y = one["predicted"], one["difference"]
        across = [[x["value"] - x["low"]], [x["high"] - x["value"]]]
        up = [[100 * (y["mean"] - y["low"])], [100 * (y["high"] - y["mean"])]]
        axis.errorbar(x["value"], 100 * y["mean"], xerr=across, yerr=up, fmt="o", color="#2066ba", elinewidth=0.7)
        axis.annotate(one["name"], (x["value"], 100 * y["mean"]), xytext=(4, 4), textcoords="offset points", fontsize=8)
    ranks = spearmanr([one["predicted"]["value"] for one in found], [one["difference"]["mean"] for one in found])
    axis.set(
        xlabel="before training: alignment after Adam's normalisation, ratio to GRPO",
        ylabel="after training: greedy accuracy minus GRPO's, points",
        title=f"rank correlation over {len(found)} arms {ranks.statistic:.2f}, p = {ranks.pvalue:.2g}",
    )
    axis.spines[["top", "right"]].set_visible(False)
    sheet.savefig(picture, dpi=120)
    print(f"{len(found)} arms, Spearman's rank correlation {ranks.statistic:.2f}, p = {ranks.pvalue:.2g}")


PICTURES = {"credit-map": credit_map, "figure": figure, "prediction": prediction}

if __name__ == "__main__":
    for name in sys.argv[1:] or PICTURES:
        PICTURES[name](DOCS / f"{name}.png")
        print(f"docs/{name}.png")
