"""The example scripts, as a reader would run them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
# A script in a process in which TRL cannot be imported.
WITHOUT_TRL = """
import runpy, sys
sys.modules["trl"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_without_trl(name, *arguments):
    command = [sys.executable, "-c", WITHOUT_TRL, str(EXAMPLES / name), *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def interval(printed, when):
    low, high = re.search(rf"{when} training: [\d.]+% \[([\d.]+)%, ([\d.]+)%\]", printed).groups()
    return float(low), float(high)


@pytest.mark.parametrize("method", ["cepo", "rlcsd"])
def test_a_loop_of_ones_own_takes_any_method(method):
    small = ["--steps=2", "--prompts=3", "--rollouts=4", "--problems=8", "--method", method]
    printed = run_without_trl("own_loop.py", *small)
    moved = [float(share) for share in re.findall(r"tokens moved ([\d.]+)%", printed)]
    assert len(moved) == 2
    assert max(moved) > 0


def test_the_loop_fits_on_a_few_screens():
    assert len((EXAMPLES / "own_loop.py").read_text().splitlines()) <= 150


@pytest.mark.slow
def test_a_loop_of_ones_own_learns():
    printed = run_without_trl("own_loop.py")
    assert interval(printed, "after")[0] > interval(printed, "before")[1]
