"""`cepo train --accelerate_config`: the command line of accelerate, and signals to several processes."""

import os
import signal
import subprocess
import sys

import psutil
import pytest
from transformers import TrainerControl

from cepo import cli
from cepo.commands import launch, progress
from cepo.commands.progress import StopOnInterrupt
from cepo.trainer.arguments import read_command_line
from cepo.trainer.checkpoints import last_whole_checkpoint
from cepo.trainer.validation import check_world_size

CPU = ["--accelerate_config", "recipes/accelerate/cpu.yaml", "--use_cpu", "true"]
SMALL = [
    "--max_steps=1",
    "--per_device_train_batch_size=8",
    "--num_generations=4",
    "--max_completion_length=24",
    "--figures_problems=8",
]


def test_options_of_accelerate_are_separated():
    line = read_command_line("--num_processes 4 --accelerate_config zero3 --use_cpu true --learning_rate=1e-5".split())
    assert line.more_flags == ["--num_processes", "4", "--accelerate_config", "zero3"]
    assert (line.options.use_cpu, line.options.learning_rate) == (True, 1e-5)
    assert (line.options.method, line.options.bf16, line.options.dry_run) == (None, None, False)


@pytest.mark.parametrize("form", [["--accelerate_config", "zero3"], ["--accelerate_config=zero3"]])
def test_the_launched_command(monkeypatch, form):
    started = []
    monkeypatch.setattr(launch, "launch_command", started.append)
    assert cli.main(["train", *form, "--num_processes", "3", "--machine_rank", "0", "--learning_rate", "1e-5"]) == 0
    (found,) = started
    assert found.config_file.endswith("zero3.yaml")
    assert (found.num_processes, found.machine_rank, found.module) == (3, 0, True)
    assert [found.training_script, *found.training_script_args] == ["cepo.cli", "train", "--learning_rate", "1e-5"]


