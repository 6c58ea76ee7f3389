"""Compare the options of a resumed run with those that its checkpoint was trained with.

Transformers takes the learning rate, Adam's constants and more from the checkpoint, whatever the options of the resumed
run are. So options that change the training result must equal the checkpoint's; the others are applied.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, Image
from trl import GRPOTrainer

from ..data.files import write_whole
from ..data.formats import DatasetOptions
from ..methods.registry import all_options

FILE = "run_options.json"

# Options that a resumed run may change; every other option changes the training result.
MAY_CHANGE = re.compile(
    # Length; the learning rate follows the schedule of the new length.
    r"max_steps|num_train_epochs"
    # Resuming, saving, logging, uploading, evaluation, failures.
    r"|resume_from_checkpoint|ignore_data_skip|restore_callback_states_from_checkpoint|output_dir|save_.*|logging_.*"
    r"|log_.*|enable_jit_checkpoint|include_.*|disable_tqdm|report_to|run_name|project|trackio_.*|push_to_hub|hub_.*"
    r"|num_completions_to_print|credit_page_steps|skip_memory_metrics|debug|eval_.*|per_device_eval_batch_size"
    r"|prediction_loss_only|batch_eval_metrics|.*_full_eval|num_generations_eval|load_best_model_at_end"
    r"|metric_for_best_model|greater_is_better|do_(train|eval|predict)|max_nonfinite_grad_steps"
    # The same numbers up to rounding: devices, memory, processes, workers, engines.
    r"|tf32|gradient_checkpointing.*|torch_compile.*|.*liger_kernel.*|use_cache|torch_empty_cache_steps"
    r"|full_determinism|use_cpu|parallelism_config|local_rank|deepspeed|fsdp.*|ddp_.*|ds3_.*"
    r"|dataloader_(?!drop_last).*|trust_remote_code|pad_to_multiple_of|cache_implementation"
    r"|.*transformers_(continuous_batching.*|paged)|shared_prompt.*|teacher_batch_tokens|skip_zero_advantage"
    r"|use_vllm|vllm_(?!structured|importance).*"
)
# Keys of `model_init_kwargs` that are not compared, or, as dtype and revision, under another name.
_LOADING = {"dtype", "revision", "attn_implementation", "device_map", "quantization_config", "trust_remote_code"}
# Keys of a PEFT configuration for loading adapters.
_ADAPTER_LOADING = {
    *("base_model_name_or_path", "inference_mode", "auto_mapping", "peft_version", "task_type", "revision"),
    *("runtime_config", "peft_type"),
}
# Options of `cepo train` for the dataset.
DATA_OPTIONS = (
    *("dataset_name", "dataset_config", "dataset_train_split", "dataset_streaming", "figures_problems"),
    *(one.name for one in fields(DatasetOptions)),
    "max_prompt_length",
)
# For each of `RunOptions.contents`, the options that may differ where the contents are equal.
_CONTENTS = {
    "rollouts": ("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation", "processes"),
    "train_dataset": ("dataset_name", "image_folder"),
    "weights of model_name_or_path": ("model_name_or_path",),
    "weights of teacher_model_name_or_path": ("teacher_model_name_or_path",),
}


@dataclass(frozen=True)
class RunOptions:
    """The options of a run that are compared.

    Attributes:
        options: JSON values by name.
        contents: Digests or sizes for `_CONTENTS`; None if unknown.
        length: Options for the length of the run, and its learning-rate schedule.
    """

    options: Mapping[str, Any]
    contents: Mapping[str, str | None]
    length: Mapping[str, Any]

    def save(self, checkpoint: Path) -> None:
        """Write the options into a checkpoint."""
        write_whole(checkpoint / FILE, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, checkpoint: Path) -> "RunOptions":
        """Read the options of a checkpoint.

        Raises:
            ValueError: If the file is missing or invalid.
        """
        path = checkpoint / FILE
        if not path.is_file():
            raise ValueError(
                f"resume_from_checkpoint: {checkpoint} has no {FILE}, so CEPOTrainer did not write it; start a new run "
                f"from that model (model_name_or_path {checkpoint})"
            )
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"resume_from_checkpoint: {path} does not hold a run's options: {error}") from error


def options_of(trainer: GRPOTrainer, more: Mapping[str, Any]) -> RunOptions:
    """The options of a trainer.

    Args:
        trainer: The trainer.
        more: Options beside those of its configuration and model, named as in `cepo train`.
    """
    args, config = trainer.args, trainer.model.config
    loading = args.model_init_kwargs or {}
    found = {
        **{one.name: getattr(args, one.name) for one in fields(args) if not MAY_CHANGE.fullmatch(one.name)},
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
    del found["generation_batch_size"]  # part of `rollouts`
    step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return RunOptions(
        as_json(found),
        {
            "rollouts": f"{step} a step, {args.generation_batch_size} a generation",
            "train_dataset": _digest_of_rows(trainer.train_dataset),
            **{
                f"weights of {name}": _digest_of_weights(found.get(name))
                for name in ("model_name_or_path", "teacher_model_name_or_path")
            },
        },
        as_json({name: getattr(args, name) for name in ("max_steps", "num_train_epochs", "lr_scheduler_type")}),
    )


def changed(saved: RunOptions, now: RunOptions) -> dict[str, tuple[Any, Any]]:
    """Options and contents that a resumed run must not change but does, with the values of checkpoint and run.

    A name that only one of them has belongs to another version and is not compared.
    """
    found = {name: (old, now.options[name]) for name, old in saved.options.items() if name in now.options}
    found = {name: values for name, values in found.items() if values[0] != values[1]}
    if "method" in found:  # options of the two methods differ too
        found = {name: values for name, values in found.items() if name not in all_options()}
    contents = {name: (old, now.contents[name]) for name, old in saved.contents.items()}
    contents = {name: values for name, values in contents.items() if None not in values}
    equal = {option for name, (old, new) in contents.items() if old == new for option in _CONTENTS[name]}
    found = {name: values for name, values in found.items() if name not in equal}
    # A changed option explains different contents.
    return found or {name: values for name, values in contents.items() if values[0] != values[1]}


def refuse_changed(checkpoint: str, saved: RunOptions, now: RunOptions) -> None:
    """Refuse changed options that a resumed run must not change.

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
    old, new = saved.length, now.length
    # max_steps takes precedence.
    names = ["max_steps"] if min(old["max_steps"], new["max_steps"]) > 0 else ["max_steps", "num_train_epochs"]
    parts = ", ".join(f"{name} {new[name]} in place of {old[name]}" for name in names if old[name] != new[name])
    if not parts or new["lr_scheduler_type"].startswith("constant"):
        return None
    return f"{parts}: the learning rate follows the {new['lr_scheduler_type']} schedule of the new length"


def as_json(value: Any) -> Any:
    """A value as JSON would return it; a function by its name, another object by its type."""
    return json.loads(json.dumps(value, default=_plain))


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {one.name: getattr(value, one.name) for one in fields(value)}
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    if hasattr(value, "to_dict"):
        return value.to_dict()
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
    values = {name: value for name, value in config.to_dict().items() if name not in _ADAPTER_LOADING}
    return {
        "use_peft": config.peft_type,
        **{f"lora_{name}" if name in plain else name: value for name, value in values.items()},
    }


_SLICES, _SLICE = 16, 4096


def _digest_of_weights(name: str | None) -> str | None:
    """Digest of slices of a local model's weight files; None for a model on the Hub."""
    if name is None or not Path(name).is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(path for path in Path(name).iterdir() if path.suffix in (".safetensors", ".bin")):
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
    images = [name for name, one in dataset.features.items() if isinstance(getattr(one, "feature", one), Image)]
    rows, digest = dataset.remove_columns(images), hashlib.sha256()
    for batch in rows.with_format(None).iter(1000) if rows.column_names else ():
        digest.update(json.dumps(batch, sort_keys=True, default=str).encode())
    return f"{len(dataset)} rows, digest {digest.hexdigest()[:12]}"
