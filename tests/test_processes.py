"""One process and several: random situations, the same numbers. `make test-processes` goes through many of them."""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import pytest
import torch

from cepo.methods import METHODS as KNOWN
from cepo.trainer.checkpoints import last_whole_checkpoint

sys.path.insert(0, str(Path(__file__).parent / "processes"))

from situations import METHODS, situation

HERE = Path(__file__).parent / "processes"

# How many random situations `make test-processes` goes through, on two and on three processes; CEPO_SITUATIONS sets
# another number, and CEPO_FIRST_SITUATION others.
SITUATIONS = int(os.environ.get("CEPO_SITUATIONS", "120"))
FIRST = int(os.environ.get("CEPO_FIRST_SITUATION", "0"))
# A situation takes a second; one that takes this long [s] hangs.
PATIENCE = 90
# Those of `make test`: each method once, on text and on images, with evidence and something to learn in them.
A_FEW = (0, 1, 16, 3, 46, 19, 20, 21, 36, 9, 38, 53, 12, 27)


def launch(folder, situations, processes, patience=PATIENCE):
    """Go through situations on some processes; what they left is in `folder`.

    Raises:
        RuntimeError: With the end of what the processes wrote, and where they hung, if they did.
    """
    folder.mkdir(parents=True)
    (folder / "situations.json").write_text(json.dumps([asdict(one) for one in situations]))
    command = [sys.executable, str(HERE / "worker.py"), str(folder), str(folder / "situations.json"), str(patience)]
    if processes > 1:
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    if sys.platform == "linux":  # no network is needed, and none may be there
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1400, check=False)
    if done.returncode:
        traces = "".join(f"{path.name}\n{path.read_text()}" for path in sorted(folder.glob("*.trace")))
        raise RuntimeError(f"{processes} processes\n{traces}{done.stderr[-40000:]}")


@cache
def results(folder, number):
    """What the processes left of one situation."""
    files = sorted((folder / str(number)).glob("rank-*.pt"))
    return [torch.load(path, weights_only=False) for path in files]


def merged(found, what):
    return {key: value for one in found for key, value in one[what].items()}


def close(found, expected, message, atol=1e-4):
    torch.testing.assert_close(found, expected, atol=atol, rtol=1e-4, msg=lambda text: f"{message}: {text}")


# What the update says of itself is said of the rollouts that a process has kept in it, which may be none.
OF_THE_UPDATE = ("entropy", "clip_ratio", "kl", "seconds", "time")


def same_log(found, expected):
    """The same numbers, whatever is not of the update or of the clock."""
    assert len(found) == len(expected)
    for entries in zip(found, expected, strict=True):
        ours, theirs = (
            {name: value for name, value in entry.items() if not any(word in name for word in OF_THE_UPDATE)}
            for entry in entries
        )
        assert ours.keys() == theirs.keys()
        for name in theirs:
            values = [math.nan if entry[name] is None else float(entry[name]) for entry in (ours, theirs)]
            assert values[0] == pytest.approx(values[1], rel=1e-3, abs=1e-4, nan_ok=True), name


def check(one, many):
    """What several processes found, and did, is what one did."""
    (alone,) = one
    assert "refused" not in alone, alone
    assert all("refused" not in rank for rank in many), many[0]
    assert merged(many, "references") == alone["references"]
    placed = merged(many, "placed")
    assert placed.keys() == alone["placed"].keys()
    for key, (advantages, evidence) in alone["placed"].items():
        close(placed[key][1], evidence, f"evidence of step and rollout {key}")
        close(placed[key][0], advantages, f"token advantages of step and rollout {key}")
    for rank in many:
        assert len(rank["gradients"]) == len(alone["gradients"]) > 0
        for step, (found, expected) in enumerate(zip(rank["gradients"], alone["gradients"], strict=True)):
            off, length = (found - expected).norm(), expected.norm()
            assert off <= 1e-4 * length + 1e-6, f"gradient of step {step}: off by {off}, its length is {length}"
        assert rank["weights"] == pytest.approx(many[0]["weights"], rel=1e-12)  # the processes stay together
    assert many[0]["weights"] == pytest.approx(alone["weights"], rel=1e-6)
    same_log(many[0]["log"], alone["log"])
    assert repr(many[0]["saved"]) == repr(alone["saved"])
    assert many[0]["pages"] == alone["pages"]


