"""Small models with random weights."""

import json
from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from cepo import policy_path

VOCABULARY = 60
# Ids of image tokens and their delimiters; texts use the other ids.
IMAGE, VIDEO, BEGIN, END = 1, 2, 3, 4
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 5,
    "pad_token_id": 0,
    # Predictions far from uniform, so that a missing or misplaced prompt changes them.
    "initializer_range": 0.3,
}
M_ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}


def qwen3():
    return Qwen3ForCausalLM(Qwen3Config(**TEXT))


def llama():
    return LlamaForCausalLM(LlamaConfig(**TEXT))


def gemma3():
    """Windows of six tokens: shorter than prompts and completions."""
    return Gemma3ForCausalLM(Gemma3TextConfig(**TEXT, sliding_window=6, layer_types=_LAYERS))


_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]


def qwen3_next():
    """Two layers in three carry a recurrent state instead of keys and values."""
    layers = ["linear_attention", "full_attention", "linear_attention"]
    return Qwen3NextForCausalLM(
        Qwen3NextConfig(
            **TEXT,
            layer_types=layers,
            num_experts=2,
            num_experts_per_tok=1,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
            linear_num_key_heads=2,
            linear_num_value_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
        )
    )


def qwen3_vl():
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "patch_size": 4,
        "out_hidden_size": 32,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    config = Qwen3VLConfig(
        text_config=TEXT | {"rope_parameters": M_ROPE | {"mrope_interleaved": True}},
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=BEGIN,
        vision_end_token_id=END,
    )
    return Qwen3VLForConditionalGeneration(config)


def qwen2_5_vl():
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "patch_size": 4,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [1],
        "window_size": 16,
    }
    text = {name: value for name, value in TEXT.items() if name != "head_dim"}
    sections = {"rope_parameters": M_ROPE | {"mrope_section": [2, 1, 1]}}
    config = Qwen2_5_VLConfig(
        text_config=text | sections,
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=BEGIN,
        vision_end_token_id=END,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def gemma3_vl(text=TEXT, image=IMAGE, begin=BEGIN, end=END):
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    config = Gemma3Config(
        text_config=text | {"sliding_window": 6, "layer_types": _LAYERS},
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_id=image,
        image_token_index=image,
        boi_token_index=begin,
        eoi_token_index=end,
    )
    return Gemma3ForConditionalGeneration(config)


TEXT_MODELS = {"qwen3": qwen3, "llama": llama, "gemma3": gemma3}
IMAGE_MODELS = {"qwen3_vl": qwen3_vl, "qwen2_5_vl": qwen2_5_vl, "gemma3_vl": gemma3_vl}
HYBRID_MODELS = {"qwen3_next": qwen3_next}


def make(name: str, seed: int = 0):
    torch.manual_seed(seed)
    return (TEXT_MODELS | IMAGE_MODELS | HYBRID_MODELS)[name]().eval()


def save_text_model(folder: Path) -> str:
    """Save a text-only model with the shipped policy's tokenizer; returns the folder."""
    tokenizer = AutoTokenizer.from_pretrained(policy_path())
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)  # independent of the order of tests
        Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config_file = folder / "tokenizer_config.json"
    settings = json.loads(config_file.read_text())
    settings.pop("processor_class", None)  # a tokenizer, not part of a processor
    config_file.write_text(json.dumps(settings))
    return str(folder)


def as_text(row):
    """A problem of the figures task as text, with the printed numbers in the question."""
    numbers = " ".join(str(number) for number in (row["start"], *row["labels"]))
    return {"prompt": [{"role": "user", "content": f"{row['prompt'][0]['content']} {numbers}"}]}
