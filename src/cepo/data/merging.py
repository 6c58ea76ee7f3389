"""Merge PEFT adapters into their base model and save it, so that it loads without PEFT."""

import shutil
from pathlib import Path
from typing import Any

import torch

from .adapters import holds_adapters, load_merged
from .errors import LoadingError

# Values of --dtype; auto keeps the type of the base model.
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def merge_adapters(adapters: str, output: Path, *, base: str | None = None, dtype: torch.dtype | None = None) -> Any:
    """Merge adapters into their base model, and save it with its processor or tokenizer.

    Weights are added in float32 and rounded once. The output folder appears when the model is complete.

    Args:
        adapters: Folder of the adapters.
        output: Folder for the model; missing or empty.
        base: The base model. None: as the adapters' configuration says.
        dtype: Type of the saved weights. None: that of the base model.

    Returns:
        The merged model.

    Raises:
        LoadingError: If the adapters or their base model cannot be loaded.
        ValueError: If the output folder is not empty.
    """
    from peft import PeftConfig
    from transformers import AutoConfig, AutoProcessor

    path = Path(adapters).expanduser()
    if not holds_adapters(path):
        raise LoadingError(f"model_name_or_path: {adapters} is not a folder with adapters (adapter_config.json)")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"output_dir: {output} is not an empty folder; choose another, or remove it")
    base = base or PeftConfig.from_pretrained(path).base_model_name_or_path
    model = load_merged(path, base, device_map=None)  # on the CPU: `to(dtype)` needs a model on one device
    dtype = dtype or AutoConfig.from_pretrained(base, trust_remote_code=False).dtype or torch.float32
    saved = any((path / name).is_file() for name in ("processor_config.json", "tokenizer_config.json"))
    processing_class = AutoProcessor.from_pretrained(path if saved else base, trust_remote_code=False)
    part = output.with_name(f"{output.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a merge that was killed
    try:
        model.to(dtype).save_pretrained(part)
        processing_class.save_pretrained(part)
        part.rename(output)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return model
