"""Adapters written into the weights of their model: one folder that loads without PEFT."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..scoring.prompts import PromptEncoder, tokenizer_of
from .loading import LoadingError, base_error, check_mergeable, holds_adapters, load_adapters, merge_weights

# Names of types on the command line; auto is what the base was saved in.
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# The prompt on which the merged model is compared with the adapters' model.
_QUESTION = "A train leaves at 9:40 and arrives at 11:05. How many minutes does the journey take? Explain each step."
# Largest mean |difference| [nats] of that prompt's log-probs by the type of the saved weights, whose rounding is the
# only difference: SmolLM2-135M reaches 4e-6, 9e-3 and 1.4e-3 (float32, bfloat16, float16).
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}


@dataclass(frozen=True)
class Merged:
    """What a merge has left.

    Attributes:
        base: Folder or name of the model that the adapters belonged to.
        parameters: Of the whole model.
        dtype: Of the weights that were saved.
        difference: Mean |difference| [nats] between the log-probs of one prompt under the saved model and under the
            adapters' model, over the most likely token of each position.
    """

    base: str
    parameters: int
    dtype: torch.dtype
    difference: float


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

    The sum is made in float32 and rounded once. The saved model is loaded again and compared with the adapters' model
    on one prompt; the folder appears after that.

    Args:
        adapters: Their folder.
        output: Folder for the model; not there yet, or empty.
        base: The model that the adapters belong to; None: the one that they name.
        dtype: Of the weights that are saved; None: as the base was saved.
        shard: Largest file of weights, as transformers' `max_shard_size`.

    Raises:
        LoadingError: If the adapters or their model cannot be loaded.
        ValueError: If the output folder holds something, or the saved model gives other log-probs than the adapters.
    """
    from peft import PeftConfig
    from transformers import AutoConfig
    from trl.trainer.utils import create_model_from_path

    check_merge(adapters, output)
    path = Path(adapters).expanduser()
    check_mergeable(path)
    base = base or PeftConfig.from_pretrained(path).base_model_name_or_path
    try:
        # On the CPU: a model spread over devices cannot be moved to another type as one. No code of its own is run.
        adapted = load_adapters(path, base, is_trainable=False, device_map=None)
        saved = AutoConfig.from_pretrained(base, trust_remote_code=False)
        processing_class = _processing_class(path, str(base))
    except OSError as error:
        raise LoadingError(base_error(adapters, str(base), error)) from error
    dtype = dtype or saved.dtype or torch.float32
    ids = _prompt(processing_class)
    expected = _log_probs(adapted, ids)
    likely = expected.argmax(-1, keepdim=True)
    part = output.with_name(f"{output.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a merge that was killed
    try:
        model = merge_weights(adapted).to(dtype)
        model.save_pretrained(part, max_shard_size=shard)
        processing_class.save_pretrained(part)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        del model, adapted  # before the model is loaded once more
        found = _log_probs(create_model_from_path(str(part), dtype=torch.float32, device_map=None), ids)
        difference = (found - expected).gather(-1, likely).abs().mean().item()
        if not difference <= _TOLERANCE.get(dtype, _TOLERANCE[torch.bfloat16]):  # NaN included
            raise ValueError(
                f"model_name_or_path: {adapters} merged into {base} is another model: the log-probs of a prompt are "
                f"{difference:.2g} nats off on average. Nothing was saved; use the adapters with PEFT"
            )
        part.rename(output)  # onto an empty folder too
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Merged(str(base), parameters, dtype, difference)


def _prompt(processing_class: Any) -> Tensor:
    """Token ids of a question, (1, S): as a conversation where there is a chat template."""
    tokenizer = tokenizer_of(processing_class)
    if getattr(processing_class, "chat_template", None):
        encoder = PromptEncoder(processing_class, processing_class is not tokenizer)
        return torch.tensor([encoder.prompt([{"role": "user", "content": _QUESTION}]).ids])
    return torch.tensor([tokenizer(_QUESTION)["input_ids"]])


@torch.no_grad()
def _log_probs(model: Any, ids: Tensor) -> Tensor:
    """Log-probs of every next token [nats], (1, S, V)."""
    return model.eval()(input_ids=ids).logits.float().log_softmax(-1)


def _processing_class(adapters: Path, base: str) -> Any:
    """The processor or tokenizer that was saved beside the adapters, else the base's own."""
    from transformers import AutoProcessor

    beside = any((adapters / name).is_file() for name in ("processor_config.json", "tokenizer_config.json"))
    return AutoProcessor.from_pretrained(adapters if beside else base, trust_remote_code=False)
