"""PEFT adapters: load them on their base model, and merge them into its weights."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .errors import LoadingError, loading_errors


def holds_adapters(path: str | Path) -> bool:
    """Whether a folder holds PEFT adapters."""
    return (Path(path) / "adapter_config.json").is_file()


def load_adapters(path: str | Path, base: str | None = None, *, is_trainable: bool = True, **options: Any) -> Any:
    """Load PEFT adapters and their base model.

    Args:
        path: Folder of the adapters.
        base: The base model. None: as the adapters' configuration says.
        is_trainable: Whether the adapters get gradients.
        options: Arguments of `from_pretrained` for the base model.

    Raises:
        LoadingError: If the configuration names no base model, or it cannot be loaded.
    """
    from peft import PeftConfig, PeftModel
    from trl.trainer.utils import create_model_from_path

    base = base or PeftConfig.from_pretrained(path).base_model_name_or_path
    if not base:
        raise LoadingError(f"{path}: adapter_config.json has no base_model_name_or_path")
    with loading_errors(f"the base model of the adapters in {path}", base):
        model = create_model_from_path(base, **options)
    with warnings.catch_warnings():
        # `merge_weights` unties the weights that PEFT warns about.
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True` and a tied layer")
        return PeftModel.from_pretrained(model, path, is_trainable=is_trainable)


def load_merged(path: str | Path, base: str | None = None, **options: Any) -> Any:
    """Load adapters and merge them into their base model. Arguments and errors as for `load_adapters`.

    Raises:
        LoadingError: Also for prompt-learning adapters, which have no weights to merge.
    """
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(path)
    if config.is_prompt_learning:
        raise LoadingError(f"{path}: adapters of type {config.peft_type.value} cannot be merged into weights")
    return merge_weights(load_adapters(path, base, is_trainable=False, **options))


def adapts_tied_embeddings(model: Any) -> bool:
    """Whether adapters change an embedding or output head that share one weight."""
    inner = model.get_base_model()
    embedding, head = inner.get_input_embeddings(), inner.get_output_embeddings()
    if head is None or _base_layer(embedding).weight is not _base_layer(head).weight:
        return False
    return _base_layer(embedding) is not embedding or _base_layer(head) is not head


def _base_layer(module: Any) -> Any:
    """The layer inside PEFT's wrappers."""
    while (inside := getattr(module, "base_layer", getattr(module, "original_module", None))) is not None:
        module = inside
    return module


def merge_weights(model: Any) -> Any:
    """Merge a PEFT model's adapters into its weights, in place.

    PEFT would add an adapter of the embedding to a tied head as well. Tied weights that an adapter changes are untied
    before merging, and tied again if they end up equal.

    Returns:
        The base model.
    """
    unties = adapts_tied_embeddings(model)
    inner = model.get_base_model()
    if unties:
        head = _base_layer(inner.get_output_embeddings())
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    configs = [inner.config, inner.config.get_text_config()]
    ties = [getattr(config, "tie_word_embeddings", False) for config in configs]
    with warnings.catch_warnings():
        # PEFT explains how to untie weights, which is done here.
        warnings.filterwarnings("ignore", message="Model with `tie_word_embeddings=True`")
        warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
        merged = model.merge_and_unload(safe_merge=True)
    if unties:
        embedding, head = merged.get_input_embeddings(), merged.get_output_embeddings()
        equal = torch.equal(embedding.weight, head.weight)
        if equal:
            head.weight = embedding.weight
        for config, tied in zip(configs, ties, strict=True):
            config.tie_word_embeddings = tied and equal
    return merged
