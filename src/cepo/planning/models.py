"""A model's skeleton: its modules on the meta device, from its configuration alone, wherever that is found."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from ..data.loading import LoadingError
from ..data.loading import freeze_vision_tower as freeze

_QWEN3 = {"vocab_size": 151936, "head_dim": 128, "num_key_value_heads": 8, "tie_word_embeddings": True}
_QWEN3_VL_TOWER = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [5, 11, 17],
}
_M_ROPE = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}


def _qwen3_vl(hidden: int, intermediate: int, layers: int, heads: int) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers}
    text = {**_QWEN3, **sizes, "num_attention_heads": heads, "rope_parameters": _M_ROPE}
    tower = {**_QWEN3_VL_TOWER, "out_hidden_size": hidden}
    return {"model_type": "qwen3_vl", "text_config": text, "vision_config": tower, "tie_word_embeddings": True}


# The models of our recipes, for machines that have neither network nor a copy.
KNOWN: dict[str, dict[str, Any]] = {
    "Qwen/Qwen3-VL-2B-Instruct": _qwen3_vl(2048, 6144, 28, 16),
    "Qwen/Qwen3-VL-4B-Instruct": _qwen3_vl(2560, 9728, 36, 32),
    "Qwen/Qwen3-1.7B": {
        "model_type": "qwen3",
        **_QWEN3,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
    },
}


def find_config(name: str) -> tuple[Any, str]:
    """A model's configuration, and where it is from: a folder, this machine's cache, or the sizes that we know.

    Raises:
        LoadingError: If it is in none of these.
    """
    try:
        found = AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
        return found, f"its {'folder' if Path(name).is_dir() else 'copy in the cache'}"
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise LoadingError(f"model_name_or_path: only code that comes with {name} knows its sizes") from error
        if name not in KNOWN:
            raise LoadingError(
                f"model_name_or_path: {name} is neither a folder, nor in this machine's cache, nor one of "
                f"{', '.join(KNOWN)}, whose sizes we know; fetch its config.json (hf download {name} config.json)"
            ) from None
    known = dict(KNOWN[name])
    return AutoConfig.for_model(known.pop("model_type"), **known), "the sizes that cepo knows"


@dataclass(frozen=True, eq=False)  # one is not another, though they look alike
class Skeleton:
    """A model without weights.

    Attributes:
        model: The transformers model, on the meta device.
        wrapped: It, or it within PEFT's.
        dtype: Of its weights.
        peft_config: Of the adapters within PEFT's, if there are any.
    """

    model: PreTrainedModel
    wrapped: nn.Module
    dtype: torch.dtype
    peft_config: Any = None

    @classmethod
    def of(
        cls, config: Any, dtype: torch.dtype, peft_config: Any = None, *, freeze_vision_tower: bool = False
    ) -> "Skeleton":
        """From a configuration, with the adapters that would be trained.

        Raises:
            ValueError: If there is no vision tower to freeze.
        """
        vision = type(config).model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
        kind = AutoModelForImageTextToText if vision else AutoModelForCausalLM
        with torch.device("meta"):
            model = kind.from_config(config, dtype=dtype)
        model.tie_weights()
        wrapped = model
        if peft_config is not None:
            from peft import get_peft_model

            wrapped = get_peft_model(model, peft_config, low_cpu_mem_usage=True)
        if freeze_vision_tower:
            freeze(wrapped)
        return cls(model, wrapped.train(), dtype, peft_config)

    @property
    def text(self) -> Any:
        """The text part's configuration."""
        return self.model.config.get_text_config()

    @property
    def tower(self) -> Any:
        """The vision tower; None where there is none."""
        found = [part for part in ("visual", "vision_model", "vision_tower") if hasattr(self.model.base_model, part)]
        return getattr(self.model.base_model, found[0]) if found else None

    def count(self, *, trained: bool | None = None, module: nn.Module | None = None) -> int:
        """How many parameters, of those that are trained, of those that are not, or of all; in a module, or in all."""
        parameters = (module or self.wrapped).parameters()
        return sum(p.numel() for p in parameters if trained is None or p.requires_grad is trained)

    def bytes_of(self, *, trained: bool) -> int:
        """Of the parameters that are trained, or of the others."""
        return sum(p.nbytes for p in self.wrapped.parameters() if p.requires_grad is trained)

    @property
    def largest_block(self) -> int:
        """Parameters of the largest block, of those that are gathered one at a time where weights are sharded."""
        return max(self.count(module=block) for block in self.blocks())

    def blocks(self) -> list[nn.Module]:
        """The layers of the text part and of the vision tower."""
        return [block for part in self.wrapped.modules() if isinstance(part, nn.ModuleList) for block in part]

    @property
    def cache_bytes(self) -> int:
        """Of the keys and values of one token, in the weights' precision or half of it under bf16."""
        text = self.text
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return 2 * text.num_hidden_layers * heads * width * self.dtype.itemsize
