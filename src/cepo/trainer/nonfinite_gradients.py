"""Numbers that go wrong: rewards that are none, and gradients that are not finite. docs/training.md says what comes of
each.
"""

import logging
import math
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from trl import GRPOTrainer

from ..data.images import broken_images_named
from ..data.reward_validation import refuse_infinite, validated
from ..scoring.prompts import thinking_opening

_logger = logging.getLogger(__name__)


class GradientError(RuntimeError):
    """Gradients were not finite, and the run has stopped.

    Attributes:
        spoilt: Whether a step was made with such a gradient all the same, so that these weights must not be saved.
    """

    def __init__(self, message: str, *, spoilt: bool = False):
        super().__init__(message)
        self.spoilt = spoilt


class NonfiniteGradients(TrainerCallback, ExportableState):
    """Counts the optimiser steps that were skipped in a row, and ends the run after so many. Travels in checkpoints.

    Args:
        limit: How many.
    """

    def __init__(self, limit: int):
        self.limit, self.in_a_row, self.stops, self.norm = limit, 0, False, 0.0

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"args": {"limit": self.limit}, "attributes": {"in_a_row": self.in_a_row}}

    def on_train_begin(self, args, state, control, **kwargs):  # noqa: ARG002
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        in_a_row = saved["attributes"]["in_a_row"] if state.global_step else 0
        # Somebody goes on after the run was stopped: it gets as many again.
        self.in_a_row, self.stops = in_a_row if in_a_row < self.limit else 0, False

    def note(self, norm: float, *, may_stop: bool = True) -> None:
        """Take the norm of a step's gradient; `may_stop`: whether this one can be one too many."""
        self.norm = norm
        self.in_a_row = 0 if is_sound(norm) else self.in_a_row + 1
        self.stops = may_stop and self.in_a_row >= self.limit

    def on_step_end(self, args, state, control, **kwargs):  # noqa: ARG002
        if self.stops:
            control.should_save = control.should_training_stop = True
        return control


def is_sound(norm: float) -> bool:
    """Whether a gradient of this norm is finite. DeepSpeed says -1 where it is not."""
    return math.isfinite(norm) and norm >= 0


def mask_unscored_rollouts(rewards: Tensor, weights: Tensor) -> Tensor:
    """Rewards of which rollouts have none at all, if no function that weighs anything has a verdict on them.

    TRL takes a rollout for unscored, without an advantage and without a part in its group's mean, where every function
    returned None. One that weighs 0, as those do that only log, would make it a rollout of reward 0.

    Args:
        rewards: (rollouts, functions), NaN for no verdict.
        weights: (functions,).
    """
    weighing = weights.to(rewards.device) != 0
    silent = rewards[:, weighing].isnan().all(dim=1)
    return rewards.masked_fill(silent.unsqueeze(-1), math.nan)


class GuardedTrainer(GRPOTrainer):
    """TRL's trainer, which validates rewards, names the row of a broken image, and keeps weights finite."""

    reward_funcs: list[Any]
    train_dataset: Any

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        template = {"chat_template": self.chat_template, **(self.chat_template_kwargs or {})}
        self._thinking = thinking_opening(self.processing_class, template)
        self.reward_funcs = [
            function
            if isinstance(function, nn.Module)
            else validated(function, name, self._thinking, self.args.answer_extractor)
            for function, name in zip(self.reward_funcs, self.reward_func_names, strict=True)
        ]
        self._gradients = NonfiniteGradients(self.args.max_nonfinite_grad_steps)
        self.add_callback(self._gradients)

    @property
    def step_was_skipped(self) -> bool:
        """Whether the last optimiser step was, so that the policy is as it was before."""
        return self._gradients.in_a_row > 0

    def train(self, *args, **kwargs):
        with broken_images_named(self.train_dataset, "the training set"):
            output = super().train(*args, **kwargs)
        if self._gradients.stops:
            count, last = self._gradients.in_a_row, self.state.global_step
            folder = f"{self.args.output_dir}/checkpoint-{last}"
            raise GradientError(
                f"the gradients of {count} optimiser steps in a row, up to step {last}, were not finite (norm "
                f"{self._gradients.norm}). None of them was made: {folder} holds the weights from before. Resume it "
                "with more max_nonfinite_grad_steps, or start a new run from that model with a lower learning_rate or "
                "in float32"
            )
        return output

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        refuse_infinite(rewards, self.reward_func_names)
        return rewards

    def _get_grad_norm(self, model, grad_norm=None):
        """Called once a step, before the optimiser's; the norm is that of all processes, so all decide alike."""
        found = super()._get_grad_norm(model, grad_norm=grad_norm)
        if found is None:  # DeepSpeed was told not to look
            return found
        norm = float(found.full_tensor() if isinstance(found, DTensor) else found)
        if not is_sound(norm):
            self._skip(model, norm)
        self._gradients.note(norm, may_stop=not self._seeks_scale())
        self._metrics["train"]["cepo/skipped_steps"].append(float(not is_sound(norm)))
        return found

    def _skip(self, model: nn.Module, norm: float) -> None:
        """Keep the optimiser from making a step."""
        step = self.state.global_step + 1
        if self.is_deepspeed_enabled:
            # Its engine made the step within the backward pass, or skipped it, as all of its stages do by default.
            if not self.accelerator.optimizer_step_was_skipped:
                raise GradientError(
                    f"the gradient of step {step} was not finite, and DeepSpeed has made the step: these weights are "
                    "lost. Go on from the last checkpoint, with check_grad_overflow in DeepSpeed's file",
                    spoilt=True,
                )
        elif self.accelerator.scaler is None:  # which skips by itself, and lowers its scale
            for parameter in model.parameters():
                parameter.grad = None  # to an optimiser it has no part in the step, weight decay included
        if self.accelerator.is_main_process:
            _logger.warning("step %d was skipped: its gradient is not finite (norm %s).", step, norm)

    def _seeks_scale(self) -> bool:
        """Whether float16 is at work, whose steps overflow until the loss is scaled down enough."""
        scaler = self.accelerator.scaler
        return self.args.fp16 if scaler is None else scaler.get_scale() >= 1