def test_an_unknown_configuration(capsys):
    assert cli.main(["train", "--accelerate_config", "zero9"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "Accelerate config zero9 is neither a file nor a valid config in the `trl` package" in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_step", "1"], "unknown option --max_step; did you mean --max_steps?"),
        (["--num_processes", "two"], "accelerate's options: argument --num_processes"),
        (["word"], "unexpected 'word'"),
    ],
)
def test_errors_are_found_before_the_launch(flags, message, capsys):
    assert cli.main(["train", "--accelerate_config", "zero3", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_processes_without_a_process_group_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_world_size(2)
    with pytest.raises(ValueError, match=r"WORLD_SIZE=2, but each process would train alone.*--use_cpu true"):
        check_world_size(1)


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "cepo.cli", "train", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.integration
def test_two_processes(tmp_path):
    done = run(*CPU, *SMALL, "--eval_problems=4", "--eval_samples=0", f"--output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("held-out accuracy before training") == 1
    assert (tmp_path / "summary.json").is_file()


@pytest.mark.integration
def test_an_error_of_all_processes_is_printed_once(tmp_path):
    done = run(*CPU, "--num_generations", "1")
    assert done.returncode == 2
    assert done.stderr.count("cepo: error: ") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.integration
def test_separate_runs_in_one_folder_are_refused(tmp_path):
    """Started by torchrun, where accelerate expects GPUs."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [sys.executable, *launcher, "-m", "cepo.cli", "train", *SMALL, f"--output_dir={tmp_path / 'out'}"]
    environment = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    assert done.stderr.count("WORLD_SIZE says that 2 processes were started together") == 1
    assert not (tmp_path / "out").exists()


def test_options_of_accelerate_in_a_yaml_file(monkeypatch, tmp_path):
    """As in TRL; flags override them, and the launched processes ignore them."""
    started = []
    monkeypatch.setattr(launch, "launch_command", started.append)
    config = tmp_path / "run.yaml"
    config.write_text("accelerate_config: zero3\nnum_processes: 8\nnum_machines: 1\nlearning_rate: 1.0e-5\n")
    assert cli.main(["train", "--config", str(config), "--num_processes", "3"]) == 0
    (found,) = started
    assert found.config_file.endswith("zero3.yaml")
    assert (found.num_processes, found.num_machines) == (3, 1)
    assert found.training_script_args == ["train", "--config", str(config)]
    assert launch.LAUNCHED not in os.environ


def test_options_of_accelerate_need_a_configuration(tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text("num_processes: 8\n")
    assert cli.main(["train", "--config", str(config)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "num_processes" in line
    assert "accelerate_config" in line


@pytest.mark.integration
def test_two_processes_from_a_yaml_file(tmp_path):
    config = tmp_path / "run.yaml"
    lines = ["accelerate_config: recipes/accelerate/cpu.yaml", "num_processes: 2", "use_cpu: true", "eval_problems: 0"]
    config.write_text("\n".join([*lines, f"output_dir: {tmp_path / 'out'}"]))
    done = run("--config", str(config), *SMALL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("1 step of 4 prompts x 4 rollouts") == 1  # 8 rollouts of each process


# Signals --------------------------------------------------------------------------------------------------------------


def interrupts(*others):
    """The callback, with the status of the other processes at each reduction."""
    statuses = list(others)
    return StopOnInterrupt(True, lambda number: max(number, statuses.pop(0) if statuses else 0))


def test_a_forwarded_signal_counts_once(monkeypatch):
    interrupt, now = interrupts(), [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    interrupt._interrupt(signal.SIGTERM, None)
    now[0] += 0.5
    interrupt._interrupt(signal.SIGTERM, None)
    now[0] += 1
    with pytest.raises(KeyboardInterrupt):
        interrupt._interrupt(signal.SIGTERM, None)


def test_processes_stop_together():
    """Whichever of them has received the signal; a later one of the other process counts as the same."""
    interrupt, control = interrupts(0, 143), TrainerControl()
    interrupt.on_step_end(None, None, control)
    assert not control.should_save
    interrupt.on_step_end(None, None, control)
    assert control.should_save
    assert control.should_training_stop
    assert interrupt.status == 143
    interrupt._interrupt(signal.SIGTERM, None)
    assert interrupt.interrupted()
    assert not interrupts(0).interrupted()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("how", "of", "status"),
    [(signal.SIGTERM, "launcher", 143), (signal.SIGINT, "terminal", 130), (signal.SIGTERM, "one process", 143)],
)
def test_launched_processes_are_stopped_as_one(tmp_path, how, of, status):
    """torchrun forwards a signal and waits; a process with a signal stops the others."""
    flags = [flag for flag in SMALL if not flag.startswith("--max_steps")]
    more = ["--max_steps=400", "--eval_problems=0", "--save_strategy=no", f"--output_dir={tmp_path / 'out'}"]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "cepo.cli", "train", *CPU, *flags, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("step"):
            break
    workers = [child for child in psutil.Process(process.pid).children() if "cepo.cli" in child.cmdline()]
    assert len(workers) == 2
    if of == "launcher":
        process.send_signal(how)
    elif of == "terminal":  # whose process group is that of the launcher
        os.killpg(process.pid, how)
    else:
        workers[-1].send_signal(how)
    printed, errors = process.communicate(timeout=240)
    printed = "".join(lines) + printed
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
    assert process.returncode == status, errors[-3000:]
    last = last_whole_checkpoint(tmp_path / "out")
    assert printed.count("Resume with") == 1
    assert f"--resume_from_checkpoint {last}" in printed.replace("\n", " ")
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == [last.name]
    if of != "launcher":  # resuming is tested once
        return
    step = int(last.name.rpartition("-")[2])
    resumed = run(
        *(*CPU, *SMALL, f"--max_steps={step + 1}", "--eval_problems=0"),
        *(f"--output_dir={tmp_path / 'out'}", f"--resume_from_checkpoint={last}"),
    )
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert f"step {step + 1}/{step + 1}" in resumed.stdout
