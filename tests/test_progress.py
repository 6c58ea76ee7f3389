"""What a person sees while a run trains: a live line on a terminal, plain lines elsewhere."""

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

from cepo.commands import progress
from cepo.commands.progress import LiveLine, ProgressLines, Standing, live_line, progress_on, tokens_a_second
from cepo.inspection.console import PlainConsole

from .test_cli import SMALL, command

STANDING = Standing(12, 400, 0.5, 0.25, 0.4, 31.0, 1234.4, 75.0)
UNKNOWN = Standing(0, 400, None, None, None, None, None, None)


def printed(standing, width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(live_line(standing, width))
    return console.file.getvalue().rstrip("\n")


def test_the_live_line():
    line = printed(STANDING, 120)
    assert re.fullmatch(
        r"[━╸╺ ]{40} +12/400  reward 0\.50  right 25%  lambda 0\.40  1,234 tokens/s  1:15 left *", line
    ), line
    assert printed(UNKNOWN, 120).strip(" ╺━") == "0/400  reward -  right -  lambda -  - tokens/s  - left"


@pytest.mark.parametrize("width", [10, 20, 40, 60, 79, 80, 100, 200])
def test_the_live_line_is_one_line_of_any_terminal(width):
    line = printed(STANDING, width)
    assert "\n" not in line
    assert len(line) <= width
    assert "12/400"[: width - 2] in line
    if width >= 30:
        assert line.rstrip().endswith("left")


def test_tokens_a_second_are_of_training_steps_alone():
    """A generation for two steps: its lengths stand in one log, the seconds of both count."""
    logged = [progress._Logged(1, 4.0, 10.0), progress._Logged(1, 1.0, None)]
    assert tokens_a_second(logged, 8) == pytest.approx(10 * 8 * 2 / 5)
    assert tokens_a_second([progress._Logged(1, 4.0, None)], 8) is None
    assert tokens_a_second([], 8) is None


class Shown(ProgressLines):
    def __init__(self):
        super().__init__(Console(file=io.StringIO()))
        self.standings = []

    def show(self, standing):
        self.standings.append(standing)
        super().show(standing)


def follow(logs, monkeypatch, *, seconds=(0, 100, 200, 300, 400), **args):
    """What is shown of some logs, between which so much time passes."""
    clock = iter(seconds)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    shown = Shown()
    given = {"per_device_train_batch_size": 4, "world_size": 2, "gradient_accumulation_steps": 1, "num_iterations": 1}
    args = SimpleNamespace(**(given | args))
    state = SimpleNamespace(global_step=0, max_steps=10, is_world_process_zero=True)
    shown.on_train_begin(args, state, None)
    for step, log in logs:
        state.global_step = step
        shown.on_log(args, state, None, logs=log)
    return shown


def log_of(**more):
    return {"reward": 0.5, "cepo/right": 0.25, "completions/mean_length": 20.0, "step_time": 2.0, **more}


def test_evaluation_between_steps_changes_no_rate(monkeypatch):
    """A hundred seconds pass between logs, two of them in steps: 20 tokens of 8 rollouts in 2 seconds."""
    evaluation = (2, {"eval_reward": 0.1, "eval_loss": 0.0})
    shown = follow([(1, log_of()), evaluation, (2, log_of()), (4, log_of(step_time=4.0))], monkeypatch)
    assert [one.rate for one in shown.standings] == pytest.approx([80, 80, 20 * 8 * 4 / 12])
    assert [one.step for one in shown.standings] == [1, 2, 4]
    assert shown.standings[-1].left == pytest.approx(6 * 75)  # a step of 100 seconds, two of 50 each


def test_rollouts_that_are_learned_from_twice_are_sampled_once(monkeypatch):
    again = {"step_time": 1.0}
    shown = follow([(1, log_of()), (2, again), (3, log_of()), (4, again)], monkeypatch, num_iterations=2)
    assert [one.step for one in shown.standings] == [1, 2, 3, 4]
    assert shown.standings[-2].rate == pytest.approx(20 * 4 * 3 / 5)


def test_every_logged_step_is_shown(monkeypatch):
    """One that reuses rollouts has no reward in TRL's log; the time left goes on from one with rollouts to the next."""
    again = {"step_time": 1.0, "cepo/coefficient": 0.5}
    logs = [(1, log_of()), (2, again), (3, log_of(reward=0.75)), (4, again), (5, again)]
    shown = follow(logs, monkeypatch, seconds=(0, 10))
    assert [one.reward for one in shown.standings] == [0.5, None, 0.75, None, None]
    assert [one.left for one in shown.standings] == [None, None, 7 * 5, 6 * 5, 5 * 5]
    lines = shown.console.file.getvalue().splitlines()
    assert lines[3] == "step  4/10  reward -  right -  lambda 0.50  length -  0:30 left"
    live = LiveLine(Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None))
    for standing in shown.standings:
        live.show(standing)
    drawn = live._live.get_renderable()
    live._console.print(drawn)
    assert "5/10  reward 0.75  right 25%  lambda 0.50" in live._console.file.getvalue()  # of step 3's rollouts


