"""Checks of data, models and options before training. Each error names the option or column, and the fix."""

import logging
import os
from collections.abc import Sequence
from typing import Any

from accelerate.utils import is_peft_model
from datasets import Dataset
from trl import GRPOTrainer

from ..data.adapters import adapts_tied_embeddings
from ..data.checks import (
    check_dataset,
    check_image_sizes,
    check_method,
    check_size,
    check_verifier,
    unused_images,
)
from ..data.models import require_chat_template
from ..data.sampling import check_special_tokens
from ..scoring.prompts import tokenizer_of
from .cepo_config import CEPOConfig

NO_FSDP1 = "teachers need the weights of each parameter apart, which FSDP 1 flattens; set fsdp_version to 2"

_logger = logging.getLogger(__name__)


def validate_data(args: CEPOConfig, dataset: Any, reward_funcs: Any, *, environment_prompts: bool) -> None:
    """Check data and options before the model is loaded.

    Args:
        args: Options of the run.
        dataset: Training set, or None.
        reward_funcs: Reward functions, as GRPOTrainer takes them.
        environment_prompts: Whether environments make the prompts.

    Raises:
        ValueError: For data or options that cannot work.
    """
    check_world_size(args.world_size)
    if dataset is None:
        return
    check_dataset(
        dataset,
        needs_solution=uses_solution(args),
        needs_prompt=not environment_prompts,
        extractor=args.answer_extractor,
    )
    if isinstance(dataset, Dataset):
        check_size(dataset, args.generation_batch_size, args.num_generations)
    check_method(dataset, args.method_options)
    for function in reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]:
        line, unreadable = check_verifier(function, dataset, args.answer_extractor)
        if unreadable and args.process_index == 0:
            _logger.warning(line)


def validate_run(trainer: Any) -> None:
    """Check a `CEPOTrainer` that TRL has constructed.

    Raises:
        ValueError: For a model or options with which the method cannot work.
    """
    args, dataset, processing_class = trainer.args, trainer.train_dataset, trainer.processing_class
    if trainer._is_vlm:
        if tokenizer_of(processing_class).padding_side != "left":
            # TRL pads tokens on the left, and expects the processor to pad token types and images on that side too.
            raise ValueError(
                "processing_class pads on the right, so that image tokens are misplaced; load it with "
                "padding_side='left'"
            )
        if trainer.accelerator.is_main_process and (unused := unused_images(dataset)):
            _logger.warning(unused)
        check_image_sizes(dataset, processing_class)
    if isinstance(dataset, Dataset) and "prompt" in dataset.column_names:
        check_special_tokens(dataset["prompt"], processing_class)
    check_vllm_weights(trainer)
    check_whole_groups(args, trainer.accelerator.num_processes)
    if trainer.aux_loss_enabled and args.uses_divergence_loss:
        raise ValueError(
            f"method={args.method!r} replaces GRPO's loss, without the term of router_aux_loss_coef; set it to 0"
        )
    if trainer.aux_loss_enabled and args.skip_zero_advantage:
        raise ValueError(
            "skip_zero_advantage: the router's auxiliary loss has a gradient for every rollout; leave it out, or set "
            "it to False"
        )
    if trainer.method.needs_teachers or args.uses_divergence_loss:
        if trainer.is_fsdp_enabled and not trainer.accelerator.is_fsdp2:
            raise ValueError(NO_FSDP1)
        _check_prompt_learning(trainer, args.method)
    if uses_solution(args):
        _check_prompts(trainer, args.method)


def uses_solution(args: CEPOConfig) -> bool:
    """Whether rows need a solution: for the method, or for pages of credit."""
    return args.method_spec.needs_solution or args.credit_page_steps > 0


def reward_index(args: CEPOConfig, option: str, names: Sequence[str]) -> int | None:
    """Index of the reward function that an option names; None if the option is not set.

    Raises:
        ValueError: If there is no such function.
    """
    wanted = getattr(args, option)
    if wanted is None:
        return None
    if wanted not in names:
        raise ValueError(f"{option}={wanted!r} names no reward function; choose one of {', '.join(names)}")
    return names.index(wanted)


def first_error_index(args: CEPOConfig, names: Sequence[str], weights: Any, correctness: int) -> int | None:
    """Index of the function that returns first-error positions; None without one.

    Raises:
        ValueError: If it is used as a reward.
    """
    index = reward_index(args, "first_error_reward", names)
    if index is not None and weights[index] != 0:
        raise ValueError(
            f"first_error_reward={args.first_error_reward!r} returns a token count, not a reward: set its weight in "
            "reward_weights to 0"
        )
    if index is not None and index == correctness:
        raise ValueError(
            f"first_error_reward={args.first_error_reward!r} cannot decide correctness too, which the first reward "
            "function does unless correctness_reward names another"
        )
    return index


def check_world_size(accelerator_processes: int) -> None:
    """Refuse processes of one launch that train independently: all would write to one folder.

    Args:
        accelerator_processes: Number of processes that accelerate knows.

    Raises:
        ValueError: Naming the variable and the fix.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and accelerator_processes == 1:
        raise ValueError(
            f"WORLD_SIZE={started}, but each process would train alone; on CPUs pass --use_cpu true, or set "
            "ACCELERATE_USE_CPU=true"
        )


def check_vllm_weights(trainer: GRPOTrainer) -> None:
    """Refuse adapters with which vLLM would sample from another model.

    TRL merges adapters into the weights for vLLM, and a tied embedding and head share one weight.

    Raises:
        ValueError: Naming the options and the fix.
    """
    if trainer.args.use_vllm and is_peft_model(trainer.model) and adapts_tied_embeddings(trainer.model):
        raise ValueError(
            "use_vllm: adapters change the embedding or the LM head, which are tied in this model, and vLLM would get "
            "one weight for both; leave them out of target_modules and modules_to_save (lora_target_modules, "
            "lora_modules_to_save), or set use_vllm to False"
        )


def check_whole_groups(args: CEPOConfig, processes: int) -> None:
    """Refuse groups that span processes, for a method whose token values need whole groups.

    Raises:
        ValueError: Naming the method and the option.
    """
    if args.method_spec.token_values is not None and args.generation_batch_size // processes % args.num_generations:
        raise ValueError(
            f"method={args.method!r} needs whole groups on each process; make the batch of a process a multiple of "
            "num_generations"
        )


def _check_prompt_learning(trainer: GRPOTrainer, method: str) -> None:
    """Refuse adapters that put virtual tokens before each prompt."""
    configs = getattr(trainer.model, "peft_config", {})
    kinds = sorted({str(getattr(c.peft_type, "value", c.peft_type)) for c in configs.values() if c.is_prompt_learning})
    if kinds:
        raise ValueError(
            f"method={method!r} scores rollouts with other prompts, which does not work with {', '.join(kinds)}: it "
            "adds virtual tokens before each prompt. Use LoRA, or method='grpo'"
        )


def _check_prompts(trainer: Any, method: str) -> None:
    """Refuse rollouts whose prompt cannot be made again with a hint."""
    if trainer.rollout_func is not None:
        raise ValueError(
            f"method={method!r} scores rollouts after the prompts of the dataset, and a rollout_func may use other "
            "prompts. Use method='grpo'."
        )
    if trainer.environment_factories is not None and any(trainer._env_tools.values()):
        raise ValueError(
            f"method={method!r} scores rollouts with another prompt, which environments with tools do not support "
            "yet. Use method='grpo'."
        )
    if not trainer.chat_template:
        require_chat_template(trainer.processing_class)
