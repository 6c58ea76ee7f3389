"""What a person sees while `cepo train` runs, and what Ctrl-C does to it."""

import itertools
import os
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from rich.console import Console
from transformers import TrainerCallback

INTERRUPTED = 130  # exit status after Ctrl-C
# Schedulers signal every process, and launchers pass on to theirs what they get: a second signal within so many
# seconds is the first one again.
SAME = 1.0


_STEPS = 9  # by whose time the rest is estimated


def seconds_left(ended: Sequence[tuple[int, float]], steps: int) -> float | None:
    """What a run still takes, by the median of its last steps; None before the second, for the first tells little.

    Args:
        ended: Steps, and when each ended [seconds].
        steps: Of the run.
    """
    each = [(later - sooner) / (step - before) for (before, sooner), (step, later) in itertools.pairwise(ended)]
    return statistics.median(each) * (steps - ended[-1][0]) if each else None


class ProgressLines(TrainerCallback):
    """One line a step: reward, right answers, lambda, time left."""

    def __init__(self, console: Console, correctness: str):
        self.console = console
        self.correctness = f"rewards/{correctness}/mean"
        self._ended: list[tuple[int, float]] = []  # the last steps that were logged, and when

    def on_train_begin(self, args, state, control, **kwargs):  # noqa: ARG002
        self._ended = []

    def on_log(self, args, state, control, logs: dict[str, Any] | None = None, **kwargs):  # noqa: ARG002
        if not logs or "reward" not in logs or not state.is_world_process_zero:
            return
        self._ended = [*self._ended[-_STEPS:], (state.global_step, time.monotonic())]
        parts = [
            f"step {state.global_step:>{len(str(state.max_steps))}}/{state.max_steps}",
            f"reward {_number(logs['reward'])}",
            f"right {_number(logs.get(self.correctness))}",
            f"lambda {_number(logs.get('cepo/coefficient'))}",
            f"tokens {_number(logs.get('completions/mean_length'), '.0f')}",
            f"{_clock(seconds_left(self._ended, state.max_steps))} left",
        ]
        self.console.print("  ".join(parts), highlight=False)


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


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