def test_a_run_whose_rollouts_serve_for_four_steps(tmp_path):
    options = ["--max_steps=6", "--gradient_accumulation_steps=1", "--steps_per_generation=4", "--eval_problems=0"]
    done = subprocess.run(
        command("train", *SMALL, *options, "--save_strategy=no", "--output_dir=out"),
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line.split("  ") for line in done.stdout.splitlines() if line.startswith("step")]
    assert [line[0] for line in lines] == [f"step {step}/6" for step in range(1, 7)]
    assert [line[1] != "reward -" for line in lines] == [True, False, False, False, True, False]


def test_what_is_not_known_is_a_dash(monkeypatch):
    shown = follow([(1, log_of(**{"cepo/right": None, "reward": None, "step_time": None}))], monkeypatch)
    assert shown.console.file.getvalue() == "step  1/10  reward -  right -  lambda -  length 20  - left\n"


def test_only_a_terminal_gets_the_live_line(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(progress_on(PlainConsole(file=io.StringIO())), ProgressLines)
    assert isinstance(progress_on(PlainConsole(file=io.StringIO(), force_terminal=True)), LiveLine)
    assert isinstance(progress_on(PlainConsole(file=io.StringIO(), force_terminal=True, quiet=True)), ProgressLines)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(progress_on(PlainConsole(file=io.StringIO(), force_terminal=True)), ProgressLines)


def on_a_terminal(arguments, folder, *, interrupt_at=None):
    """What the command writes on a terminal of 100 columns, and its exit status."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "NO_COLOR": "1"}
    process = subprocess.Popen(
        command(*arguments), stdout=theirs, stderr=theirs, stdin=theirs, cwd=folder, env=environment
    )
    os.close(theirs)
    written = b""
    while select.select([ours], [], [], 240)[0]:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the terminal is closed when nobody is left to write
            break
        if not part:
            break
        written += part
        if interrupt_at is not None and interrupt_at in written:
            process.send_signal(2)
            interrupt_at = None
    os.close(ours)
    return written.decode(), process.wait(60)


def test_on_a_terminal_there_is_one_line_that_changes(tmp_path):
    options = ["--max_steps=3", "--accuracy_every=1", "--eval_problems=4", "--eval_samples=0", "--output_dir=out"]
    written, status = on_a_terminal(["train", *SMALL, *options], tmp_path)
    assert status == 0, written
    for step in range(4):
        assert f"{step}/3  reward" in written
    assert re.search(r"3/3  reward [\d.-]+  right \d+%  lambda 0\.\d\d  [\d,]+ tokens/s  0:00 left", written)
    assert not re.search(r"step 1/3  reward", written)
    assert "\x1b[2K" in written  # the line is drawn again in its place
    assert "held-out accuracy at step 1" in written  # other lines stand above it
    assert written.count("held-out accuracy") == 4
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")  # the cursor is back
    assert (tmp_path / "out" / "summary.json").is_file()


def test_lines_stand_between_tables_of_completions(tmp_path):
    options = ["--max_steps=2", "--eval_problems=0", "--log_completions", "--num_completions_to_print=1"]
    written, status = on_a_terminal(["train", *SMALL, *options, "--output_dir=out"], tmp_path)
    assert status == 0, written
    lines = re.sub(r"\x1b\[[\d;]*m", "", written).splitlines()
    assert sum(line.startswith("step ") for line in lines) == 2
    assert sum(line.startswith("╭") and " Step " in line for line in lines) >= 2
    assert "\x1b[2K" not in written


def test_ctrl_c_on_a_terminal(tmp_path):
    options = ["--max_steps=400", "--eval_problems=0", "--save_strategy=no", "--output_dir=out"]
    written, status = on_a_terminal(["train", *SMALL, *options], tmp_path, interrupt_at=b"1/400  reward")
    assert status == 130
    assert "Traceback" not in written
    assert "Stopping after this step, to save it." in written
    assert "Go on with: --resume_from_checkpoint out/checkpoint-" in written
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")
