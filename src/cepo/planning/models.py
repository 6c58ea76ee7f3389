"""A model's skeleton: its modules on the meta device, from its configuration alone, wherever that is found."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from ..data.errors import LoadingError
from ..data.models import freeze_vision_tower as freeze

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


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A model without weights.

    Attributes:
        model: The transformers model, on the meta device.
        wrapped: The same, or PEFT's model around it.
        dtype: Of its weights.
    """

    model: PreTrainedModel
    wrapped: nn.Module
    dtype: torch.dtype

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
        return cls(model, wrapped.train(), dtype)

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
        """Number of parameters: all, those that are trained, or the others; of a module, or of the model."""
        parameters = (module or self.wrapped).parameters()
        return sum(p.numel() for p in parameters if trained is None or p.requires_grad is trained)

    def bytes_of(self, *, trained: bool) -> int:
        """Bytes of the parameters that are trained, or of the others."""
        return sum(p.nbytes for p in self.wrapped.parameters() if p.requires_grad is trained)

    @property
    def largest_block(self) -> int:
        """Parameters of the largest block, which sharded weights are gathered for one at a time."""
        lists = [part for part in self.wrapped.modules() if isinstance(part, nn.ModuleList)]
        return max(self.count(module=block) for part in lists for block in part)

    @property
    def attention_sizes(self) -> tuple[int, int]:
        """Elements of one token's queries, and of its keys, in one layer."""
        text = self.text
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        keys = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        return text.num_attention_heads * width, keys * width

    @property
    def cache_elements(self) -> int:
        """Elements of one token's keys and values in all layers."""
        return 2 * self.text.num_hidden_layers * self.attention_sizes[1]

    @property
    def norms_heads(self) -> bool:
        """Whether queries and keys are normed, as in Qwen3."""
        return any(name.endswith("q_norm.weight") for name, _ in self.model.named_parameters())

    @property
    def trains_norms(self) -> bool:
        return any("norm" in name and p.requires_grad for name, p in self.model.get_decoder().named_parameters())

    @property
    def adapters_differ(self) -> bool:
        """Whether adapters have another type than the weights, as PEFT's float32 ones on a model in bfloat16."""
        return any(p.requires_grad and p.dtype != self.dtype for p in self.wrapped.parameters())

    @property
    def trains_tower(self) -> bool:
        return self.tower is not None and self.count(trained=True, module=self.tower) > 0

    @property
    def tower_sizes(self) -> tuple[int, int, int, int] | None:
        """Blocks, hidden size, MLP size and patches a token of a tower like Qwen-VL's; None for another kind."""
        config = self.tower.config
        names = ("depth", "hidden_size", "intermediate_size", "spatial_merge_size")
        if not all(hasattr(config, name) for name in names):
            return None
        return config.depth, config.hidden_size, config.intermediate_size, config.spatial_merge_size**2
