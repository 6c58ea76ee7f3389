"""How the weights of a run are spread over its processes."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from accelerate.utils import is_peft_model
from transformers import PreTrainedModel
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation

from ..scoring.shards import FSDPShards, WholeWeights, ZeROShards


def is_sharded(trainer: GRPOTrainer) -> bool:
    """Whether processes hold parts of the weights (FSDP, ZeRO-3)."""
    return trainer.is_fsdp_enabled or _is_zero3(trainer)


def _is_zero3(trainer: GRPOTrainer) -> bool:
    plugin = trainer.accelerator.state.deepspeed_plugin if trainer.is_deepspeed_enabled else None
    return plugin is not None and plugin.zero_stage == 3


def layout_of(trainer: GRPOTrainer) -> WholeWeights:
    """The layout of a trainer's weights, after its model has been wrapped."""
    if trainer.is_fsdp_enabled:
        return FSDPShards(trainer.model)
    return ZeROShards(trainer.model_wrapped) if _is_zero3(trainer) else WholeWeights()


def inner_model(trainer: GRPOTrainer, model: Any) -> PreTrainedModel:
    """The transformers model inside wrappers and adapters."""
    unwrapped = trainer.accelerator.unwrap_model(model)
    return unwrapped.get_base_model() if is_peft_model(unwrapped) else unwrapped


def checkpoints_activations(model: PreTrainedModel) -> bool:
    """Whether a pass with gradient uses gradient checkpointing, and no KV cache."""
    renamed = hasattr(type(model), "is_activation_checkpointing")  # since transformers 5.24
    return bool(model.training and (model.is_activation_checkpointing if renamed else model.is_gradient_checkpointing))


@contextmanager
def whole_policy(trainer: GRPOTrainer) -> Iterator[PreTrainedModel]:
    """The policy with all weights on every process, for sampling. With sharded weights, training must have begun."""
    gathered = layout_of(trainer).all_gathered() if trainer.is_fsdp_enabled else nullcontext()
    checkpointing = trainer.args.gradient_checkpointing_kwargs
    with (
        gathered,
        unwrap_model_for_generation(
            trainer.model_wrapped, trainer.accelerator, gradient_checkpointing_kwargs=checkpointing
        ) as policy,
    ):
        yield policy.get_base_model() if is_peft_model(policy) else policy
