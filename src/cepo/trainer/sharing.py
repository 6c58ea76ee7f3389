"""Training without `fast/`: every prompt runs once per rollout."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from ..distillation.losses import DistillationBatch
from .batches import Batch


class NoSharing:
    """The calls of `fast.PromptSharing`, each as TRL has it."""

    def log_probs(self, whole: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return whole(*args, **kwargs)

    def generate(self, whole: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return whole(*args, **kwargs)

    def distillation(self, batch: DistillationBatch) -> DistillationBatch:
        return batch

    def training_step(self) -> Any:
        return nullcontext()

    def before_generation(self) -> None: ...

    def generated(self, batch: Batch) -> None: ...

    def regrouped(self, inputs: Batch) -> Batch:
        return inputs
