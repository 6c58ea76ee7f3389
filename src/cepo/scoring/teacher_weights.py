"""Whose weights teachers read with: the live policy's, or a copy that lags behind it.

The copy holds the parameters that are trained, and no others. Teachers use the model itself, its trained parameters
exchanged for the copy's while they read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .shards import WholeWeights

WeightsSource = Literal["policy", "initial", "synced", "ema"]
FILE = "teacher.safetensors"


class TeacherWeights:
    """The copy, and when it follows the policy.

    Args:
        model: The policy. For LoRA the copy is of the adapters, so that the initial one is the base model; of a model
            that came with trained adapters it is the model with these.
        source: ``initial``: never; ``synced``: every `sync_steps` optimiser steps; ``ema``: after every step,
            ``copy <- decay copy + (1 - decay) policy``; ``policy``: there is no copy.
        sync_steps: For ``synced``.
        decay: For ``ema``, in [0, 1).
        layout: How the weights lie among processes. Sharded ones are sharded already: the copy is of the shards, and
            all processes read, save and load together.
        writes: Whether this process writes the files.
    """

    def __init__(
        self,
        model: nn.Module,
        source: WeightsSource,
        *,
        sync_steps: int = 10,
        decay: float = 0.999,
        layout: WholeWeights | None = None,
        writes: bool = True,
    ):
        if source not in get_args(WeightsSource):
            raise ValueError(f"unknown teacher {source!r}; choose one of {', '.join(get_args(WeightsSource))}")
        self._layout, self._writes = layout or WholeWeights(), writes
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._source, self._sync_steps, self._decay = source, sync_steps, decay
        self._copy: dict[str, Tensor] = {}
        if source != "policy":
            self._copy = {name: self._layout.local(p).detach().clone() for name, p in self._trained.items()}
        if source == "ema":  # bfloat16 would round its small steps away
            self._copy = {name: c.to(torch.promote_types(c.dtype, torch.float32)) for name, c in self._copy.items()}

    @property
    def lags(self) -> bool:
        """Whether there is a copy, which may differ from the policy."""
        return bool(self._copy)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model with the teacher's weights."""
        if not self._copy:
            yield
            return
        with self._layout.exchanged({self._trained[name]: copy for name, copy in self._copy.items()}):
            yield

    @torch.no_grad()
    def after_step(self, step: int, *, made: bool = True) -> None:
        """Let the copy follow, after `step` optimiser steps, the last of which was `made`, or skipped.

        A skipped one moves no average. What is copied every so many steps is, then too: the policy as it is.
        """
        if self._source == "synced" and step % self._sync_steps == 0:
            for name, copy in self._copy.items():
                copy.copy_(self._layout.local(self._trained[name]))
        elif self._source == "ema" and made:
            for name, copy in self._copy.items():
                copy.lerp_(self._layout.local(self._trained[name]).to(copy.dtype), 1 - self._decay)

    @torch.no_grad()
    def save(self, folder: str) -> None:
        """Write the copy into a checkpoint, whole: any number of processes can go on with it."""
        if not self._copy:
            return
        whole = {}
        for name, copy in self._copy.items():
            gathered = self._layout.gathered(self._trained[name], copy)
            if self._writes:
                whole[name] = gathered.cpu().contiguous()
        if self._writes:
            save_file(whole, Path(folder) / FILE)

    @torch.no_grad()
    def load(self, folder: str) -> None:
        """Take the copy of a checkpoint.

        Raises:
            ValueError: If the checkpoint has none, or one of other parameters.
        """
        if not self._copy:
            return
        path = Path(folder) / FILE
        if not path.is_file():
            raise ValueError(
                f"{folder} has no {FILE}: it was written with teacher='policy', and cannot go on with another"
            )
        saved = load_file(path)
        if saved.keys() != self._copy.keys():
            raise ValueError(f"{path} holds other parameters than those that are trained")
        for name, copy in self._copy.items():
            copy.copy_(self._layout.part(self._trained[name], saved[name]))
