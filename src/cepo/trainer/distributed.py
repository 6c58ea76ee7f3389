"""Numbers of all processes together."""

import itertools
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor


class Processes:
    """Reductions over the processes of a run.

    Args:
        accelerator: Of the run.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum of each number."""
        tensor = torch.tensor(values, dtype=torch.float32, device=self._accelerator.device)
        return self.sum_tensor(tensor).tolist()

    def sum_tensor(self, values: Tensor) -> Tensor:
        """The sum of each number of a tensor."""
        return self._accelerator.reduce(values, reduction="sum")

    def mean(self, value: Tensor) -> float:
        """The mean of one number."""
        return self._accelerator.reduce(value, reduction="mean").item()

    def most(self, numbers: Sequence[int]) -> list[int]:
        """The most of each number; shorter lists count as if they went on with zeros."""
        if self._accelerator.num_processes == 1:
            return list(numbers)
        everyone = gather_object([list(numbers)])
        return [max(column) for column in itertools.zip_longest(*everyone, fillvalue=0)]

    def all_reduce_max(self, number: int) -> int:
        """The most of one number."""
        return self.most([number])[0]
