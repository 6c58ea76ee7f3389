"""Changes to foreign libraries without which numbers or resuming would break. Those for speed are in `fast/`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial
from transformers import TrainingArguments


@contextmanager
def head_gathered_with_gradient() -> Iterator[None]:
    """Let the gradient of a gathered DTensor return to its shards as a mean over processes, as in FSDP's units.

    TRL 1.16's fused head (`add_fused_lm_head`) gathers an untied head under FSDP2 without `grad_placements`, so that
    each process would keep the gradient of its rollouts alone.
    """
    plain = DTensor.full_tensor

    def gathered(self: DTensor, *, grad_placements: Any = None) -> Tensor:
        return plain(self, grad_placements=grad_placements or [Partial("avg")] * self.device_mesh.ndim)

    DTensor.full_tensor = gathered  # type: ignore[method-assign]
    try:
        yield
    finally:
        DTensor.full_tensor = plain  # type: ignore[method-assign]


def name_cpu_without_index(args: TrainingArguments) -> None:
    """Let several processes on CPUs load checkpoints.

    accelerate names the device of each process `cpu:N`, transformers passes that to torch.load, which does not know it.
    """
    if args.device.type == "cpu":
        args._setup_devices = torch.device("cpu")  # a cached property
