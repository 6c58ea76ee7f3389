"""Reductions over the processes of a run."""

import itertools
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor


class Distributed:
    """Collective reductions: every process has to call them together.

    Args:
        accelerator: Accelerator of the trainer.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum of a tensor."""
        return self._accelerator.reduce(values, reduction="sum")

    def sum_numbers(self, numbers: Sequence[float]) -> list[float]:
        """Elementwise sum of a list."""
        if self._accelerator.num_processes == 1:
            return list(map(float, numbers))
        return self.sum(torch.tensor(numbers, dtype=torch.float32, device=self._accelerator.device)).tolist()

    def share(self, flags: Sequence[bool]) -> float:
        """Share of the flags of all processes that are set."""
        of_set, total = self.sum_numbers([sum(flags), len(flags)])
        return of_set / total

    def max_numbers(self, numbers: Sequence[int]) -> list[int]:
        """Elementwise maximum of lists of counts; shorter lists are padded with zeros."""
        if self._accelerator.num_processes == 1:
            return list(numbers)
        return [max(column) for column in itertools.zip_longest(*gather_object([list(numbers)]), fillvalue=0)]

    def all_reduce_max(self, number: int) -> int:
        """Maximum of a count."""
        return self.max_numbers([number])[0]
