"""Adapters written into the weights of their model: one folder that loads without PEFT."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .loading import LoadingError, base_error, holds_adapters, load_merged

# Names of types on the command line; auto is what the base was saved in.
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Merged:
    """What a merge has left.

    Attributes:
        base: Folder or name of the model that the adapters belonged to.
        parameters: Of the whole model.
        dtype: Of the weights that were saved.
    """

    base: str
    parameters: int
    dtype: torch.dtype


def check_merge(adapters: str, output: Path) -> None:
    """Refuse what cannot be merged, or not into that folder.

    Raises:
        LoadingError: If there are no adapters.
        ValueError: If the output folder holds something.
    """
    path = Path(adapters).expanduser()
    if not path.is_dir():
        raise LoadingError(f"model_name_or_path: there is no such folder: {adapters}")
    if not holds_adapters(path):
        kind = "a whole model" if (path / "config.json").is_file() else "nothing of PEFT"
        raise LoadingError(f"model_name_or_path: {adapters} holds {kind}, no adapters (adapter_config.json)")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"output_dir: {output} is not an empty folder; name another, or remove it")


def merge_adapters(
    adapters: str, output: Path, *, base: str | None = None, dtype: torch.dtype | None = None, shard: str = "5GB"
) -> Merged:
    """Merge adapters into their model, and save it with its processor or tokenizer and its generation settings.

    The sum is made in float32 and rounded once. The folder appears when it is complete.

    Args:
        adapters: Their folder.
        output: Folder for the model; not there yet, or empty.
        base: The model that the adapters belong to; None: the one that they name.
        dtype: Of the weights that are saved; None: as the base was saved.
        shard: Largest file of weights, as transformers' `max_shard_size`.

    Raises:
        LoadingError: If the adapters or their model cannot be loaded.
        ValueError: If the output folder holds something.
    """
    from peft import PeftConfig
    from transformers import AutoConfig

    check_merge(adapters, output)
    path = Path(adapters).expanduser()
    base = base or PeftConfig.from_pretrained(path).base_model_name_or_path
    try:
        # On the CPU: a model spread over devices cannot be moved to another type as one. No code of its own is run.
        model = load_merged(path, base, device_map=None)
        saved = AutoConfig.from_pretrained(base, trust_remote_code=False)
        processing_class = _processing_class(path, str(base))
    except OSError as error:
        raise LoadingError(base_error(adapters, str(base), error)) from error
    model = model.to(dtype or saved.dtype or torch.float32)
    part = output.with_name(f"{output.name}.part")
    model.save_pretrained(part, max_shard_size=shard)
    processing_class.save_pretrained(part)
    part.rename(output)  # onto an empty folder too
    return Merged(str(base), sum(parameter.numel() for parameter in model.parameters()), model.dtype)


def _processing_class(adapters: Path, base: str) -> Any:
    """The processor or tokenizer that was saved beside the adapters, else the base's own."""
    from transformers import AutoProcessor

    beside = any((adapters / name).is_file() for name in ("processor_config.json", "tokenizer_config.json"))
    return AutoProcessor.from_pretrained(adapters if beside else base, trust_remote_code=False)
