"""Where the seconds of one optimiser step go: by part of the step and by kind of kernel, as torch's profiler sees it.

The floor is what the step's own matrix products and attention would take at the rate of large matrix products.
"""

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback

from . import step

# Kinds of kernels, by what their names begin with; the first that fits.
KINDS = {
    "products": ("mm", "addmm", "bmm", "baddbmm", "linear", "convolution", "mkldnn", "slow_conv", "matmul"),
    "attention": ("_scaled_dot_product", "_flash_attention", "_efficient_attention"),
    "softmax": ("_softmax", "_log_softmax", "logsumexp", "exp", "log", "multinomial", "sort", "topk", "max", "amax"),
    "copies": (
        *("copy_", "cat", "index", "gather", "scatter", "clone", "contiguous", "masked_", "fill_", "zero_", "_index"),
        *("repeat", "embedding", "constant_pad", "stack", "roll", "flip", "where"),
    ),
}
ELSE = "elementwise"  # norms, activations, rotary positions, the optimiser
OUTSIDE = "no kernel"  # Python, dispatch, waiting
PARTS = ("sampling", "teachers", "update")
_MARK = "part: "
_PROFILED, _COUNTED = 1, 2  # steps; the one before has trials


def kind_of(name: str) -> str:
    """The kind of a kernel."""
    plain = name.removeprefix("aten::")
    return next((kind for kind, begins in KINDS.items() if plain.startswith(begins)), ELSE)


class _Marked:
    """A trainer whose parts the profiler can tell apart; what belongs to no other is the update's."""

    counter: FlopCounterMode | None = None
    flops: dict[str, int]

    @contextmanager
    def _mark(self, part: str) -> Iterator[None]:
        before = self.counter.get_total_flops() if self.counter is not None else 0
        with record_function(_MARK + part):
            yield
        if self.counter is not None:
            self.flops[part] += self.counter.get_total_flops() - before

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        with self._mark("sampling"):
            return super()._generate(*args, **kwargs)  # type: ignore[misc]

    def _find_evidence(self, *args: Any, **kwargs: Any) -> Any:
        with self._mark("teachers"):
            return super()._find_evidence(*args, **kwargs)  # type: ignore[misc]

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._mark("update"):
            return super().training_step(*args, **kwargs)  # type: ignore[misc]


class _Watch(TrainerCallback):
    """Profiles one step, and counts the products of the next."""

    def __init__(self, device: torch.device):
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
        self.profiled, self.counter, self.trainer = profile(activities=activities), FlopCounterMode(display=False), None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == _PROFILED:
            self.profiled.__enter__()
        elif state.global_step == _COUNTED:
            self.counter.__enter__()
            self.trainer.counter = self.counter

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == _PROFILED + 1:
            self.profiled.__exit__(None, None, None)
        elif state.global_step == _COUNTED + 1:
            self.counter.__exit__(None, None, None)


def run(
    architecture: str,
    device: torch.device,
    dtype: torch.dtype,
    rate: float,
    *,
    canned: bool,
    say: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:
    """A row for each part of CEPO's step at the paper's shape, no group dead: seconds by kind, and the floor's.

    Args:
        architecture: Of the model.
        device: Where it runs.
        dtype: Of its weights.
        rate: Of large matrix products [FLOP/s].
        canned: Whether rollouts are drawn at random, not sampled.
        say: Called with each row.
    """
    task, watch = step.paper_task(5, 0.0, architecture, device, dtype), _Watch(device)
    with tempfile.TemporaryDirectory() as folder, step.answers_of(task):
        trainer = step.make_trainer(
            task, "cepo", "own_or_mixture", steps=3, canned=canned, folder=folder, sampled=step.Sampled(), mixin=_Marked
        )
        trainer.flops, watch.trainer = dict.fromkeys(PARTS, 0), trainer
        trainer.add_callback(watch)
        trainer.train()
    trainer.flops["update"] -= trainer.flops["sampling"] + trainer.flops["teachers"]
    rows = _rows(watch.profiled.events())
    for row in rows:
        row["floor_seconds"] = trainer.flops[row["part"]] / rate
        say(row)
    return rows


def _rows(events: Any) -> list[dict[str, Any]]:
    windows = [
        (event.time_range.start, event.time_range.end, event.name.removeprefix(_MARK))
        for event in events
        if event.name.startswith(_MARK)
    ]
    first = sorted(windows, key=lambda window: window[2] == "update")  # which holds the others

    def part_at(moment: float) -> str | None:
        return next((name for start, end, name in first if start <= moment < end), None)

    seconds: dict[str, dict[str, float]] = {part: defaultdict(float) for part in PARTS}
    largest: dict[str, dict[str, float]] = {part: defaultdict(float) for part in PARTS}
    for event in events:
        part = part_at(event.time_range.start) if event.name.startswith("aten::") else None
        if part is not None:
            own = event.self_cpu_time_total / 1e6
            seconds[part][kind_of(event.name)] += own
            largest[part][event.name.removeprefix("aten::")] += own
    spans = {name: sum(end - start for start, end, own in windows if own == name) / 1e6 for name in PARTS}
    spans["update"] -= spans["sampling"] + spans["teachers"]
    rows = []
    for part in PARTS:
        kinds = {kind: seconds[part].get(kind, 0.0) for kind in (*KINDS, ELSE)}
        kinds[OUTSIDE] = spans[part] - sum(kinds.values())
        top = sorted(largest[part].items(), key=lambda item: -item[1])[:12]
        rows.append({"part": part, "seconds": spans[part], "kinds": kinds, "largest": dict(top)})
    return rows
