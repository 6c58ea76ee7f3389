"""What a person sees while `cepo train` runs, and what Ctrl-C does to it."""

import os
import signal
import statistics
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column
from transformers import TrainerCallback

INTERRUPTED = 130  # exit status after Ctrl-C
# Schedulers signal every process, and torchrun passes a signal on to its processes: a second one within so many seconds
# is the first one again.
SAME = 1.0
_STEPS = 10  # logs by whose time the rest is estimated


class Progress(TrainerCallback):
    """One line for every log, for files and pipes; on a terminal one line that changes, with a bar.

    Entered while training goes on. A step that reuses rollouts has no reward in TRL's log, nor in the lines; the bar's
    line keeps the last one.

    Args:
        console: Where to print.
        live: Whether to draw the bar; None: on a terminal.
    """

    def __init__(self, console: Console, live: bool | None = None):
        self.console = console
        if live is None:
            live = console.is_terminal and not (console.is_dumb_terminal or console.is_jupyter or console.quiet)
        text = TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True, overflow="crop"))
        # Drawn when there is something new, without a thread of its own.
        self.bar = Bar(BarColumn(20), text, console=console, auto_refresh=False) if live else None
        self._shown: dict[str, float | None] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def on_train_begin(self, args, state, control, **kwargs):  # noqa: ARG002
        self._step = state.global_step
        # Steps that sampled rollouts, with the time of their end; of each log its steps, seconds and mean length.
        self._sampled: deque[tuple[int, float]] = deque(maxlen=_STEPS)
        self._logged: deque[tuple[int, float, float | None]] = deque(maxlen=_STEPS)
        if self.bar is not None and state.is_world_process_zero:
            self._task = self.bar.add_task("", total=max(1, state.max_steps), text="")
            self.bar.start()
            self._show(state.global_step, state.max_steps, {}, None, None)

    def on_log(self, args, state, control, logs: dict[str, Any] | None = None, **kwargs):  # noqa: ARG002
        # Evaluations log too, and so does the end of training.
        if not logs or "step_time" not in logs or not state.is_world_process_zero:
            return
        # TRL's step_time is that of sampling and learning, without evaluations and checkpoints.
        steps, length = state.global_step - self._step, logs.get("completions/mean_length")
        self._step = state.global_step
        self._logged.append((steps, (logs["step_time"] or 0.0) * steps, length))
        if length is not None:
            self._sampled.append((state.global_step, time.monotonic()))
        each = args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps
        values = {"reward": logs.get("reward"), "right": logs.get("cepo/correct")}
        values |= {"lambda": logs.get("cepo/coefficient"), "length": length}
        rate, left = self._rate(each / args.num_iterations), self._left(state.max_steps - state.global_step)
        self._show(state.global_step, state.max_steps, values, rate, left)

    def _rate(self, rollouts: float) -> float | None:
        """Tokens sampled a second of training steps; `rollouts`: those that a step is the first to use, on average."""
        lengths = [length for *_, length in self._logged if length is not None]
        seconds = sum(seconds for _, seconds, _ in self._logged)
        if not lengths or seconds <= 0:
            return None
        return statistics.fmean(lengths) * rollouts * sum(steps for steps, *_ in self._logged) / seconds

    def _left(self, steps: int) -> float | None:
        """Seconds that so many steps take, by the median of the last ones; each with those that reuse its rollouts."""
        each = [(later - sooner) / (step - before) for (before, sooner), (step, later) in pairwise(self._sampled)]
        return statistics.median(each) * steps if each else None

    def _show(
        self, step: int, steps: int, values: dict[str, float | None], rate: float | None, left: float | None
    ) -> None:
        done = f"{step:>{len(str(steps))}}/{steps}"
        clock = "-" if left is None else f"{round(left) // 60}:{round(left) % 60:02d}"
        if self.bar is None:
            form = {"length": ".0f"}
            numbers = [f"{name} {_number(value, form.get(name, '.2f'))}" for name, value in values.items()]
            self.console.print("  ".join([f"step {done}", *numbers, f"{clock} left"]), highlight=False)
            return
        self._shown = {**values, **{name: self._shown.get(name) for name, value in values.items() if value is None}}
        shown = self._shown.get
        numbers = [f"reward {_number(shown('reward'))}", f"right {_number(shown('right'), '.0%')}"]
        numbers += [f"lambda {_number(shown('lambda'))}", f"{_number(rate, ',.0f')} tokens/s"]
        # The end is cropped on a narrow terminal.
        self.bar.update(self._task, completed=step, text="  ".join([done, f"{clock} left", *numbers]))
        self.bar.refresh()


class StopOnInterrupt(TrainerCallback):
    """Ctrl-C, and SIGTERM, which schedulers send: the step at hand is finished, saved, and the run stops.

    A second one stops at once.

    Args:
        console: Where that is said.
        most: The most of a number over all processes, who stop together: a signal may reach one of them a step before
            the others, or one alone.
    """

    def __init__(self, console: Console, most: Callable[[int], int] = int):
        self.console, self._most = console, most
        self.interrupted = False
        self.status = INTERRUPTED  # of the process in the end, as shells have it
        self.saved: str | None = None  # the last checkpoint that this run wrote
        self._previous: dict[int, Any] = {}
        self._since = 0.0

    def on_train_begin(self, args, state, control, **kwargs):  # noqa: ARG002
        self._previous = {number: signal.signal(number, self._interrupt) for number in (signal.SIGINT, signal.SIGTERM)}

    def _interrupt(self, signum, frame):  # noqa: ARG002
        now = time.monotonic()
        if self.interrupted and now - self._since < SAME:
            return
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted, self.status, self._since = True, 128 + signum, now
        again = "Ctrl-C again stops at once." if signum == signal.SIGINT else "A second SIGTERM stops at once."
        self._say_at_once(f"\nStopping after this step, to save it. {again}\n")

    def _say_at_once(self, text: str) -> None:
        """Past all buffers: the signal may have come while one of them was written, which must not begin again."""
        if self.console.quiet:
            return
        try:
            os.write(self.console.file.fileno(), text.encode())
        except (OSError, ValueError):  # a file of Python's alone, as notebooks have; or nobody listens
            with suppress(RuntimeError):
                self.console.print(text, end="")

    def agreed(self) -> bool:
        """Whether any process was interrupted; all ask together."""
        status = self._most(self.status if self.interrupted else 0)
        if status and not self.interrupted:  # its own signal is on its way, perhaps
            self.interrupted, self._since = True, time.monotonic()
        self.status = status or self.status
        return self.interrupted

    def on_step_end(self, args, state, control, **kwargs):  # noqa: ARG002
        if self.agreed():
            control.should_save = control.should_training_stop = True
        return control

    def on_save(self, args, state, control, **kwargs):  # noqa: ARG002
        self.saved = f"{args.output_dir}/checkpoint-{state.global_step}"

    def on_train_end(self, args, state, control, **kwargs):  # noqa: ARG002
        self.restore()

    def restore(self) -> None:
        """Give the signals back their usual meaning."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)
