"""Reports of the benchmarks. Tests measure no time."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import __main__ as benchmarks
from benchmarks import gpu
from rich.console import Console

RESULTS = sorted(benchmarks.RESULTS.glob("*.json"))


def test_every_part_has_committed_results():
    assert {path.stem for path in RESULTS} == set(benchmarks.PARTS)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_report_writes_the_rows_and_prints_them(path, tmp_path, capsys):
    known = json.loads(path.read_text())
    benchmarks.report(path.stem, known["machine"], known["rows"], tmp_path, Console(width=200))
    assert json.loads((tmp_path / path.name).read_text()) == known
    printed = capsys.readouterr().out
    assert printed.count("\n") > len(known["rows"])
    for head in benchmarks.COLUMNS[path.stem]:
        assert head.split()[0] in printed


def test_rows_are_written_even_if_the_table_fails(tmp_path):
    with pytest.raises(KeyError):
        benchmarks.report("step", {}, [{"method": "grpo"}], tmp_path, Console())
    assert json.loads((tmp_path / "step.json").read_text())["rows"] == [{"method": "grpo"}]


def test_all_missing_packages_are_named_at_once(monkeypatch, capsys):
    def version(name):
        if name in ("trl", "math-verify"):
            raise importlib.metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(gpu, "version", version)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert gpu.main() == 2
    printed = capsys.readouterr().out
    assert "missing packages: math-verify>=" in printed
    assert "trl>=" in printed


def test_every_part_for_a_gpu_runs_in_a_rehearsal(tmp_path):
    """All parts give rows, in JSON and Markdown; a part that does not fit into the time is skipped."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", f"--output_dir={tmp_path}"]
    root = Path(gpu.ROOT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])}
    subprocess.run([*command, "--seconds=600"], cwd=root, env=environment, check=True)
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert len(parts) == 6
    assert all(part["rows"] for part in parts.values())
    page = (tmp_path / "gpu.md").read_text()
    assert all(f"## {name} (" in page for name in parts)
    subprocess.run([*command, "--seconds=0"], cwd=root, env=environment, check=True)
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert all("skipped" in part for part in parts.values())
