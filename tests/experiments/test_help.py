"""Every study is a command with `--help`."""

import subprocess
import sys
from pathlib import Path

import pytest

import experiments

STUDIES = [path.stem for path in Path(experiments.__file__).parent.glob("*.py") if "__main__" in path.read_text()]


@pytest.mark.integration
@pytest.mark.parametrize("name", sorted(STUDIES))
def test_help(name):
    command = [sys.executable, "-m", f"experiments.{name}", "--help"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage:")
