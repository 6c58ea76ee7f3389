"""`cepo train --accelerate_config`: what goes to accelerate, what stays, and processes that do not know each other."""

import os
import subprocess
import sys

import pytest

from cepo import CEPOConfig, cli
from cepo.commands import launch
from cepo.trainer.layout import check_processes

CPU = "recipes/accelerate/cpu.yaml"
SMALL = [
    "--max_steps=1",
    "--per_device_train_batch_size=8",
    "--num_generations=4",
    "--max_completion_length=24",
    "--figures_problems=8",
]


def test_flags_of_accelerate_go_to_it_and_all_others_stay():
    own = {"--learning_rate", "--use_cpu", "--config"}
    line = "--config a.yaml --num_processes 4 --accelerate_config zero3 --use_cpu true --learning_rate=1e-5 --debug"
    assert launch.split([*line.split(), "--machine_rank=1"], own) == (
        ["--num_processes", "4", "--accelerate_config", "zero3", "--debug", "--machine_rank=1"],
        ["--config", "a.yaml", "--use_cpu", "true", "--learning_rate=1e-5"],
    )


@pytest.mark.parametrize("form", [["--accelerate_config", "zero3"], ["--accelerate_config=zero3"]])
def test_the_command_that_is_launched(monkeypatch, form):
    started = []
    monkeypatch.setattr(launch, "launch_command", started.append)
    assert cli.main(["train", *form, "--num_processes", "3", "--machine_rank", "0", "--learning_rate", "1e-5"]) == 0
    (found,) = started
    assert found.config_file.endswith("zero3.yaml")
    assert (found.num_processes, found.machine_rank, found.module) == (3, 0, True)
    assert [found.training_script, *found.training_script_args] == ["cepo.cli", "train", "--learning_rate", "1e-5"]


def test_no_such_configuration(capsys):
    assert cli.main(["train", "--accelerate_config", "zero9"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--accelerate_config" in line
    assert "zero3" in line


def test_processes_that_do_not_know_of_each_other_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_processes(2)
    with pytest.raises(ValueError, match=r"2 processes were started together.*--use_cpu true"):
        check_processes(1)


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "cepo.cli", "train", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_two_processes_from_one_line(tmp_path):
    done = run("--accelerate_config", CPU, *SMALL, "--eval_problems=4", "--eval_samples=0", f"--output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("held-out accuracy before training") == 1
    assert (tmp_path / "summary.json").is_file()


@pytest.mark.slow
def test_a_mistake_is_said_once_and_gives_its_exit_status(tmp_path):
    done = run("--accelerate_config", CPU, "--max_step", "1")
    assert done.returncode == 2
    assert done.stderr.count("unknown option --max_step") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_two_runs_never_write_one_folder(tmp_path):
    """As torchrun starts them, with accelerate looking for GPUs that are not there."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [sys.executable, *launcher, "-m", "cepo.cli", "train", *SMALL, f"--output_dir={tmp_path / 'out'}"]
    environment = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    assert done.stderr.count("WORLD_SIZE says that 2 processes were started together") == 1
    assert not (tmp_path / "out").exists()


def test_one_process_is_not_asked():
    assert CEPOConfig(output_dir="unused", bf16=False, report_to="none").world_size == 1


def test_a_yaml_file_says_how_to_start_processes(monkeypatch, tmp_path):
    """As TRL's does; flags win, and the processes that were started leave those lines alone."""
    started = []
    monkeypatch.setattr(launch, "launch_command", started.append)
    config = tmp_path / "run.yaml"
    config.write_text("accelerate_config: zero3\nnum_processes: 8\nnum_machines: 1\nlearning_rate: 1.0e-5\n")
    assert cli.main(["train", "--config", str(config), "--num_processes", "3"]) == 0
    (found,) = started
    assert found.config_file.endswith("zero3.yaml")
    assert (found.num_processes, found.num_machines) == (3, 1)
    assert found.training_script_args == ["train", "--config", str(config)]
    assert not launch.is_launched()


def test_processes_of_accelerate_without_its_configuration_are_refused(tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text("num_processes: 8\n")
    assert cli.main(["train", "--config", str(config)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "num_processes" in line
    assert "accelerate_config" in line


@pytest.mark.slow
def test_two_processes_from_a_yaml_file(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(f"accelerate_config: {CPU}\nnum_processes: 2\neval_problems: 0\noutput_dir: {tmp_path / 'out'}\n")
    done = run("--config", str(config), *SMALL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("steps of 4 prompts x 4 rollouts") == 1  # 8 rollouts of each process
