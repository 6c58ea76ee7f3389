"""Merge PEFT adapters into their base model and save it, so that it loads without PEFT."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..scoring.prompts import PromptEncoder, tokenizer_of
from .adapters import check_mergeable, holds_adapters, load_adapters, merge_weights
from .errors import LoadingError, loading_errors

# Values of --dtype; auto keeps the type of the base model.
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# The prompt on which the merged model is compared with the adapters.
_QUESTION = "A train leaves at 9:40 and arrives at 11:05. How many minutes does the journey take? Explain each step."
# Largest mean |difference| of the prompt's log-probs [nats] by the type of the saved weights, from rounding alone.
# SmolLM2-135M has 4e-6 in float32, 9e-3 in bfloat16 and 1.4e-3 in float16.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}


@dataclass(frozen=True)
class Merged:
    """A merged model.

    Attributes:
        base: Folder or Hub name of the base model.
        parameters: Number of parameters of the whole model.
        dtype: Type of the saved weights.
        difference: Mean |difference| between the log-probs of the saved model and of the base with adapters [nats], of
            the most likely token at each position of a prompt.
    """

    base: str
    parameters: int
    dtype: torch.dtype
    difference: float


def check_merge(adapters: str, output: Path) -> None:
    """Refuse a folder without adapters, and an output folder that is not empty.

    Raises:
        ValueError: Naming the option.
    """
    path = Path(adapters).expanduser()
    if not path.is_dir():
        raise LoadingError(f"model_name_or_path: there is no such folder: {adapters}")
    if not holds_adapters(path):
        kind = " but a whole model" if (path / "config.json").is_file() else ""
        raise LoadingError(f"model_name_or_path: {adapters} has no adapters (adapter_config.json){kind}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"output_dir: {output} is not an empty folder; choose another, or remove it")


def merge_adapters(
    adapters: str, output: Path, *, base: str | None = None, dtype: torch.dtype | None = None, shard: str = "5GB"
) -> Merged:
    """Merge adapters into their base model, and save it with its processor or tokenizer.

    Weights are added in float32 and rounded once. The saved model is loaded and compared with the adapters on a prompt
    before the output folder appears.

    Args:
        adapters: Folder of the adapters.
        output: Folder for the model; missing or empty.
        base: The base model. None: as the adapters' configuration says.
        dtype: Type of the saved weights. None: that of the base model.
        shard: Size of the largest file, see `max_shard_size` of transformers.

    Raises:
        LoadingError: If the adapters or their base model cannot be loaded.
        ValueError: If the output folder is not empty, or the log-probs differ by more than rounding.
    """
    from peft import PeftConfig
    from transformers import AutoConfig
    from trl.trainer.utils import create_model_from_path

    check_merge(adapters, output)
    path = Path(adapters).expanduser()
    check_mergeable(path)
    base = base or PeftConfig.from_pretrained(path).base_model_name_or_path
    # On the CPU: `to(dtype)` needs a model on one device.
    adapted = load_adapters(path, base, is_trainable=False, device_map=None)
    with loading_errors("base_model", str(base)):
        dtype = dtype or AutoConfig.from_pretrained(base, trust_remote_code=False).dtype or torch.float32
        processing_class = _processing_class(path, str(base))
    ids = _prompt(processing_class)
    expected = _log_probs(adapted, ids)
    part = output.with_name(f"{output.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a merge that was killed
    try:
        model = merge_weights(adapted).to(dtype)
        model.save_pretrained(part, max_shard_size=shard)
        processing_class.save_pretrained(part)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        del model, adapted  # before the model is loaded again
        found = _log_probs(create_model_from_path(str(part), dtype=torch.float32, device_map=None), ids)
        difference = (found - expected).gather(-1, expected.argmax(-1, keepdim=True)).abs().mean().item()
        if not difference <= _TOLERANCE[dtype]:  # also for NaN
            raise ValueError(
                f"model_name_or_path: {adapters} merged into {base} gives other log-probs than the adapters, by "
                f"{difference:.2g} nats on average. The model was not saved; use the adapters with PEFT"
            )
        part.rename(output)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Merged(str(base), parameters, dtype, difference)


def _prompt(processing_class: Any) -> Tensor:
    """Token ids of a question, (1, S), as a conversation if there is a chat template."""
    tokenizer = tokenizer_of(processing_class)
    if getattr(processing_class, "chat_template", None):
        encoder = PromptEncoder(processing_class)
        return torch.tensor([encoder.prompt([{"role": "user", "content": _QUESTION}]).ids])
    return torch.tensor([tokenizer(_QUESTION)["input_ids"]])


@torch.no_grad()
def _log_probs(model: Any, ids: Tensor) -> Tensor:
    """Log-probs of the next token at each position [nats], (1, S, V)."""
    return model.eval()(input_ids=ids).logits.float().log_softmax(-1)


def _processing_class(adapters: Path, base: str) -> Any:
    """The processor or tokenizer in the adapters' folder, else that of the base model."""
    from transformers import AutoProcessor

    saved = any((adapters / name).is_file() for name in ("processor_config.json", "tokenizer_config.json"))
    return AutoProcessor.from_pretrained(adapters if saved else base, trust_remote_code=False)
