"""Draw docs/credit-map.png: the rollouts of `cepo explain`, as Debian's Chromium shows them.

python scripts/draw_credit_map.py docs/credit-map.png
"""

import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from cepo import cli


def main(picture: Path) -> None:
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


if __name__ == "__main__":
    main(Path(sys.argv[1]))
