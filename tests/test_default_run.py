"""The default run as described in the README."""

import json
import subprocess
import sys

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from cepo import evaluate, load_figures, policy_path
from cepo.data.sampling import Sampling


@pytest.mark.integration
def test_the_default_run_learns(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "cepo.cli", "train"], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    summary = json.loads((tmp_path / "cepo-figures" / "summary.json").read_text())
    before, after = summary["before"]["greedy"], summary["after"]["greedy"]
    assert after["low"] > before["high"], result.stdout
    assert after["accuracy"] >= before["accuracy"] + 0.12
    assert after["accuracy"] < 0.9


@pytest.mark.integration
def test_problems_need_the_figure():
    model = AutoModelForImageTextToText.from_pretrained(policy_path())
    processor = AutoProcessor.from_pretrained(policy_path())
    blank = evaluate(model, processor, load_figures("test", 128, blank=True), Sampling()).accuracy
    seen = evaluate(model, processor, load_figures("test", 128), Sampling()).accuracy
    assert sum(blank.values) <= 2
    assert seen.interval[0] > blank.interval[1]
