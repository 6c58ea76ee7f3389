"""Progress of a training run in the terminal, and a checkpoint on Ctrl-C."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Column
from transformers import TrainerCallback

INTERRUPTED = 128 + signal.SIGINT  # exit status


class Progress(TrainerCallback):
    """Draws a progress bar on a terminal, and prints a line per log elsewhere.

    TRL logs no reward for steps that reuse rollouts; the bar then keeps the last one.

    Args:
        console: The terminal.
        live: Whether to draw the bar; None: on a terminal.

    Attributes:
        bar: A context manager around training.
    """

    def __init__(self, console: Console, live: bool | None = None):
        self._console = console
        if live is None:
            live = console.is_terminal and not (console.is_dumb_terminal or console.is_jupyter or console.quiet)
        text = TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True, overflow="crop"))
        columns = (BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), text)
        self.bar = Bar(*columns, console=console, auto_refresh=False, disable=not live, speed_estimate_period=3600)
        self._last: dict[str, str] = {}

    def on_train_begin(self, args, state, control, **kwargs):  # noqa: ARG002
        self._task = self.bar.add_task("", total=max(1, state.max_steps), completed=state.global_step, text="")
        self.bar.refresh()

    def on_log(self, args, state, control, logs: dict[str, Any] | None = None, **kwargs):  # noqa: ARG002
        if not logs or "step_time" not in logs or not state.is_world_process_zero:  # a log of an evaluation
            return
        formats = {"reward": "reward", "correct": "cepo/correct", "lambda": "cepo/coefficient"}
        values = {name: logs.get(key) for name, key in formats.items()}
        known = {name: f"{value:.2f}" for name, value in values.items() if value is not None}
        if (length := logs.get("completions/mean_length")) is not None:
            known["length"] = f"{length:.0f}"
        self._last |= known
        self.bar.update(self._task, completed=state.global_step, text=_text(self._last))
        if not self.bar.disable:
            self.bar.refresh()
            return
        seconds = self.bar.tasks[self._task].time_remaining
        left = "-" if seconds is None else f"{round(seconds) // 60}:{round(seconds) % 60:02d}"
        step = f"{state.global_step:>{len(str(state.max_steps))}}/{state.max_steps}"
        self._console.print(f"step {step}  {_text(known)}  {left} left")


def _text(values: dict[str, str]) -> str:
    return "  ".join(f"{name} {values.get(name, '-')}" for name in ("reward", "correct", "lambda", "length"))


class StopOnInterrupt(TrainerCallback):
    """On Ctrl-C or SIGTERM, finishes the step, saves a checkpoint and stops the run; a second signal stops at once.

    Args:
        quiet: Whether another process prints the message.
        all_reduce_max: The maximum of a number over all processes, which stop together: a signal may reach one of them
            a step earlier, or alone.

    Attributes:
        status: Exit status, as shells define it.
        saved: The last checkpoint of this run.
    """

    def __init__(self, quiet: bool = False, all_reduce_max: Callable[[int], int] = int):
        self._quiet, self._all_reduce_max = quiet, all_reduce_max
        self.status = INTERRUPTED
        self.saved: str | None = None
        self._interrupted_at: float | None = None
        self._handlers: dict[int, Any] = {}

    def on_train_begin(self, args, state, control, **kwargs):  # noqa: ARG002
        self._handlers = {number: signal.signal(number, self._interrupt) for number in (signal.SIGINT, signal.SIGTERM)}

    def _interrupt(self, signum, frame):  # noqa: ARG002
        if self._interrupted_at is not None:
            # Schedulers signal all processes, and torchrun forwards its signal to them: within a second, it is one.
            if time.monotonic() - self._interrupted_at < 1:
                return
            raise KeyboardInterrupt
        self._interrupted_at, self.status = time.monotonic(), 128 + signum
        if not self._quiet:  # written past Python's buffers, which the signal may have interrupted
            os.write(1, b"\nStopping after this step, to save a checkpoint. A second signal stops at once.\n")

    def interrupted(self) -> bool:
        """Whether any process was interrupted. Collective."""
        status = self._all_reduce_max(0 if self._interrupted_at is None else self.status)
        if status and self._interrupted_at is None:  # this process's signal may be on its way
            self._interrupted_at = time.monotonic()
        self.status = status or self.status
        return bool(status)

    def on_step_end(self, args, state, control, **kwargs):  # noqa: ARG002
        if self.interrupted():
            control.should_save = control.should_training_stop = True
        return control

    def on_save(self, args, state, control, **kwargs):  # noqa: ARG002
        self.saved = f"{args.output_dir}/checkpoint-{state.global_step}"

    def on_train_end(self, args, state, control, **kwargs):  # noqa: ARG002
        self.restore()

    def restore(self) -> None:
        """Restore the signal handlers."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