class Runs:
    """Situations on one, two and three processes; each number of processes is started once."""

    def __init__(self, base, situations):
        self.base, self.situations, self.started = base, situations, {}

    def of(self, processes):
        if processes not in self.started:
            self.started[processes] = self.base / str(processes)
            launch(self.started[processes], self.situations, processes)
        return self.started[processes]

    def check(self, number, processes):
        one, many = (results(self.of(count), number) for count in (1, processes))
        assert len(many) == processes
        if self.situations[number].runs_on(processes):
            check(one, many)
        else:
            assert all("needs whole groups on each process" in rank["refused"] for rank in many)


@pytest.fixture(scope="session")
def few(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("few"), [situation(seed) for seed in A_FEW])


@pytest.fixture(scope="session")
def many(tmp_path_factory):
    seeds = range(FIRST, FIRST + SITUATIONS)
    return Runs(tmp_path_factory.mktemp("processes"), [situation(seed) for seed in seeds])


def test_the_situations_have_every_method():
    assert set(METHODS) == set(KNOWN)
    assert {situation(seed).method for seed in A_FEW} == set(KNOWN)


def test_two_processes_equal_one_in_two_situations(tmp_path):
    runs = Runs(tmp_path, [situation(seed) for seed in A_FEW[:2]])
    for number in range(2):
        runs.check(number, 2)


@pytest.mark.parametrize("number", range(len(A_FEW)))
def test_two_processes_are_one(few, number):
    few.check(number, 2)


@pytest.mark.processes
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("number", range(SITUATIONS))
def test_several_processes_are_one(many, processes, number):
    many.check(number, processes)


def idle(rank, what):
    """Whether a process had nothing to score, or nothing to learn."""
    return not any(table[what].any() for table in rank["placed"].values())


@pytest.mark.processes
def test_the_situations_bring_about_what_they_are_for(many):
    """Groups that span processes, idle processes beside busy ones, every way to fall back, and something to learn."""
    if SITUATIONS < 100:
        pytest.skip("too few situations to ask that of")
    learned, fallbacks, spanning, nothing = dict.fromkeys(METHODS, 0), set(), 0, {0: 0, 1: 0}
    for number, one in enumerate(many.situations):
        (alone,) = results(many.of(1), number)
        learned[one.method] += any(gradient.norm() > 1e-6 for gradient in alone["gradients"])
        fallbacks |= {found[2] for key, found in alone["references"].items() if not key.endswith("hinted")}
        if not one.runs_on(3):
            continue
        ranks = results(many.of(3), number)
        spanning += one.rollouts // 3 % one.size > 0
        for what in nothing:
            states = {idle(rank, what) for rank in ranks}
            nothing[what] += len(states) == 2
    assert min(learned.values()) >= 3, learned
    reasons = {"no_rejected", "no_incorrect_answer", "own_missing", "no_correct_rollout", "no_incorrect_rollout"}
    assert reasons <= fallbacks, fallbacks
    assert spanning >= 40
    assert min(nothing.values()) >= 10, nothing


@pytest.mark.processes
def test_a_process_that_hangs_is_found(tmp_path):
    """The watchdog itself: where every process was."""
    with pytest.raises(RuntimeError, match=r"rank-1\.trace") as failure:
        launch(tmp_path / "out", [replace(situation(0), hangs=1)], 2, patience=15)
    traces = str(failure.value)
    assert "rank-0.trace" in traces
    assert traces.count("in _generate_and_score_completions") >= 2


