"""The options of a run, saved in its checkpoints and compared when a run is resumed.

A checkpoint restores weights, optimizer, learning-rate schedule and the position in the data; transformers takes the
learning rate, Adam's constants and more from it, regardless of the resumed run's options. So options that change the
training result have to equal the checkpoint's, and the others are applied.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from datasets import Dataset, Image
from trl import GRPOTrainer

from ..data.files import write_whole
from ..data.formats import DatasetOptions
from ..methods.registry import all_options

FILE = "run_options.json"

# Options that a resumed run may change. All others change the training result: objective, optimizer, rollouts, data or
# the order of the data.
MAY_CHANGE = frozenset(
    (
        # Length: the learning rate follows the schedule of the new length, see `new_schedule`.
        *("max_steps", "num_train_epochs"),
        # Resuming.
        *("resume_from_checkpoint", "ignore_data_skip", "restore_callback_states_from_checkpoint"),
        # Saving, logging and uploading. A changed save_steps, logging_steps or eval_steps is applied by the trainer,
        # where transformers would keep the checkpoint's.
        *("output_dir", "save_only_model", "save_strategy", "save_steps", "save_on_each_node", "save_total_limit"),
        *("enable_jit_checkpoint", "logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node"),
        *("logging_nan_inf_filter", "include_num_input_tokens_seen", "log_level", "log_level_replica", "disable_tqdm"),
        *("report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
        *("hub_revision", "log_completions", "log_multimodal", "num_completions_to_print", "log_unique_prompts"),
        *("log_completions_hub_repo", "credit_page_steps", "skip_memory_metrics", "debug"),
        # Evaluation.
        *("eval_strategy", "eval_steps", "eval_delay", "per_device_eval_batch_size", "prediction_loss_only"),
        *("eval_on_start", "eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps"),
        *("include_for_metrics", "batch_eval_metrics", "bf16_full_eval", "fp16_full_eval", "num_generations_eval"),
        *("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "do_train", "do_eval", "do_predict"),
        # Stopping on failures.
        "max_nonfinite_grad_steps",
        # The same numbers up to rounding: devices, memory, processes, workers, engines.
        *("tf32", "gradient_checkpointing", "gradient_checkpointing_kwargs", "torch_compile", "torch_compile_backend"),
        *("torch_compile_mode", "use_liger_kernel", "liger_kernel_config", "use_cache", "torch_empty_cache_steps"),
        *("full_determinism", "use_cpu", "parallelism_config", "local_rank", "deepspeed"),
        *("fsdp", "fsdp_config", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers"),
        *("ddp_static_graph", "ddp_backend", "ddp_timeout", "ds3_gather_for_generation", "dataloader_num_workers"),
        *("dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor"),
        *("dataloader_multiprocessing_context", "dataloader_in_order", "trust_remote_code", "pad_to_multiple_of"),
        *("cache_implementation", "use_transformers_continuous_batching", "transformers_continuous_batching_config"),
        *("use_transformers_paged", "shared_prompt", "shared_prompt_update", "teacher_batch_tokens"),
        *("skip_zero_advantage", "use_vllm", "vllm_mode", "vllm_model_impl", "vllm_enable_sleep_mode"),
        *("vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout", "vllm_group_port"),
        *("vllm_gpu_memory_utilization", "vllm_max_model_length", "vllm_tensor_parallel_size"),
    )
)
# Options that are compared in another form by `options_of`.
_OTHER_FORM = {"model_init_kwargs", "reward_weights", "generation_batch_size"}
_LAYOUT = ("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation")
# Keys of `model_init_kwargs` for loading and running weights. The dtype is compared as that of the model.
_LOADING = (
    *("dtype", "revision", "attn_implementation", "experts_implementation", "device_map", "max_memory"),
    *(
        "offload_folder",
        "low_cpu_mem_usage",
        "use_cache",
        "cache_dir",
        "token",
        "local_files_only",
        "force_download",
        "proxies",
    ),
    *("subfolder", "trust_remote_code", "use_kernels", "tp_plan", "quantization_config"),
)
# Keys of a PEFT configuration for loading adapters.
_OF_LOADING = {
    *("base_model_name_or_path", "inference_mode", "auto_mapping", "peft_version", "task_type", "revision"),
    *("runtime_config", "peft_type"),
}
# Options of `cepo train` for the dataset.
DATA_OPTIONS = (
    *("dataset_name", "dataset_config", "dataset_train_split", "dataset_streaming", "figures_problems"),
    *(one.name for one in fields(DatasetOptions)),
    "max_prompt_length",
)
_PATHS_OF_DATA = ("dataset_name", "image_folder")
# Contents, each with the options that may differ where the contents are equal, and the options whose difference
# explains that of the contents.
_CONTENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "rollouts": ((*_LAYOUT, "processes"), ()),
    "train_dataset": (_PATHS_OF_DATA, tuple(name for name in DATA_OPTIONS if name not in _PATHS_OF_DATA)),
    **{f"weights of {name}": ((name,), (name,)) for name in ("model_name_or_path", "teacher_model_name_or_path")},
}


@dataclass(frozen=True)
class RunOptions:
    """The options of a run that are compared.

    Attributes:
        options: Values in JSON by name.
        contents: Digests or sizes of the contents in `_CONTENTS`; None if unknown.
        length: Options for the length of the run, and its learning-rate schedule.
        unknown_until: The step up to which the options of an earlier part of the run are unknown; None without such a
            part.
    """

    options: Mapping[str, Any]
    contents: Mapping[str, str | None]
    length: Mapping[str, Any] = field(default_factory=dict)
    unknown_until: int | None = None

    def save(self, checkpoint: Path) -> None:
        """Write the options into a checkpoint."""
        write_whole(checkpoint / FILE, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, checkpoint: Path) -> "RunOptions | None":
        """The options of a checkpoint; None for a checkpoint without the file.

        Raises:
            ValueError: If the file is invalid.
        """
        path = checkpoint / FILE
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{one.name: found[one.name] for one in fields(cls)})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"resume_from_checkpoint: {path} does not hold a run's options: {error}") from error


def options_of(trainer: GRPOTrainer, more: Mapping[str, Any]) -> RunOptions:
    """The options of a trainer.

    Args:
        trainer: The trainer.
        more: Options beside those of its configuration and model, named as in `cepo train`.
    """
    args, config = trainer.args, trainer.model.config
    found = {
        one.name: getattr(args, one.name)
        for one in fields(args)
        if one.name not in MAY_CHANGE and one.name not in _OTHER_FORM
    }
    loading = args.model_init_kwargs or {}
    found |= {
        "reward_weights": trainer.reward_weights.tolist(),
        "reward_funcs": trainer.reward_func_names,
        "model_name_or_path": config._name_or_path,
        "model_revision": loading.get("revision"),
        "model_init_kwargs": {name: value for name, value in loading.items() if name not in _LOADING},
        "dtype": str(trainer.model.dtype).removeprefix("torch."),
        "quantization": getattr(config, "quantization_config", None),
        "processes": args.world_size,
        **_adapter_options(trainer.model),
        **more,
    }
    step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    teacher = found.get("teacher_model_name_or_path")
    return RunOptions(
        {name: as_json(value) for name, value in found.items()},
        {
            "rollouts": f"{step} a step, {args.generation_batch_size} a generation",
            "train_dataset": _digest_of_rows(trainer.train_dataset),
            "weights of model_name_or_path": _digest_of_weights(found["model_name_or_path"]),
            "weights of teacher_model_name_or_path": _digest_of_weights(teacher),
        },
        {name: as_json(getattr(args, name)) for name in ("max_steps", "num_train_epochs", "lr_scheduler_type")},
    )


def changed(saved: RunOptions, now: RunOptions) -> dict[str, tuple[Any, Any]]:
    """Changed options that a resumed run cannot change: by name, the values of the checkpoint and of the run.

    A name that only one of them has belongs to another version and is not compared.
    """
    found = {name: (old, now.options[name]) for name, old in saved.options.items() if name in now.options}
    found = {name: values for name, values in found.items() if values[0] != values[1]}
    if "method" in found:  # the other options of the methods differ too
        options = all_options()
        found = {name: values for name, values in found.items() if name not in options}
    for content, (names, enough) in _CONTENTS.items():
        before, after = saved.contents.get(content), now.contents.get(content)
        if before is None or after is None:
            continue
        if before == after:
            found = {name: values for name, values in found.items() if name not in names}
        elif not found.keys() & set(enough):
            found[content] = (before, after)
    return found


def refuse_changed(checkpoint: str, saved: RunOptions, now: RunOptions) -> None:
    """Refuse changed options that a resumed run cannot change.

    Raises:
        ValueError: Naming the options, both values, and the fix.
    """
    found = changed(saved, now)
    if found:
        parts = ", ".join(f"{name} {_shown(old)} (now {_shown(new)})" for name, (old, new) in found.items())
        raise ValueError(
            f"resume_from_checkpoint: {checkpoint} was trained with {parts}; give the old value, or start a new run in "
            f"another output_dir from that model (model_name_or_path {checkpoint})"
        )


def new_schedule(saved: RunOptions, now: RunOptions) -> str | None:
    """A note that the learning rate follows another schedule, as the length has changed; None if it does not."""
    names = [name for name in ("max_steps", "num_train_epochs") if saved.length.get(name) != now.length[name]]
    if saved.length.get("max_steps", 0) > 0 and now.length["max_steps"] > 0:
        names = [name for name in names if name == "max_steps"]  # max_steps takes precedence
    if not names or str(now.length["lr_scheduler_type"]).startswith("constant"):
        return None
    parts = ", ".join(
        f"{name} {_shown(now.length[name])} in place of {_shown(saved.length.get(name))}" for name in names
    )
    return f"{parts}: the learning rate follows the {now.length['lr_scheduler_type']} schedule of the new length"


def as_json(value: Any) -> Any:
    """A value in JSON; a function by its name, another object by its type."""
    if isinstance(value, Enum):
        return as_json(value.value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return as_json({one.name: getattr(value, one.name) for one in fields(value)})
    if isinstance(value, Mapping):
        return {str(key): as_json(part) for key, part in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(as_json, value), key=str)
    if isinstance(value, Iterable):
        return [as_json(part) for part in value]
    if hasattr(value, "to_dict"):
        return as_json(value.to_dict())
    return getattr(value, "__qualname__", type(value).__qualname__)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _adapter_options(model: Any) -> dict[str, Any]:
    """The options of a PEFT model's adapters, named as in `cepo train`."""
    configs: Mapping[str, Any] = getattr(model, "peft_config", {})
    config = configs.get("default") or next(iter(configs.values()), None)
    if config is None:
        return {"use_peft": False}
    plain = {"r", "target_modules", "target_parameters", "modules_to_save"}
    values = {name: value for name, value in config.to_dict().items() if name not in _OF_LOADING}
    renamed = {f"lora_{name}" if name in plain else name: value for name, value in values.items()}
    return {"use_peft": str(as_json(config.peft_type)), **renamed}


