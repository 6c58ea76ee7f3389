"""Sizes of models, from their configurations, without weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from ..data.errors import LoadingError
from ..data.models import VISION_TOWERS, freeze_vision_tower

# The models of recipes/, for machines without network and without a copy.
KNOWN: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("known_models.json").read_text("utf-8"))


def find_config(name: str) -> tuple[Any, str]:
    """A model's configuration and its source: a folder, the cache, or `KNOWN`."""
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
        return config, "folder" if Path(name).is_dir() else "cache"
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise LoadingError(f"model_name_or_path: the sizes of {name} need remote code, which is not run") from error
        if name not in KNOWN:
            raise LoadingError(
                f"model_name_or_path: {name} is neither a folder, nor in the cache, nor one of {', '.join(KNOWN)}; "
                f"fetch its config.json (hf download {name} config.json)"
            ) from None
    known = dict(KNOWN[name])
    return AutoConfig.for_model(known.pop("model_type"), **known), "sizes known to cepo"


@dataclass(frozen=True)
class Layers:
    """The layers of a decoder or of a vision tower: number, parameters, and widths."""

    number: int
    parameters: int
    trained: int
    hidden: int
    intermediate: int

    @classmethod
    def of(cls, module: nn.Module, number: int, config: Any) -> "Layers":
        every, trained = (sum(p.numel() for p in module.parameters() if p.requires_grad or of) for of in (True, False))
        inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        return cls(number, every, trained, config.hidden_size, inner)


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model.

    Attributes:
        itemsize: Bytes of a weight.
        adapted: Whether adapters are trained, in float32, rather than the weights.
        parameters, trained: Number of parameters.
        decoder: Layers of the language model, with their adapters.
        tower: The vision tower; None for a text model, and for towers unlike Qwen-VL's, which are not counted.
        patches: Patches of an image token.
        queries, keys, normed: Elements of a token's queries, of its keys, and of the input of norms, in a layer.
        vocabulary: V.
    """

    itemsize: int
    adapted: bool
    parameters: int
    trained: int
    decoder: Layers
    tower: Layers | None
    patches: int
    queries: int
    keys: int
    normed: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any, dtype: torch.dtype, peft_config: Any = None, *, freeze_tower: bool = False) -> "Sizes":
        """Sizes of the model of a configuration, with the adapters of a PEFT configuration.

        Raises:
            ValueError: With `freeze_tower`, if the model has no vision tower.
        """
        vision = type(config).model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
        with torch.device("meta"):
            model = (AutoModelForImageTextToText if vision else AutoModelForCausalLM).from_config(config, dtype=dtype)
        model.tie_weights()
        wrapped: nn.Module = model
        if peft_config is not None:
            from peft import get_peft_model

            wrapped = get_peft_model(model, peft_config, low_cpu_mem_usage=True)
        if freeze_tower:
            freeze_vision_tower(wrapped)
        text = config.get_text_config()
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        queries = text.num_attention_heads * width
        keys = (getattr(text, "num_key_value_heads", None) or text.num_attention_heads) * width
        whole = Layers.of(wrapped, 1, text)
        layers = next(module for module in model.get_decoder().modules() if isinstance(module, nn.ModuleList))
        norms_queries = any("q_norm" in name for name, _ in layers.named_parameters())
        tower = next((m for name, m in model.base_model.named_children() if name in VISION_TOWERS), None)
        if not hasattr(getattr(tower, "config", None), "depth"):
            tower = None
        return cls(
            itemsize=dtype.itemsize,
            adapted=peft_config is not None,
            parameters=whole.parameters,
            trained=whole.trained,
            decoder=Layers.of(layers, len(layers), text),
            tower=None if tower is None else Layers.of(tower, tower.config.depth, tower.config),
            patches=0 if tower is None else tower.config.spatial_merge_size**2,
            queries=queries,
            keys=keys,
            normed=2 * text.hidden_size + (queries + keys if norms_queries else 0),
            vocabulary=text.vocab_size,
        )
