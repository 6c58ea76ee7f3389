"""Resuming from the latest complete checkpoint is bit-identical; adapters of an earlier run are trained on."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cepo import cli
from cepo.scoring.teacher_weights import TeacherWeights
from cepo.trainer.checkpoints import MARK, find_checkpoint, last_whole_checkpoint

SMALL = {
    "max_steps": 4,
    "save_steps": 1,
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 24,
    "figures_problems": 16,
    "eval_problems": 6,
    "eval_sampled_problems": 4,
    "eval_samples": 2,
    "accuracy_every": 1,
    "teacher": "ema",
    "teacher_ema_decay": 0.5,
    "evidence_steps": 4,
    "reward_funcs": f"{__name__}.by_length",
    "warmup_steps": 0,
}


def by_length(completions, completion_ids, **kwargs):
    """A verdict by token ids: short completions are seldom correct."""
    sums = [sum(ids) for ids in completion_ids]
    return [float(total % 2) for total in sums]


def run(out, **options):
    flags = [part for name, value in {**SMALL, **options}.items() for part in (f"--{name}", str(value))]
    return cli.main(["train", "--output_dir", str(out), *flags])


def checkpoint(folder, step, state="{}"):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text(state)
    return path


def test_the_latest_complete_checkpoint(tmp_path):
    assert last_whole_checkpoint(tmp_path) is None
    for step in (2, 10, 9):
        checkpoint(tmp_path, step)
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    (tmp_path / "checkpoint-10" / MARK).touch()
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-9"
    (tmp_path / "checkpoint-9" / "trainer_state.json").write_text('{"global_st')
    assert find_checkpoint("True", str(tmp_path)) == str(tmp_path / "checkpoint-2")
    assert find_checkpoint(True, str(tmp_path)) == str(tmp_path / "checkpoint-2")  # as YAML has it
    for nothing in (None, "False", False, ""):
        assert find_checkpoint(nothing, str(tmp_path)) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("true", "there is no complete checkpoint in"),
        ("nowhere", "nowhere: there is no such folder"),
        ("cut", "cut: it was cut off while it was written"),
        ("empty", r"empty: it holds no checkpoint \(no trainer_state.json\)"),
        ("broken", "broken: its trainer_state.json was cut off"),
    ],
)
def test_incomplete_checkpoints_are_refused(tmp_path, given, message, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("cut", "empty", "broken"):
        Path(name).mkdir()
    for name, state in (("cut", "{}"), ("broken", "{")):
        (Path(name) / "trainer_state.json").write_text(state)
    (Path("cut") / MARK).touch()
    with pytest.raises(ValueError, match=message):
        find_checkpoint(given, "out")
    assert run("out", resume_from_checkpoint=given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cepo: error: resume_from_checkpoint")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert run(out) == 0
    return out


def losses(out, step):
    history = json.loads((out / f"checkpoint-{step}" / "trainer_state.json").read_text())["log_history"]
    return [(entry["loss"], entry["grad_norm"], entry["reward"]) for entry in history if "loss" in entry]


def same_end(one, other):
    """Weights, teacher, losses and accuracies are bit-identical."""
    for name in ("model.safetensors", "checkpoint-4/model.safetensors", "checkpoint-4/teacher.safetensors"):
        first, second = load_file(one / name), load_file(other / name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert losses(one, 4) == losses(other, 4)
    assert sum(grad_norm > 0 for _, grad_norm, _ in losses(one, 4)) >= 3
    first, second = (json.loads((out / "summary.json").read_text()) for out in (one, other))
    assert [point["step"] for point in first["accuracy"]] == [0, 1, 2, 3, 4]
    for name in ("accuracy", "before", "after", "steps", "seed"):
        assert first[name] == second[name]


@pytest.mark.parametrize("step", [1, 3])
def test_a_resumed_run_is_bit_identical(whole, tmp_path, step):
    out = tmp_path / "out"
    for saved in range(1, step + 1):
        shutil.copytree(whole / f"checkpoint-{saved}", out / f"checkpoint-{saved}")
    cut = shutil.copytree(whole / "checkpoint-4", out / "checkpoint-4")  # killed while it was written
    (cut / MARK).touch()
    (cut / "optimizer.pt").write_bytes(b"half")
    assert run(out, resume_from_checkpoint="true") == 0
    same_end(whole, out)
    assert not (out / "checkpoint-4" / MARK).exists()


def test_a_run_resumed_at_its_end_makes_no_step(whole, tmp_path, capsys):
    """Killed while its accuracy was measured."""
    out = tmp_path / "out"
    shutil.copytree(whole / "checkpoint-4", out / "checkpoint-4")
    capsys.readouterr()
    assert run(out, resume_from_checkpoint="true") == 0
    same_end(whole, out)
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-4"]
    assert "step 5" not in capsys.readouterr().out


def test_a_failed_save_keeps_the_checkpoint_before(tmp_path, monkeypatch, capsys):
    """A full disk at the last file, with save_total_limit=1."""
    save = TeacherWeights.save

    def full(self, folder):
        if folder.endswith("checkpoint-2"):
            raise OSError(28, "No space left on device")
        save(self, folder)

    monkeypatch.setattr(TeacherWeights, "save", full)
    assert run(tmp_path / "out", save_total_limit=1, eval_problems=0) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Stopped")]
    assert "No space left on device. Resume with: --resume_from_checkpoint" in line
    assert line.endswith("checkpoint-1")
    assert last_whole_checkpoint(tmp_path / "out") == tmp_path / "out" / "checkpoint-1"
    monkeypatch.undo()
    assert run(tmp_path / "out", save_total_limit=1, eval_problems=0, resume_from_checkpoint=True) == 0
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-4"]


@pytest.mark.integration
@pytest.mark.parametrize("most", [5_000_000, 6_600_000])
def test_a_file_that_is_cut_off(tmp_path, most):
    """A limit on file sizes cuts off the weights, or the optimizer state, of checkpoint 2."""
    quick = {"eval_problems": 0, "max_steps": 3, "save_total_limit": 1}
    flags = [part for name, value in {**SMALL, **quick}.items() for part in (f"--{name}", str(value))]
    script = (
        "import resource, sys, cepo.trainer.checkpoints as checkpoints\n"
        "from cepo import cli\n"
        "from cepo.scoring.teacher_weights import TeacherWeights\n"
        "save = TeacherWeights.save\n"
        "def saved(self, folder):\n"
        "    save(self, folder)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (MOST, resource.RLIM_INFINITY))\n"
        "TeacherWeights.save = saved\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    ).replace("MOST", str(most))
    done = subprocess.run(
        [sys.executable, "-c", script, "train", "--output_dir", tmp_path / "out", *flags],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("Stopped")]
    assert line.startswith("Stopped: a file could not be written, as on a full disk (")
    assert line.endswith(f"Resume with: --resume_from_checkpoint {tmp_path}/out/checkpoint-1")
    assert run(tmp_path / "out", **quick, resume_from_checkpoint=True) == 0


@pytest.mark.parametrize("removed", ["checkpoint-1", "checkpoint-2", "."])
def test_folders_that_are_removed_during_the_run(tmp_path, monkeypatch, capsys, removed):
    """While checkpoint 2 is written: checkpoint 1, checkpoint 2, or the output directory."""
    save, out = TeacherWeights.save, tmp_path / "out"

    def tidied(self, folder):
        save(self, folder)
        if folder.endswith("checkpoint-2"):
            shutil.rmtree(out / removed)

    monkeypatch.setattr(TeacherWeights, "save", tidied)
    quick = {"eval_problems": 0, "save_total_limit": 2, "max_steps": 3}
    status = run(out, **quick)
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    if removed == "checkpoint-1":
        assert status == 0
        assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
        return
    assert status == 1
    (line,) = [line for line in printed.out.splitlines() if line.startswith("Stopped")]
    there = removed == "checkpoint-2"
    assert line.endswith(f"{out}/checkpoint-1" if there else "No checkpoint is complete.")
    monkeypatch.undo()
    assert run(out, **quick, **({"resume_from_checkpoint": True} if there else {})) == 0


def test_a_read_only_output_dir_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "file" / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"cepo: error: output_dir: {tmp_path}/file/out cannot be written: Not a directory")


@pytest.mark.parametrize("use_peft", [True, False])
def test_adapters_are_trained_on(tmp_path, use_peft):
    """The output of a LoRA run, with or without --use_peft; evaluated and merged alike."""
    first, second = tmp_path / "first", tmp_path / "second"
    quick = {"max_steps": 1, "eval_problems": 0, "save_steps": 10, "accuracy_every": 0, "lora_r": 4}
    assert run(first, **quick, use_peft=True, learning_rate=1e-3) == 0
    before = load_file(first / "adapter_model.safetensors")
    assert any(weight.abs().max() > 0 for name, weight in before.items() if "lora_B" in name)
    assert run(second, **quick, use_peft=use_peft, model_name_or_path=first, learning_rate=0.0) == 0
    after = load_file(second / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert run(second, **quick, use_peft=use_peft, model_name_or_path=first, learning_rate=1e-3) == 0
    moved = load_file(second / "adapter_model.safetensors")
    assert any(not torch.equal(before[name], moved[name]) for name in before)
    sampling = ["--num_problems", "4", "--temperatures", "0", "--max_completion_length", "8"]
    assert cli.main(["evaluate", "--model_name_or_path", str(second), *sampling]) == 0


def started(out, **options):
    """The real command, after two steps."""
    wanted = {**SMALL, "max_steps": 400, "eval_problems": 0, **options}
    flags = [part for name, value in wanted.items() for part in (f"--{name}", str(value))]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "cepo.cli", "train", "--output_dir", out, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    read_until("step   2", process)
    return process


def read_until(words, process):
    assert any(words in line for line in process.stdout), process.stderr.read()


def ended(process, status, out):
    """The process ends with a status, and prints how to resume."""
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == status, errors
    assert "Traceback" not in errors
    assert f"--resume_from_checkpoint {last_whole_checkpoint(out)}" in printed


def test_sigterm_saves_and_ends_the_run(tmp_path):
    """After the current step, with exit status 143."""
    process = started(tmp_path / "out")
    process.send_signal(signal.SIGTERM)
    ended(process, 143, tmp_path / "out")


@pytest.mark.integration
def test_ctrl_c_twice_stops_at_once(tmp_path):
    process = started(tmp_path / "out", per_device_train_batch_size=16, num_generations=16, max_completion_length=100)
    process.send_signal(signal.SIGINT)
    read_until("Stopping after this step", process)
    process.send_signal(signal.SIGINT)
    ended(process, 130, tmp_path / "out")
