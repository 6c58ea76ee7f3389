"""Reports of the benchmarks. Tests measure no time."""

import json

import pytest
from benchmarks import __main__ as benchmarks
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
