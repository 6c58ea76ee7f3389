"""The benchmarked models, Qwen3-VL's architecture with random weights, and the FLOPs of their forward passes."""

from dataclasses import dataclass

import torch
from experiments.policy_architecture import SPECIAL_TOKENS, VISION_TOKENS
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from trl.trainer.utils import add_fused_lm_head

# Token ids of the shipped processor, whose tokenizer serves these models too.
IDS = {token: position for position, token in enumerate(SPECIAL_TOKENS)}
PATCH, MERGE = 8, 2

# For two cores. LM head, vision tower and language model share the work about as in Qwen3-VL-2B.
SMALL = {
    "text": {
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "rope_parameters": {"mrope_section": [12, 10, 10]},
    },
    "vision": {
        "depth": 6,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_heads": 4,
        "deepstack_visual_indexes": [1, 3],
    },
}
# For whole steps on two cores.
TINY = {
    "text": {
        "vocab_size": 2048,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "rope_parameters": {"mrope_section": [6, 5, 5]},
    },
    "vision": {
        "depth": 4,
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_heads": 4,
        "deepstack_visual_indexes": [1],
    },
}
# The widths and depths of Qwen3-VL-2B-Instruct, as published with it.
QWEN3_VL_2B = {
    "text": {
        "vocab_size": 151_936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_parameters": {"mrope_section": [24, 20, 20]},
    },
    "vision": {
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_heads": 16,
        "deepstack_visual_indexes": [5, 11, 17],
    },
}
ARCHITECTURES = {"tiny": TINY, "small": SMALL, "qwen3-vl-2b": QWEN3_VL_2B}


def build(name: str, device: torch.device, dtype: torch.dtype) -> Qwen3VLForConditionalGeneration:
    """A model of the named architecture, random weights, with a patch size of 8 for the shipped image processor."""
    sizes = ARCHITECTURES[name]
    text = dict(sizes["text"])
    text["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_interleaved": True,
        **text["rope_parameters"],
    }
    special = {"pad_token_id": IDS["<|endoftext|>"], "eos_token_id": IDS["<|im_end|>"]}
    config = Qwen3VLConfig(
        text_config={
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            **special,
            **text,
        },
        vision_config={
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "out_hidden_size": text["hidden_size"],
            "num_position_embeddings": 32**2,
            **sizes["vision"],
        },
        image_token_id=IDS["<|image_pad|>"],
        video_token_id=IDS["<|video_pad|>"],
        vision_start_token_id=IDS["<|vision_start|>"],
        vision_end_token_id=IDS["<|vision_end|>"],
        tie_word_embeddings=True,
        **special,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen3VLForConditionalGeneration(config).to(dtype)
    model.generation_config.eos_token_id = special["eos_token_id"]
    model.generation_config.pad_token_id = special["pad_token_id"]
    model.generation_config.suppress_tokens = [IDS[token] for token in VISION_TOKENS]
    return model


def scorable(model: Qwen3VLForConditionalGeneration) -> Qwen3VLForConditionalGeneration:
    add_fused_lm_head(model)
    return model.eval()


@dataclass
class Work:
    """Work of forward passes.

    Attributes:
        tokens: Positions of the language model, padding included.
        pairs: (query, key) pairs of its attention.
        predicted: Positions of the LM head.
        patches: Image patches of the vision tower.
    """

    tokens: int = 0
    pairs: int = 0
    predicted: int = 0
    patches: int = 0

    def flops(self, config: Qwen3VLConfig) -> float:
        """FLOPs of the matrix products: 2 per weight and position, 4 per head, pair and head dimension."""
        text, vision = config.text_config, config.vision_config
        width = text.num_attention_heads * text.head_dim
        attention = text.hidden_size * (2 * width + 2 * text.num_key_value_heads * text.head_dim)
        layer = attention + 3 * text.hidden_size * text.intermediate_size
        vision_layer = 4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size
        return (
            2.0 * self.tokens * text.num_hidden_layers * layer
            + 4.0 * self.pairs * text.num_hidden_layers * width
            + 2.0 * self.predicted * text.hidden_size * text.vocab_size
            + 2.0 * self.patches * vision.depth * vision_layer
        )