@pytest.mark.processes
@pytest.mark.parametrize(("processes", "fails"), [(2, 0), (2, 1), (3, 1)])
def test_a_verifier_that_breaks_on_one_process_ends_the_run(tmp_path, processes, fails):
    """With its own error, and before any watchdog."""
    with pytest.raises(RuntimeError, match=f"RuntimeError: the verifier of process {fails} broke") as failure:
        launch(tmp_path / "out", [replace(situation(0), fails=fails)], processes)
    assert "Timeout" not in str(failure.value)


def cli(folder, processes, *options):
    """`cepo train` on some processes, with the verifiers beside the worker; exit status and what was printed."""
    command = [sys.executable, "-m", "cepo.cli", "train", "--use_cpu", "true", f"--output_dir={folder / 'out'}"]
    if processes > 1:
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    (folder / "asked").mkdir(parents=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CEPO_TEST_ASKED": str(folder / "asked")}
    done = subprocess.run(
        [*command, *options], env=environment, capture_output=True, text=True, timeout=600, cwd=HERE, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.processes
def test_accuracy_is_measured_once_by_all_processes_together(tmp_path):
    """Ten problems, batches of four, three processes: each is asked once, and a missing verdict is counted once."""
    options = (
        *("--reward_funcs=verifier.judged", "--max_steps=1", "--learning_rate=0", "--eval_problems=10"),
        *(
            "--eval_batch_size=4",
            "--per_device_eval_batch_size=4",
            "--eval_samples=2",
            "--eval_sampled_problems=5",
            "--num_generations=4",
        ),
        *("--max_completion_length=60", "--figures_problems=16"),
    )
    asked, printed, missing = {}, {}, []
    for processes in (1, 3):
        folder = tmp_path / str(processes)
        status, out, errors = cli(folder, processes, *options, f"--per_device_train_batch_size={12 // processes}")
        assert status == 0, errors[-3000:]
        files = sorted((folder / "asked").iterdir())
        assert len(files) == processes  # each has its share
        asked[processes] = sorted(json.loads(line) for file in files for line in file.read_text().splitlines())
        printed[processes] = [line for line in out.splitlines() if line.startswith("held-out accuracy")]
        # Greedy answers to ten, two samples of five, before and after.
        assert len(asked[processes]) == 2 * (10 + 2 * 5)
        summary = json.loads((folder / "out" / "summary.json").read_text())
        missing.append([summary[when]["greedy"]["missing_verdicts"] for when in ("before", "after")])
    assert printed[3] == printed[1]
    assert missing[0] == missing[1]
    assert min(missing[0]) > 0
    assert len(printed[3]) == 2
    assert all("of 10 without a verdict" in line for line in printed[3])
    times = {count: Counter(solution for solution, _ in lines) for count, lines in asked.items()}
    assert times[3] == times[1]
    assert sorted(times[1].values()) == [2] * 5 + [6] * 5
    # Greedy answers are those of one process.
    greedy = {count: [pair for pair in lines if times[count][pair[0]] == 2] for count, lines in asked.items()}
    assert greedy[3] == greedy[1]


@pytest.mark.processes
@pytest.mark.parametrize("saves", [True, False])
def test_a_verifier_that_breaks_on_one_process_leaves_a_whole_checkpoint(tmp_path, saves):
    """Exit status 1, the error, and how to go on."""
    options = (
        *("--reward_funcs=verifier.breaks", "--max_steps=5", "--eval_problems=0", "--num_generations=4"),
        *("--per_device_train_batch_size=4", "--max_completion_length=24", "--figures_problems=16"),
        *(("--save_strategy=steps", "--save_steps=1") if saves else ("--save_strategy=no",)),
    )
    status, printed, errors = cli(tmp_path, 2, *options)
    assert status == 1
    assert "RuntimeError: the verifier of process 1 broke" in errors
    found = last_whole_checkpoint(tmp_path / "out")
    assert (found and found.name) == ("checkpoint-2" if saves else None)
    assert ("Resume with" in printed) <= saves
