"""How a run's weights lie among its processes, and the processes themselves, as the environment started them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils import is_peft_model
from transformers import PreTrainedModel, TrainingArguments
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation

from ..scoring.shards import FSDPShards, WholeWeights, ZeROShards

NO_FSDP1 = "FSDP 1 lays weights together, which teachers do not know; set fsdp_version to 2"


def is_zero3(trainer: GRPOTrainer) -> bool:
    """Whether DeepSpeed shards the weights themselves."""
    plugin = trainer.accelerator.state.deepspeed_plugin if trainer.is_deepspeed_enabled else None
    return plugin is not None and plugin.zero_stage == 3


def is_sharded(trainer: GRPOTrainer) -> bool:
    """Whether no process holds all weights."""
    return trainer.is_fsdp_enabled or is_zero3(trainer)


def inner_model(trainer: GRPOTrainer, model: Any) -> PreTrainedModel:
    """The transformers model inside of the policy's, or the reference's, wrappers and adapters."""
    return _inside_adapters(trainer.accelerator.unwrap_model(model))


def _inside_adapters(model: Any) -> PreTrainedModel:
    """The transformers model, into whose layers adapters have been put."""
    return model.get_base_model() if is_peft_model(model) else model


def checkpoints_activations(model: PreTrainedModel) -> bool:
    """Whether a pass with gradient would keep no activations, and no cache. The name changed in transformers 5.24."""
    known = hasattr(type(model), "is_activation_checkpointing")
    return bool(model.training and (model.is_activation_checkpointing if known else model.is_gradient_checkpointing))


def layout_of(trainer: GRPOTrainer) -> WholeWeights:
    """Of a trainer whose model is wrapped."""
    if trainer.is_fsdp_enabled:
        return FSDPShards(trainer.model)
    return ZeROShards(trainer.model_wrapped) if is_zero3(trainer) else WholeWeights()


@contextmanager
def whole_policy(trainer: GRPOTrainer) -> Iterator[PreTrainedModel]:
    """The policy with all of its weights on every process, to sample from. Sharded, training must have begun."""
    gathered = layout_of(trainer).all_gathered() if trainer.is_fsdp_enabled else nullcontext()
    checkpointing = trainer.args.gradient_checkpointing_kwargs
    with (
        gathered,
        unwrap_model_for_generation(
            trainer.model_wrapped, trainer.accelerator, gradient_checkpointing_kwargs=checkpointing
        ) as policy,
    ):
        yield _inside_adapters(policy)


def check_layout(trainer: GRPOTrainer) -> None:
    """Refuse a layout that gives other numbers than one process.

    Raises:
        ValueError: Naming the layout and what to use in its place.
    """
    if trainer.is_fsdp_enabled and not trainer.accelerator.is_fsdp2:
        raise ValueError(NO_FSDP1)


def name_cpu_plainly(args: TrainingArguments) -> None:
    """Let checkpoints be loaded by several processes on CPUs: accelerate names their device cpu:0, torch.load does not
    know it, and transformers hands the one to the other.
    """
    if args.device.type == "cpu":
        args._setup_devices = torch.device("cpu")  # a cached property


def check_processes(accelerator_processes: int) -> None:
    """Refuse processes that were started together and do not know of each other: they would write one folder.

    Args:
        accelerator_processes: How many accelerate knows of.

    Raises:
        ValueError: Naming the variable and the fix.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and accelerator_processes == 1:
        raise ValueError(
            f"WORLD_SIZE says that {started} processes were started together, but each would train alone; on CPUs pass "
            "--use_cpu true, or set ACCELERATE_USE_CPU=true"
        )
