"""What a person sees while `cepo train` runs, and what Ctrl-C does to it."""

import signal
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from transformers import TrainerCallback


class ProgressLines(TrainerCallback):
    """One line a step: reward, right answers, lambda, time left."""

    def __init__(self, console: Console, correctness: str):
        self.console = console
        self.correctness = f"rewards/{correctness}/mean"
        self.started = 0.0
        self.first_step = 0

    def on_train_begin(self, args, state, control, **kwargs):  # noqa: ARG002
        self.started, self.first_step = time.monotonic(), state.global_step

    def on_log(self, args, state, control, logs: dict[str, Any] | None = None, **kwargs):  # noqa: ARG002
        if not logs or "reward" not in logs or not state.is_world_process_zero:
            return
        elapsed = time.monotonic() - self.started
        done = max(1, state.global_step - self.first_step)
        left = elapsed / done * (state.max_steps - state.global_step)
        parts = [
            f"step {state.global_step:>{len(str(state.max_steps))}}/{state.max_steps}",
            f"reward {_number(logs['reward'])}",
            f"right {_number(logs.get(self.correctness))}",
            f"lambda {_number(logs.get('cepo/coefficient'))}",
            f"tokens {_number(logs.get('completions/mean_length'), '.0f')}",
            f"{_clock(left)} left",
        ]
        self.console.print("  ".join(parts), highlight=False)


class StopOnInterrupt(TrainerCallback):
    """Ctrl-C finishes the step at hand, saves a checkpoint and stops; a second one stops at once."""

    def __init__(self, console: Console):
        self.console = console
        self.interrupted = False
        self.saved: str | None = None  # the last checkpoint that this run wrote
        self._previous: Any = None

    def on_train_begin(self, args, state, control, **kwargs):  # noqa: ARG002
        self._previous = signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, signum, frame):  # noqa: ARG002
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        self.console.print("\nStopping after this step, to save it. Ctrl-C again stops at once.")

    def on_step_end(self, args, state, control, **kwargs):  # noqa: ARG002
        if self.interrupted:
            control.should_save = control.should_training_stop = True
        return control

    def on_save(self, args, state, control, **kwargs):  # noqa: ARG002
        self.saved = f"{args.output_dir}/checkpoint-{state.global_step}"

    def on_train_end(self, args, state, control, **kwargs):  # noqa: ARG002
        self.restore()

    def restore(self) -> None:
        """Give Ctrl-C back its usual meaning."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None


class AccuracyCurve(TrainerCallback):
    """Measures held-out accuracy every so many steps.

    Args:
        every: Optimiser steps; 0: never.
        measure: Measures it; its argument says when, for people.
    """

    def __init__(self, every: int, measure: Callable[[str], Any]):
        self.every, self.measure = every, measure
        self.points: list[tuple[int, Any]] = []

    def on_step_end(self, args, state, control, **kwargs):  # noqa: ARG002
        # The last step is measured when training has ended.
        if self.every and state.global_step % self.every == 0 and state.global_step < state.max_steps:
            self.points.append((state.global_step, self.measure(f"at step {state.global_step}")))


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
