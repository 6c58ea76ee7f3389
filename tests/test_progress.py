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
from cepo.commands.progress import Progress
from cepo.inspection.console import PlainConsole
from tests.support.command_line import SMALL, command


def follow(logs, monkeypatch, *, seconds=(0, 100, 200, 300, 400), live=False, width=120, **args):
    """What is printed of some logs, between which so much time passes; the bar's text where there is one."""
    clock = iter(seconds)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    console = Console(file=io.StringIO(), width=width, force_terminal=live, color_system=None)
    given = {"per_device_train_batch_size": 4, "world_size": 2, "gradient_accumulation_steps": 1, "num_iterations": 1}
    args = SimpleNamespace(**(given | args))
    state = SimpleNamespace(global_step=0, max_steps=10, is_world_process_zero=True)
    texts = []
    shown = Progress(console, live)
    shown.on_train_begin(args, state, None)
    for step, log in logs:
        state.global_step = step
        shown.on_log(args, state, None, logs=log)
        texts.append(shown.bar.tasks[0].fields["text"] if live else console.file.getvalue().splitlines()[-1])
    if live:
        shown.bar.stop()
        drawn = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
        drawn.print(shown.bar.get_renderable())
        texts.append(drawn.file.getvalue().rstrip("\n"))
    return texts


def log_of(**more):
    return {"reward": 0.5, "cepo/correct": 0.25, "completions/mean_length": 20.0, "step_time": 2.0, **more}


def test_evaluation_between_steps_changes_no_rate(monkeypatch):
    """A hundred seconds pass between logs, two of them in steps: 20 tokens of 8 rollouts in 2 seconds."""
    evaluation = (2, {"eval_reward": 0.1, "eval_loss": 0.0})
    logs = [(1, log_of()), evaluation, (2, log_of()), (4, log_of(step_time=4.0))]
    first, again, second, third, _ = follow(logs, monkeypatch, live=True)
    assert first.endswith("80 tokens/s")
    assert again == first
    assert second.endswith("80 tokens/s")
    assert third.endswith(f"{20 * 8 * 4 / 12:.0f} tokens/s")
    assert " 4/10  7:30 left" in third  # six steps by the median of 100 and 50 seconds


def test_rollouts_that_are_learned_from_twice_are_sampled_once(monkeypatch):
    again = {"step_time": 1.0}
    logs = [(1, log_of()), (2, again), (3, log_of()), (4, again)]
    texts = follow(logs, monkeypatch, live=True, num_iterations=2)
    assert texts[2].endswith(f"{20 * 4 * 3 / 5:.0f} tokens/s")


AGAIN = {"step_time": 1.0, "cepo/coefficient": 0.5}
REUSED = [(1, log_of()), (2, AGAIN), (3, log_of(reward=0.75)), (4, AGAIN), (5, AGAIN)]


def test_every_logged_step_is_a_line(monkeypatch):
    """A step that reuses rollouts has no reward in TRL's log; the time left is that of steps with rollouts."""
    lines = follow(REUSED, monkeypatch, seconds=(0, 10))
    assert [line.split("  ")[-1] for line in lines] == ["- left", "- left", "0:35 left", "0:30 left", "0:25 left"]
    assert lines[3] == "step  4/10  reward -  right -  lambda 0.50  length -  0:30 left"


def test_the_live_line(monkeypatch):
    *_, drawn = follow(REUSED, monkeypatch, seconds=(0, 10), live=True)
    # The reward and the share of right rollouts are those of step 3.
    numbers = r" 5/10  0:25 left  reward 0\.75  right 25%  lambda 0\.50  (\d+) tokens/s"
    assert re.fullmatch(rf"[━╸╺ ]{{20}} +{numbers} *", drawn), drawn


@pytest.mark.parametrize("width", [10, 20, 40, 60, 79, 80, 100, 200])
def test_the_live_line_is_one_line_of_any_terminal(monkeypatch, width):
    *_, drawn = follow(REUSED, monkeypatch, seconds=(0, 10), live=True, width=width)
    assert "\n" not in drawn
    assert len(drawn) <= width
    assert width < 40 or "5/10  0:25 left" in drawn


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
    logs = [(1, log_of(**{"cepo/correct": None, "reward": None, "step_time": None}))]
    assert follow(logs, monkeypatch) == ["step  1/10  reward -  right -  lambda -  length 20  - left"]
    assert follow(logs, monkeypatch, live=True)[0].endswith("- left  reward -  right -  lambda -  - tokens/s")


def test_only_a_terminal_gets_the_live_line(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    assert Progress(PlainConsole(file=io.StringIO())).bar is None
    assert Progress(PlainConsole(file=io.StringIO(), force_terminal=True)).bar is not None
    assert Progress(PlainConsole(file=io.StringIO(), force_terminal=True), live=False).bar is None
    assert Progress(PlainConsole(file=io.StringIO(), force_terminal=True, quiet=True)).bar is None
    monkeypatch.setenv("TERM", "dumb")
    assert Progress(PlainConsole(file=io.StringIO(), force_terminal=True)).bar is None


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
        assert re.search(rf"{step}/3  [\d:-]+ left  reward", written)
    assert re.search(r"3/3  0:00 left  reward [\d.-]+  right \d+%  lambda 0\.\d\d  [\d,]+ tokens/s", written)
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
    written, status = on_a_terminal(["train", *SMALL, *options], tmp_path, interrupt_at=b"1/400  ")
    assert status == 130
    assert "Traceback" not in written
    assert "Stopping after this step, to save it." in written
    assert "Resume with: --resume_from_checkpoint out/checkpoint-" in written
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")
