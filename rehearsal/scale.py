"""A recipe's training step at its real size, on the simulated GPU: operations, memory, host waits, bytes sent."""

import logging
import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml
from datasets import Dataset
from experiments.policy_architecture import SPECIAL_TOKENS
from PIL import Image
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer, get_peft_config

import cepo.trainer.cepo_trainer
from cepo import CEPOTrainer, load_figures, policy_path
from cepo.planning.models import find_config
from cepo.trainer.arguments import parse
from rehearsal.device import Heard, label_phases
from rehearsal.shapes import ShapesOnly, without_triton_kernels

GIB = 2**30
# Of each problem: patches of its image (380 tokens after merging, as a figure of Geometry3K has), and tokens of text.
IMAGE, TEXT = (40, 38), 120
_IDS = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
_IMAGE_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
_FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
}


def rehearse(
    recipes: Sequence[Path],
    options: dict[str, Any],
    *,
    trl: bool,
    lengths: tuple[float, float],
    zero_variance: tuple[int, int] = (0, 1),
) -> dict[str, Any]:
    """Two steps of a recipe; returns the numbers of the second, since the first has trials.

    A step has the fewest micro-batches that hold whole groups, times the number of groups in `zero_variance`.

    Args:
        recipes: Files of `recipes/`, later ones first.
        options: Options over those of the files.
        trl: Run TRL's `GRPOTrainer` with the same options.
        lengths: Mean and standard deviation of completion lengths [tokens].
        zero_variance: Number of zero-variance groups, all of whose rollouts are incorrect, and of all groups, in turn.
    """
    recipe: dict[str, Any] = {}
    for file in recipes:
        recipe |= yaml.safe_load(file.read_text())
    ranks = recipe.pop("num_processes", 1)
    if config := recipe.pop("accelerate_config", None):
        _check_layout(config)
        _join_fake_group(ranks)
    recipe.pop("num_machines", None)
    recipe = {name: value for name, value in recipe.items() if "vllm" not in name}
    gpu = ShapesOnly(ranks)
    without_triton_kernels()
    torch.backends.cuda.enable_cudnn_sdp(False)  # its memory is cuDNN's to say
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        rows = recipe["per_device_train_batch_size"]
        recipe |= {
            "max_steps": 2,
            "gradient_accumulation_steps": zero_variance[1]
            * (math.lcm(rows * ranks, recipe["num_generations"]) // (rows * ranks)),
            "log_completions": False,
            "eval_problems": 0,
            "save_strategy": "no",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "output_dir": folder,
            **options,
        }
        file = Path(folder) / "recipe.yaml"
        file.write_text(yaml.safe_dump(recipe))
        _, args, model_args = parse(["--config", str(file)], processes=ranks)
        if trl:
            known = GRPOConfig.__dataclass_fields__
            args = GRPOConfig(**{name: value for name, value in recipe.items() if name in known})
        args.log_level = "error"
        if ranks > 1:
            _repeat_this_rank(stack, ranks)
        stack.enter_context(patch.object(cepo.trainer.cepo_trainer, "final_answer", lambda text, _: str(len(text) % 6)))
        heard = Heard()
        logging.getLogger("cepo").addHandler(heard)
        with gpu:
            model, processor, problems = _model_and_data(model_args)
            trainer = _trainer_class(gpu, trl, lengths)(
                model,
                _half_right(recipe["num_generations"], *zero_variance),
                args,
                problems,
                processing_class=processor,
                peft_config=get_peft_config(model_args),
            )
            trainer.remove_callback(PrinterCallback)
            steps = _Steps(gpu)
            trainer.add_callback(steps)
            trainer.train()
    assert not gpu.refused, gpu.refused
    rollouts = args.per_device_train_batch_size * args.gradient_accumulation_steps
    shape = {"rollouts": rollouts, "ranks": ranks, "layout": "FSDP2" if ranks > 1 else "one device"}
    return {**shape, **steps.last, "warnings": heard.lines}


def _check_layout(config: str) -> None:
    kind = config if config == "multi_gpu" else yaml.safe_load(Path(config).read_text())["distributed_type"]
    if kind != "FSDP":
        raise SystemExit(f"{config}: of several processes, FSDP2 alone is rehearsed; DDP's hold what one device holds")


def _join_fake_group(ranks: int) -> None:
    """Make this process rank 0 of a group whose other ranks do not exist."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29511", "ACCELERATE_MIXED_PRECISION": "bf16"}
    os.environ |= _FSDP
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)


def _repeat_this_rank(stack: ExitStack, ranks: int) -> None:
    """Let gathered values be those of this rank, `ranks` times; the fake group gathers what was in memory."""
    import accelerate.utils
    import trl.trainer.grpo_trainer
    from accelerate import Accelerator

    import cepo.trainer.distributed

    def objects(value: Any) -> list[Any]:
        return list(value) * ranks if isinstance(value, list) else [value] * ranks

    def tensors(value: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.atleast_1d(value)] * ranks)

    def reduce(self: Any, tensor: torch.Tensor, reduction: str = "sum", scale: float = 1.0) -> torch.Tensor:
        return tensor * (ranks if reduction == "sum" else 1)

    modules = (accelerate.utils, trl.trainer.grpo_trainer, cepo.trainer.distributed, cepo.trainer.cepo_trainer)
    for module in modules:
        if hasattr(module, "gather_object"):
            stack.enter_context(patch.object(module, "gather_object", objects))
    stack.enter_context(patch.object(trl.trainer.grpo_trainer, "gather", tensors))
    stack.enter_context(patch.object(Accelerator, "gather", lambda self, tensor: tensors(tensor)))
    stack.enter_context(patch.object(Accelerator, "reduce", reduce))


def _model_and_data(model_args: Any) -> tuple[Any, Any, Dataset]:
    """The recipe's model without values, the shipped policy's processor for its patches, and problems."""
    config, _ = find_config(model_args.model_name_or_path)
    sees = hasattr(config, "vision_config")
    processor = AutoProcessor.from_pretrained(policy_path(), padding_side="left")
    words = load_figures("train", 1)[0]["prompt"][0]["content"]
    ids = processor.tokenizer(f"{words} " * 8).input_ids[:TEXT]
    rows = [{"prompt": [{"role": "user", "content": f"{n} {processor.tokenizer.decode(ids)}"}]} for n in range(64)]
    if sees:
        for name, token in _IMAGE_TOKENS.items():
            setattr(config, name, _IDS[token])
        patch_size = config.vision_config.patch_size
        height, width = (side * patch_size for side in IMAGE)
        processor.image_processor.patch_size = patch_size
        processor.image_processor.size = {"shortest_edge": patch_size**2, "longest_edge": height * width}
        rows = [{**row, "image": Image.new("RGB", (width, height))} for row in rows]
    kind = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    with torch.device("meta"):
        model = kind.from_config(config, dtype=getattr(torch, model_args.dtype))
    model = model.to_empty(device="cuda")
    model.tie_weights()
    for settings in (model.generation_config, model.config):
        settings.eos_token_id, settings.pad_token_id = _IDS["<|im_end|>"], _IDS["<|endoftext|>"]
    data = Dataset.from_list([{**row, "solution": "\\boxed{7}"} for row in rows])
    return model, processor if sees else processor.tokenizer, data


def _half_right(size: int, alike: int, every: int) -> Callable[..., list[float]]:
    """A reward of 1 for every other rollout, but of 0 in the first `alike` of each `every` groups of `size`."""

    def half_right(completions: list[Any], **kwargs: Any) -> list[float]:
        return [float(index % 2 and index // size % every >= alike) for index in range(len(completions))]

    return half_right


def _trainer_class(gpu: ShapesOnly, trl: bool, lengths: tuple[float, float]) -> type:
    """A trainer whose rollouts have random tokens and lengths, as from another engine."""
    base = GRPOTrainer if trl else CEPOTrainer

    class Trainer(base):
        def _generate_single_turn(self, prompt_ids, *args, **kwargs):
            draw = torch.Generator().manual_seed(self.state.global_step)
            sizes = lengths[0] + lengths[1] * torch.randn(len(prompt_ids), generator=draw)
            sizes = sizes.round().int().clamp(16, self.args.max_completion_length).tolist()
            return [torch.randint(len(_IDS), 400, (size,), generator=draw).tolist() for size in sizes], None

    Trainer.__name__ = base.__name__
    label_phases(gpu, Trainer)
    return Trainer


class _Steps(TrainerCallback):
    """The numbers of the last step."""

    def __init__(self, gpu: ShapesOnly):
        self._gpu, self.last = gpu, {}

    def on_step_begin(self, *args, **kwargs):
        gpu = self._gpu
        gpu.phase = "optimizer"  # of the step outside of the labeled methods
        gpu.peaks.clear()
        gpu.flops.clear()
        gpu.sent.clear()
        gpu.waits.clear()

    def on_step_end(self, *args, **kwargs):
        gpu = self._gpu
        gpu.mark()
        waits: Counter[str] = Counter()
        for (phase, *_), number in gpu.waits.items():
            waits[phase] += number
        self.last = {
            "pflop": {phase: round(number / 1e15, 4) for phase, number in gpu.flops.items() if number > 1e11},
            "peak_gib": {phase: round(size / GIB, 2) for phase, size in gpu.peaks.items()},
            "sent_gib": {phase: round(size / GIB, 3) for phase, size in gpu.sent.items()},
            "waits": dict(waits),
        }
