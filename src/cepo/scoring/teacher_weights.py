"""Teacher weights: the policy's, or a copy that follows the policy.

The copy holds the trained parameters only. For scoring passes of the teacher the copy is swapped into the model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .shards import WholeWeights

WeightsSource = Literal["policy", "initial", "synced", "ema"]
FILE = "teacher.safetensors"


class TeacherWeights:
    """The copy of the policy's trained parameters.

    Args:
        model: The policy. With LoRA the copy holds the adapters, so the initial teacher is the base model, or the model
            with the adapters that it was loaded with.
        source: ``initial``: the copy stays fixed; ``synced``: copied every `sync_steps` optimizer steps; ``ema``: after
            every step ``copy <- decay copy + (1 - decay) policy``; ``policy``: no copy.
        sync_steps: Optimizer steps between copies, for ``synced``.
        decay: Decay of ``ema``, in [0, 1).
        layout: Layout of the weights over processes. The copy of sharded weights is sharded, so all processes score,
            save and load together.
        writes: Whether this process writes files.
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
        self._layout, self._writes = layout or WholeWeights(), writes
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._source, self._sync_steps, self._decay = source, sync_steps, decay
        self._copy: dict[str, Tensor] = {}
        if source != "policy":
            self._copy = {name: self._layout.local(p).detach().clone() for name, p in self._trained.items()}
        if source == "ema":  # bfloat16 would round small steps to 0
            self._copy = {name: c.to(torch.promote_types(c.dtype, torch.float32)) for name, c in self._copy.items()}

    @property
    def lags(self) -> bool:
        """Whether the teacher has a copy, whose weights may differ from the policy's."""
        return bool(self._copy)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Swap the teacher's weights into the model."""
        if not self._copy:
            yield
            return
        with self._layout.exchanged({self._trained[name]: copy for name, copy in self._copy.items()}):
            yield

    @torch.no_grad()
    def after_step(self, step: int, *, made: bool = True) -> None:
        """Update the copy after `step` optimizer steps.

        Args:
            step: Number of optimizer steps.
            made: False if the last step was skipped, which leaves the average of ``ema`` unchanged.
        """
        if self._source == "synced" and step % self._sync_steps == 0:
            for name, copy in self._copy.items():
                copy.copy_(self._layout.local(self._trained[name]))
        elif self._source == "ema" and made:
            for name, copy in self._copy.items():
                copy.lerp_(self._layout.local(self._trained[name]).to(copy.dtype), 1 - self._decay)

    @torch.no_grad()
    def save(self, folder: str) -> None:
        """Write the unsharded copy into a checkpoint, which any number of processes can load."""
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
        """Load the copy from a checkpoint.

        Raises:
            ValueError: If the checkpoint has no copy, or one of other parameters.
        """
        if not self._copy:
            return
        path = Path(folder) / FILE
        if not path.is_file():
            raise ValueError(f"{folder} has no {FILE}: the run used teacher='policy'. Resume with teacher='policy'")
        saved = load_file(path)
        if saved.keys() != self._copy.keys():
            raise ValueError(f"{path} does not hold the trained parameters; resume with the same trained parameters")
        for name, copy in self._copy.items():
            copy.copy_(self._layout.part(self._trained[name], saved[name]))
