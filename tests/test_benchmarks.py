"""What the benchmarks measured can be shown, and whether targets were met is said. Nothing is timed here."""

import json

import pytest
from benchmarks import __main__ as benchmarks
from rich.console import Console

RESULTS = sorted(benchmarks.RESULTS.glob("*.json"))


def test_there_is_a_result_of_every_part():
    assert {path.stem for path in RESULTS} == set(benchmarks.PARTS)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_what_was_measured_is_written_whole_and_shown(path, tmp_path, capsys):
    known = json.loads(path.read_text())
    console = Console(width=200)
    benchmarks.report(path.stem, known["machine"], known["rows"], tmp_path, console)
    assert json.loads((tmp_path / path.name).read_text()) == known
    printed = capsys.readouterr().out
    assert printed.count("\n") > len(known["rows"])
    for head in benchmarks.COLUMNS[path.stem]:
        assert head.split()[0] in printed


def test_rows_are_kept_where_they_cannot_be_shown(tmp_path):
    with pytest.raises(KeyError):
        benchmarks.report("busy", {}, [{"machine": "quiet"}], tmp_path, Console())
    assert json.loads((tmp_path / "busy.json").read_text())["rows"] == [{"machine": "quiet"}]


def test_a_line_for_each_target():
    step = {"shape": "paper", "method": "cepo", "rule": "own_or_mixture"}
    found = {
        "step": [
            {**step, "zero_variance": 0.0, "ratio_to_trl_grpo": 0.84},
            {**step, "zero_variance": 0.4, "ratio_to_trl_grpo": 0.74},
            {**step, "zero_variance": 0.4, "ratio_to_trl_grpo": 0.1, "rule": "own"},
        ],
        "busy": [
            {"machine": "busy", "threads": "asleep (ours)", "ratio": 2.31},
            {"machine": "quiet", "threads": "asleep (ours)", "ratio": 1.0},
        ],
    }
    assert benchmarks.targets(found) == [
        "met      a CEPO step, 0% dead groups, of TRL's GRPO: 0.84, at most 0.85",
        "not met  a CEPO step, 40% dead groups, of TRL's GRPO: 0.74, at most 0.70",
        "not met  a run beside one busy core, of one alone: 2.31, at most 2.20",
    ]
    assert benchmarks.targets({}) == []