_SLICES, _SLICE = 16, 4096


def _digest_of_weights(name: str | None) -> str | None:
    """Digest of slices of a local model's weight files; None for a model on the Hub."""
    paths: Sequence[Path] = []
    if name is not None and Path(name).is_dir():
        paths = sorted(path for path in Path(name).iterdir() if path.suffix in (".safetensors", ".bin"))
    if not paths:
        return None
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for part in range(_SLICES):
                file.seek(max(0, size - _SLICE) * part // (_SLICES - 1))
                digest.update(file.read(_SLICE))
    return digest.hexdigest()[:12]


def _digest_of_rows(dataset: Any) -> str | None:
    """Number and digest of the rows, without images; None for a stream."""
    if not isinstance(dataset, Dataset):
        return None
    images = [name for name, feature in dataset.features.items() if _holds_images(feature)]
    rows, digest = dataset.remove_columns(images), hashlib.sha256()
    for batch in rows.with_format(None).iter(1000) if rows.column_names else ():
        digest.update(json.dumps(batch, sort_keys=True, default=str).encode())
    return f"{len(dataset)} rows, digest {digest.hexdigest()[:12]}"


def _holds_images(feature: Any) -> bool:
    return isinstance(feature, Image) or isinstance(getattr(feature, "feature", None), Image)
