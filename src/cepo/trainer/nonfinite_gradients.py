"""Skip optimizer steps with a non-finite gradient, and stop the run after several in a row."""

import logging
import math
from typing import Any

from torch.distributed.tensor import DTensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

_logger = logging.getLogger(__name__)


class GradientError(RuntimeError):
    """Non-finite gradients have stopped the run.

    Attributes:
        weights_corrupted: Whether such a gradient has been applied, so that the weights must not be saved.
    """

    def __init__(self, message: str, *, weights_corrupted: bool = False):
        super().__init__(message)
        self.weights_corrupted = weights_corrupted


class NonfiniteGradients(TrainerCallback, ExportableState):
    """Counts consecutive skipped steps, also across checkpoints, and stops the run after `limit`.

    Callbacks do not receive the gradient norm, so `CEPOTrainer._get_grad_norm` passes it to `check`.

    Attributes:
        limit: Number of consecutive skipped steps after which the run stops.
        in_a_row: Number of optimizer steps skipped in a row up to now.
        stops: Whether the run stops after this step.
    """

    def __init__(self, limit: int):
        self.limit, self.in_a_row, self.stops, self._norm = limit, 0, False, 0.0

    def state(self) -> dict[str, Any]:
        return {"args": {"limit": self.limit}, "attributes": {"in_a_row": self.in_a_row}}

    def on_train_begin(self, args, state, control, **kwargs):  # noqa: ARG002
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        in_a_row = saved["attributes"]["in_a_row"] if state.global_step else 0
        # A run that resumes after it was stopped starts counting again.
        self.in_a_row, self.stops = in_a_row if in_a_row < self.limit else 0, False

    def on_step_end(self, args, state, control, **kwargs):  # noqa: ARG002
        if self.stops:
            control.should_save = control.should_training_stop = True
        return control

    def check(self, trainer: Any, norm: Any) -> float | None:
        """Skip the coming optimizer step if its gradient is not finite.

        Args:
            trainer: The trainer, before its optimizer step.
            norm: Gradient norm over all processes, which therefore decide alike; None if DeepSpeed reports no norm.

        Returns:
            The norm as a number.

        Raises:
            GradientError: If DeepSpeed has already applied the gradient.
        """
        if norm is None:
            return None
        self._norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        skips = not math.isfinite(self._norm) or self._norm < 0  # DeepSpeed reports -1 for an overflow
        if skips:
            self._skip(trainer)
        self.in_a_row = self.in_a_row + 1 if skips else 0
        self.stops = self.in_a_row >= self.limit and not _searches_loss_scale(trainer)
        trainer._metrics["train"]["cepo/skipped_steps"].append(float(skips))
        return self._norm

    def _skip(self, trainer: Any) -> None:
        step, accelerator = trainer.state.global_step + 1, trainer.accelerator
        if trainer.is_deepspeed_enabled:
            # DeepSpeed's engine makes the step within the backward pass, and by default skips it on overflow.
            if not accelerator.optimizer_step_was_skipped:
                raise GradientError(
                    f"the gradient of step {step} is not finite, and DeepSpeed has applied it: the weights are lost. "
                    "Resume from the last checkpoint, with check_grad_overflow in DeepSpeed's config file",
                    weights_corrupted=True,
                )
        elif accelerator.scaler is None:  # a gradient scaler skips the step itself
            for parameter in trainer.model_wrapped.parameters():
                parameter.grad = None  # optimizers skip such parameters, weight decay included
        if accelerator.is_main_process:
            _logger.warning("skipped step %d: its gradient is not finite (norm %s).", step, self._norm)

    def raise_if_stopped(self, output_dir: str, step: int) -> None:
        """Raise after training if it was stopped here.

        Raises:
            GradientError: Naming the steps, the checkpoint and the options.
        """
        if self.stops:
            raise GradientError(
                f"the gradients of {self.in_a_row} optimizer steps in a row, up to step {step}, were not finite (norm "
                f"{self._norm}). None of them was applied: {output_dir}/checkpoint-{step} holds the weights before "
                "them. Resume it with a larger max_nonfinite_grad_steps, or start from that model with a lower "
                "learning_rate or in float32"
            )


def _searches_loss_scale(trainer: Any) -> bool:
    """Whether float16 steps may still overflow because the loss scale is too large."""
    scaler = trainer.accelerator.scaler
    return trainer.args.fp16 if scaler is None else scaler.get_scale() >= 1
