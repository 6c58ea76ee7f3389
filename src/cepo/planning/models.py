"""Models on the meta device, from their configurations: parameters and shapes without weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from ..data.errors import LoadingError
from ..data.models import VISION_TOWERS, freeze_vision_tower


def _qwen3(hidden: int, intermediate: int, layers: int, heads: int) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers}
    attention = {"num_attention_heads": heads, "num_key_value_heads": 8, "head_dim": 128}
    return {"model_type": "qwen3", **sizes, **attention, "vocab_size": 151936, "tie_word_embeddings": True}


def _qwen3_vl(hidden: int, *sizes: int) -> dict[str, Any]:
    text = {**_qwen3(hidden, *sizes), "model_type": "qwen3_vl_text"}
    tower = {
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "out_hidden_size": hidden,
        "deepstack_visual_indexes": [5, 11, 17],
    }
    return {"model_type": "qwen3_vl", "text_config": text, "vision_config": tower, "tie_word_embeddings": True}


# The models of recipes/, for machines without network and without a copy.
KNOWN: dict[str, dict[str, Any]] = {
    "Qwen/Qwen3-VL-2B-Instruct": _qwen3_vl(2048, 6144, 28, 16),
    "Qwen/Qwen3-VL-4B-Instruct": _qwen3_vl(2560, 9728, 36, 32),
    "Qwen/Qwen3-1.7B": _qwen3(2048, 6144, 28, 16),
}


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


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A model without weights.

    Attributes:
        model: The transformers model, on the meta device.
        wrapped: The model, or PEFT's model around it.
        dtype: Of the weights.
    """

    model: PreTrainedModel
    wrapped: nn.Module
    dtype: torch.dtype

    @classmethod
    def of(cls, config: Any, dtype: torch.dtype, peft_config: Any = None, *, freeze_tower: bool = False) -> "Skeleton":
        """Build a model from its configuration, with the adapters of a PEFT configuration.

        Raises:
            ValueError: With `freeze_tower`, if the model has no vision tower.
        """
        vision = type(config).model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
        with torch.device("meta"):
            auto_class = AutoModelForImageTextToText if vision else AutoModelForCausalLM
            model = auto_class.from_config(config, dtype=dtype)
        model.tie_weights()
        wrapped = model
        if peft_config is not None:
            from peft import get_peft_model

            wrapped = get_peft_model(model, peft_config, low_cpu_mem_usage=True)
        if freeze_tower:
            freeze_vision_tower(wrapped)
        return cls(model, wrapped.train(), dtype)

    @property
    def text(self) -> Any:
        """Configuration of the language model."""
        return self.model.config.get_text_config()

    @property
    def tower(self) -> Any:
        """The vision tower; None for a text model."""
        modules = dict(self.model.base_model.named_children())
        return next((module for name, module in modules.items() if name in VISION_TOWERS), None)

    def count(self, *, trained: bool | None = None, module: nn.Module | None = None) -> int:
        """Number of parameters of a module (default: the model): all, trained, or frozen."""
        parameters = (module or self.wrapped).parameters()
        return sum(p.numel() for p in parameters if trained is None or p.requires_grad is trained)

    def bytes_of(self, *, trained: bool) -> int:
        """Bytes of the trained or of the frozen parameters."""
        return sum(p.nbytes for p in self.wrapped.parameters() if p.requires_grad is trained)

    @property
    def attention_sizes(self) -> tuple[int, int]:
        """Elements of a token's queries and of its keys in one layer."""
        text = self.text
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        keys = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        return text.num_attention_heads * width, keys * width

    @property
    def cache_elements(self) -> int:
        """Elements of a token's keys and values in all layers."""
        return 2 * self.text.num_hidden_layers * self.attention_sizes[1]
