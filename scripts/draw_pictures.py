"""Draw docs/credit-map.png, a page of `cepo explain` in Chromium, and docs/figure.png, a figures problem.

python scripts/draw_pictures.py
"""

import shutil
import tempfile
from pathlib import Path

from PIL import Image

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
        browser.execute_script(
            "document.getElementById('details').remove();"
            "document.getElementById('rollout-0-0').before(document.querySelector('.legend'))"
        )
        first = browser.find_element("class name", "legend").rect
        last = browser.find_element("id", "rollout-0-3").rect
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


if __name__ == "__main__":
    credit_map(DOCS / "credit-map.png")
    figure(DOCS / "figure.png")
