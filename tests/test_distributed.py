"""Two processes: groups that span them, and a process without advantages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cepo.data.saved import load_saved
from tests.support.loggers import read_events


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two-processes")
    script = Path(__file__).parent / "support" / "two_processes.py"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    result = subprocess.run(
        [*launch, str(script), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return folder, [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.integration
def test_a_group_may_span_two_processes(reports):
    _, reports = reports
    for report in (report["spanning"] for report in reports):
        assert report["negatives"] == [["1"]] * 4  # two steps of two rollouts; the incorrect answer is process 1's
        assert report["scored"] == [1.0, 1.0]
        assert report["right"] == [0.5, 0.5]  # of both processes
    assert reports[0]["spanning"]["checksum"] == pytest.approx(reports[1]["spanning"]["checksum"], rel=1e-12)


@pytest.mark.integration
def test_an_idle_process_makes_the_same_passes(reports):
    """The same forward passes in the same order, and as many rows in the update."""
    busy, idle = (report["idle"] for report in reports[1])
    assert busy["scored"] == idle["scored"] == [0.25, 0.25]
    assert all(set(calls) == {True} for calls in busy["passes"])  # a tree starts with the prompt and its image
    assert idle["passes"] == busy["passes"]
    assert idle["updated"] == busy["updated"] == [2, 2]
    assert busy["checksum"] == pytest.approx(idle["checksum"], rel=1e-12)


@pytest.mark.integration
def test_a_process_without_a_teacher_makes_the_same_passes(reports):
    learner, idle = (report["taught"] for report in reports[1])
    assert learner["scored"] == idle["scored"] == [0.125, 0.125]  # one of eight rollouts
    assert learner["divergence"] == idle["divergence"]
    assert all(value > 0 for value in learner["divergence"] + learner["grad_norm"])
    assert learner["checksum"] == pytest.approx(idle["checksum"], rel=1e-12)


@pytest.mark.integration
def test_saved_rollouts_and_credit_pages(reports):
    folder, _ = reports
    for name, groups, size in (("spanning", 1, 4), ("idle", 4, 2)):
        for step in (0, 1):
            saved = load_saved(str(folder / name), step)
            positions = [[row["position"] for row in rows] for rows in saved.groups]
            assert positions == [list(range(size))] * groups
            page = (folder / name / "credit" / f"step-{step:05d}.html").read_text()
            assert page.count('"student":') == (2 if groups == 1 else 4)  # of process 0: half a group, or two groups
    (rows,) = load_saved(str(folder / "spanning"), 0).groups
    assert [row["answer"] for row in rows] == ["0", "0", "1", "1"]
    assert [row["correct"] for row in rows] == [True, True, False, False]


@pytest.mark.integration
def test_only_the_main_process_logs(reports):
    folder, _ = reports
    scalars, texts = read_events(folder / "spanning")
    assert scalars["train/cepo/correct"] == [(1, 0.5), (2, 0.5)]
    assert [step for step, _ in texts["credit"]] == [0, 1]
