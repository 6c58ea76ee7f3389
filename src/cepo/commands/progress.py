"""What a person sees while `cepo train` runs, and what Ctrl-C does to it."""

import itertools
import os
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from transformers import TrainerCallback

INTERRUPTED = 130  # exit status after Ctrl-C
# Schedulers signal every process, and launchers pass on to theirs what they get: a second signal within so many
# seconds is the first one again.
SAME = 1.0
_STEPS = 9  # by whose time the rest is estimated
_SHORTEST_BAR, _LONGEST_BAR = 4, 40  # columns


def seconds_left(ended: Sequence[tuple[int, float]], steps: int) -> float | None:
    """Time until the run ends [seconds], by the median of its last steps; None before the second step with rollouts.

    Args:
        ended: Steps that sampled rollouts, and when each ended [seconds]: the steps between two of them, which reuse
            rollouts and take less time, are counted with the time of both.
        steps: Steps until the end, from the step that is shown.
    """
    each = [(later - sooner) / (step - before) for (before, sooner), (step, later) in itertools.pairwise(ended)]
    return statistics.median(each) * steps if each else None


@dataclass(frozen=True)
class Standing:
    """How a run stands after a step that was logged; None for what is not known.

    Attributes:
        step, steps: Done, and in all.
        reward: Mean over the rollouts that the step sampled; None where it reuses those of an earlier step.
        right: Share of right rollouts among those with a verdict.
        coefficient: lambda.
        length: Mean of the completions [tokens].
        rate: Tokens sampled a second, by the time of training steps alone.
        left: What the run still takes [seconds].
    """

    step: int
    steps: int
    reward: float | None
    right: float | None
    coefficient: float | None
    length: float | None
    rate: float | None
    left: float | None


@dataclass(frozen=True)
class _Logged:
    """One log: how many steps it is of, their seconds in all, and the mean length of what they sampled [tokens]."""

    steps: int
    seconds: float
    length: float | None


def tokens_a_second(logged: Sequence[_Logged], rollouts: float) -> float | None:
    """Tokens sampled a second over some logs; a step that samples nothing has its time counted, and no length.

    Args:
        logged: The logs.
        rollouts: How many of them a step learns from for the first time, on average.
    """
    lengths = [one.length for one in logged if one.length is not None]
    seconds = sum(one.seconds for one in logged)
    if not lengths or seconds <= 0:
        return None
    return statistics.fmean(lengths) * rollouts * sum(one.steps for one in logged) / seconds


class Progress(TrainerCallback):
    """Follows what is logged; entered while training goes on."""

    def __init__(self) -> None:
        self._ended: list[tuple[int, float]] = []  # the last steps that sampled rollouts, and when
        self._logged: list[_Logged] = []
        self._step = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to put away."""

    def show(self, standing: Standing) -> None:
        """Show how the run stands."""
        raise NotImplementedError

    def on_train_begin(self, args, state, control, **kwargs):  # noqa: ARG002
        self._ended, self._logged, self._step = [], [], state.global_step

    def on_log(self, args, state, control, logs: dict[str, Any] | None = None, **kwargs):  # noqa: ARG002
        # Evaluations log too, and so does the end of training.
        if not logs or "step_time" not in logs or not state.is_world_process_zero:
            return
        # TRL's time of a step is that of sampling and learning: evaluations and checkpoints are not in it.
        steps, length = state.global_step - self._step, logs.get("completions/mean_length")
        self._step = state.global_step
        self._logged = [*self._logged[-_STEPS:], _Logged(steps, (logs["step_time"] or 0.0) * steps, length)]
        if length is not None:
            self._ended = [*self._ended[-_STEPS:], (state.global_step, time.monotonic())]
        rollouts = args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps
        self.show(
            Standing(
                step=state.global_step,
                steps=state.max_steps,
                reward=logs.get("reward"),
                right=logs.get("cepo/right"),
                coefficient=logs.get("cepo/coefficient"),
                length=length,
                rate=tokens_a_second(self._logged, rollouts / args.num_iterations),
                left=seconds_left(self._ended, state.max_steps - state.global_step),
            )
        )


class ProgressLines(Progress):
    """One line for every log, for files and pipes; a step that reuses rollouts has no reward, as in TRL's log."""

    def __init__(self, console: Console):
        super().__init__()
        self.console = console

    def show(self, standing: Standing) -> None:
        parts = [
            f"step {standing.step:>{len(str(standing.steps))}}/{standing.steps}",
            f"reward {_number(standing.reward)}",
            f"right {_number(standing.right)}",
            f"lambda {_number(standing.coefficient)}",
            f"length {_number(standing.length, '.0f')}",
            f"{_clock(standing.left)} left",
        ]
        self.console.print("  ".join(parts), highlight=False)


class LiveLine(Progress):
    """One line for all steps, with a bar, for a terminal. It stays when training has ended.

    It is drawn when there is something new, by no thread of its own. While rollouts are reused their reward stays.
    """

    def __init__(self, console: Console):
        super().__init__()
        self._console = console
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop")
        self._sampled: Standing | None = None  # the last step that sampled rollouts

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        if state.is_world_process_zero:
            self._live.start()
            nothing = Standing(state.global_step, state.max_steps, None, None, None, None, None, None)
            self.show(nothing)

    def show(self, standing: Standing) -> None:
        if standing.length is not None:
            self._sampled = standing
        elif self._sampled is not None:
            standing = replace(standing, reward=self._sampled.reward, right=self._sampled.right)
        self._live.update(live_line(standing, self._console.width), refresh=True)


def live_line(standing: Standing, width: int) -> Table:
    """The line in so many columns: what does not fit is left out, from its end."""
    parts = [
        f"{standing.step:>{len(str(standing.steps))}}/{standing.steps}",
        f"reward {_number(standing.reward)}",
        f"right {_number(standing.right, '.0%')}",
        f"lambda {_number(standing.coefficient)}",
        f"{_number(standing.rate, ',.0f')} tokens/s",
        f"{_clock(standing.left)} left",
    ]
    while len(parts) > 1 and len("  ".join(parts)) + _SHORTEST_BAR + 1 > width:
        parts.pop(-2 if len(parts) > 2 else -1)  # the time left is of more use than the numbers before it
    text = Text("  ".join(parts), no_wrap=True, overflow="crop")
    bar = min(_LONGEST_BAR, width - len(text) - 1)
    line = Table.grid(padding=(0, 1, 0, 0))
    if bar < _SHORTEST_BAR:
        line.add_row(text)
    else:
        line.add_row(ProgressBar(total=max(1, standing.steps), completed=standing.step, width=bar), text)
    return line


def progress_on(console: Console) -> Progress:
    """The form that suits a console: a live line on a terminal, else lines."""
    live = console.is_terminal and not (console.is_dumb_terminal or console.is_jupyter or console.quiet)
    return LiveLine(console) if live else ProgressLines(console)


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
