"""A run killed with SIGKILL resumes bit-identically: weights, losses, counters, files."""

import random
import time

import pytest

from cepo.trainer.checkpoints import last_whole_checkpoint
from tests.support.killing import METHODS, PLACES, SMALL, differences, outcome, run, said, started, words

# A method, where it is killed, and at which time that it comes there.
A_FEW = [
    ("cepo", "saved weights", 2),
    ("cepo", "teacher follows", 3),
    ("grpo", "loss", 8),
    ("opsd", "saved state", 1),
    ("opsd", "summary", 2),
]
# At which time that a run comes there: before the first checkpoint, or in the midst.
TIMES = {"sampling": 4, "rewards": 4, "teachers": 5, "loss": 4, "optimizer": 4, "accuracy": 3, "rollouts": 4}
TIMES |= {"saved teacher": 1, "final model": 4}
WITH_TEACHERS = ("cepo", "cepo_additive", "rlsd", "rlcsd", "rlrt", "cscr", "pbsd", "distilled_rl")  # that read rollouts
OF_ALL = tuple(name for name in METHODS if name != "grpo")  # whose generations here serve for several steps
MANY = [
    ("grpo", "sampling", 2),
    ("grpo", "loss", 11),
    ("grpo", "optimizer", 5),
    ("grpo", "rotation", 2),
    *(
        (able[number % len(able)], place, TIMES.get(place, 2))
        for index, place in enumerate(PLACES)
        for able in [WITH_TEACHERS if place == "teachers" else OF_ALL]
        for number in (index, index + 5)
    ),
]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """Files of an uninterrupted run of a method, and its duration [seconds]."""
    base, found = tmp_path_factory.mktemp("undisturbed"), {}

    def of(method):
        if method not in found:
            folder, began = base / method, time.monotonic()
            assert run(words(method), folder) == 0, said(folder)
            found[method] = outcome(folder / "out"), time.monotonic() - began
        return found[method]

    return of


def come_back(method, folder, expected):
    """Resume to the end, and compare with the uninterrupted run."""
    there = last_whole_checkpoint(folder / "out") is not None
    assert run(words(method, **({"resume_from_checkpoint": True} if there else {})), folder) == 0, said(folder)
    assert differences(expected, outcome(folder / "out")) == []


def check(method, place, number, folder, undisturbed):
    expected, _ = undisturbed(method)
    assert run(words(method), folder, place, number) == -9, f"it never came there: {said(folder)}"
    come_back(method, folder, expected)


@pytest.mark.parametrize(("method", "place", "number"), A_FEW)
def test_killed_at_a_place(tmp_path, method, place, number, undisturbed):
    check(method, place, number, tmp_path, undisturbed)


@pytest.mark.kill
@pytest.mark.parametrize(("method", "place", "number"), MANY)
def test_killed_at_any_place(tmp_path, method, place, number, undisturbed):
    check(method, place, number, tmp_path, undisturbed)


@pytest.mark.kill
@pytest.mark.parametrize("attempt", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_the_real_command_killed_at_a_random_moment_twice(tmp_path, method, attempt, undisturbed):
    """Two kills at random moments, the second one after resuming."""
    expected, seconds = undisturbed(method)
    rng, kills = random.Random(f"{method}:{attempt}"), 0
    while kills < 2:
        there = last_whole_checkpoint(tmp_path / "out") is not None
        arguments = words(method, **({"resume_from_checkpoint": True} if there else {}))
        with started(arguments, tmp_path) as process:
            time.sleep(rng.random() * seconds)
            if process.poll() is not None:  # it was done before
                assert process.returncode == 0, said(tmp_path)
                break
            process.kill()
            kills += 1
    come_back(method, tmp_path, expected)


def compared(folder):
    """The files of each run of a comparison, and its table without seconds."""
    runs = {str(path.parent.relative_to(folder)): outcome(path.parent) for path in folder.glob("*/seed-*/summary.json")}
    for run_of in runs.values():
        run_of.pop("log.txt")
    return runs, outcome(folder)["compare.json"]


@pytest.mark.kill
def test_a_killed_comparison_keeps_its_finished_runs(tmp_path):
    """SIGKILL does not reach the current run, which ends; then the same command resumes."""
    of_all = [part for name, value in SMALL.items() if name != "seed" for part in (f"--{name}", str(value))]
    arguments = ["compare", "--methods=grpo,cepo", "--seeds=2", "--jobs=1", *of_all, "--save_strategy=no"]
    arguments += ["--output_dir=out"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with started(arguments, whole) as process:
        assert process.wait(600) == 0, said(whole)
    finished = cut / "out" / "grpo" / "seed-0" / "summary.json"
    with started(arguments, cut) as process:
        while not finished.exists() and process.poll() is None:
            time.sleep(0.05)
        time.sleep(3)  # into the next run
        process.kill()
    written = finished.stat().st_mtime_ns
    for _ in range(600):
        with started(arguments, cut) as process:
            status = process.wait(600)
        if status != 2:
            break
        assert said(cut).rstrip().endswith("wait for them, or change --output_dir")
        time.sleep(1)
    assert status == 0, said(cut)
    assert finished.stat().st_mtime_ns == written
    expected, found = compared(whole / "out"), compared(cut / "out")
    assert len(found[0]) == 4
    assert differences(expected, found) == []
