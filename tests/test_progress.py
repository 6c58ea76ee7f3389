"""Progress of a run: a bar on a terminal, lines elsewhere."""

import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import termios
from types import SimpleNamespace

import pytest
from rich.console import Console

from cepo.commands.progress import Progress
from cepo.inspection.console import PlainConsole
from tests.support.command_line import SMALL, command


def follow(logs, *, live=False, width=120, start=0):
    """Lines, or texts of the bar, after each log; a second passes between steps."""
    console = Console(file=io.StringIO(), width=width, force_terminal=live, color_system=None)
    args = SimpleNamespace()
    state = SimpleNamespace(global_step=start, max_steps=10, is_world_process_zero=True)
    shown = Progress(console, live)
    clock = iter(range(1000))
    shown.bar.get_time = lambda: next(clock)
    shown.on_train_begin(args, state, None)
    for step, log in logs:
        state.global_step = step
        shown.on_log(args, state, None, logs=log)
    if not live:
        return console.file.getvalue().splitlines()
    drawn = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    drawn.print(shown.bar.get_renderable())
    return drawn.file.getvalue().rstrip("\n")


def log_of(**more):
    return {"reward": 0.5, "cepo/correct": 0.25, "completions/mean_length": 20.0, "step_time": 2.0, **more}


REUSED = {"step_time": 1.0, "cepo/coefficient": 0.5}
LOGS = [(1, log_of()), (2, REUSED), (3, log_of(reward=0.75)), (4, REUSED), (5, REUSED)]


def test_each_log_is_a_line():
    """Steps that reuse rollouts have no reward in TRL's log, and logs of evaluations are left out."""
    lines = follow([*LOGS, (5, {"eval_reward": 0.1})])
    assert len(lines) == 5
    assert lines[2].startswith("step  3/10  reward 0.75  correct 0.25  lambda -  length 20  ")
    assert re.fullmatch(r"step  4/10  reward -  correct -  lambda 0\.50  length -  \d+:\d\d left", lines[3])


def test_the_bar_keeps_the_last_values():
    text = follow(LOGS, live=True)
    assert re.fullmatch(
        r"[━╸╺ ]{20} +5/10 \d+:\d\d:\d\d reward 0\.75  correct 0\.25  lambda 0\.50  length 20 *", text
    ), text


@pytest.mark.parametrize("width", [10, 20, 40, 60, 79, 80, 100, 200])
def test_the_bar_is_one_line_on_any_terminal(width):
    text = follow(LOGS, live=True, width=width)
    assert "\n" not in text
    assert len(text) <= width


def test_a_resumed_run_starts_at_its_step():
    assert "7/10" in follow([], live=True, start=7)


def test_only_a_terminal_gets_the_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    assert Progress(PlainConsole(file=io.StringIO())).bar.disable
    assert not Progress(PlainConsole(file=io.StringIO(), force_terminal=True)).bar.disable
    assert Progress(PlainConsole(file=io.StringIO(), force_terminal=True), live=False).bar.disable
    assert Progress(PlainConsole(file=io.StringIO(), force_terminal=True, quiet=True)).bar.disable
    monkeypatch.setenv("TERM", "dumb")
    assert Progress(PlainConsole(file=io.StringIO(), force_terminal=True)).bar.disable


def on_a_terminal(arguments, folder, *, interrupt_at=None):
    """The output of the command on a terminal of 100 columns, and its exit status."""
    terminal, process_end = pty.openpty()
    fcntl.ioctl(process_end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "NO_COLOR": "1"}
    process = subprocess.Popen(
        command(*arguments), stdout=process_end, stderr=process_end, stdin=process_end, cwd=folder, env=environment
    )
    os.close(process_end)
    written = b""
    while select.select([terminal], [], [], 240)[0]:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # the process has closed the terminal
            break
        if not part:
            break
        written += part
        if interrupt_at is not None and interrupt_at in written:
            process.send_signal(2)
            interrupt_at = None
    os.close(terminal)
    return written.decode(), process.wait(60)


def test_a_run_on_a_terminal(tmp_path):
    options = ["--max_steps=3", "--accuracy_every=1", "--eval_problems=4", "--eval_samples=0", "--output_dir=out"]
    written, status = on_a_terminal(["train", *SMALL, *options], tmp_path)
    assert status == 0, written
    for step in range(1, 4):
        assert re.search(rf"{step}/3 [\d:-]+ reward", written)
    assert re.search(r"3/3 0:00:00 reward [\d.-]+  correct [\d.-]+  lambda 0\.\d\d  length \d+", written)
    assert not re.search(r"step 1/3  reward", written)
    assert "\x1b[2K" in written  # the bar is redrawn
    assert "held-out accuracy at step 1" in written
    assert written.count("held-out accuracy") == 4
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")  # the cursor is restored
    assert (tmp_path / "out" / "summary.json").is_file()


def test_lines_between_tables_of_completions(tmp_path):
    options = ["--max_steps=2", "--eval_problems=0", "--log_completions", "--num_completions_to_print=1"]
    written, status = on_a_terminal(["train", *SMALL, *options, "--output_dir=out"], tmp_path)
    assert status == 0, written
    lines = re.sub(r"\x1b\[[\d;]*m", "", written).splitlines()
    assert sum(line.startswith("step ") for line in lines) == 2
    assert sum(line.startswith("╭") and " Step " in line for line in lines) >= 2
    assert "\x1b[2K" not in written


def test_ctrl_c_on_a_terminal(tmp_path):
    options = ["--max_steps=400", "--eval_problems=0", "--save_strategy=no", "--output_dir=out"]
    written, status = on_a_terminal(["train", *SMALL, *options], tmp_path, interrupt_at=b"1/400 ")
    assert status == 130
    assert "Traceback" not in written
    assert "Stopping after this step, to save a checkpoint." in written
    assert "Resume with: --resume_from_checkpoint out/checkpoint-" in written
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")
