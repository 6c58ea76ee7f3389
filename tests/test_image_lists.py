"""Processors that return lists of tensors: sampling runs each distinct prompt once, with the same samples."""

from functools import wraps

import pytest
import torch
from datasets import Dataset, Image
from PIL import Image as Pictures
from PIL import ImageDraw
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    Gemma3ImageProcessor,
    Gemma3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
)

from cepo import CEPOConfig, CEPOTrainer, policy_path
from cepo.data.sampling import _GENERATORS, Sampling, conversation_of, sample, seeded
from tests.support import tiny_models
from tests.support.training import QUICK, letters

TEXT = {
    **{name: value for name, value in tiny_models.TEXT.items() if name not in ("vocab_size", "eos_token_id")},
    "vocab_size": 512,
    "eos_token_id": 2,
}
VISION = {
    **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"image_size": 16, "patch_size": 4},
}
# Tokens of the shipped policy for the borders of an image and its parts.
BEGIN, END, PART = 3, 4, 5
TOKEN = {"image_token_id": PART, "image_token_index": PART}
GRID = [[16, 32], [32, 16], [32, 32]]
LLAVA = {
    **{"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    "image_token": "<|image_pad|>",
}
TURNS = (
    "{% for turn in messages %}{% for part in turn.content %}{% if part.type == 'image' %}PLACE"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
)


def llava(tokenizer):
    """One tensor per image."""
    config = LlavaConfig(vision_config=CLIPVisionConfig(**VISION), text_config=LlamaConfig(**TEXT), **TOKEN)
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = LlavaProcessor(images, tokenizer, **_parts("<|image_pad|>"), **LLAVA)
    return LlavaForConditionalGeneration(config), processor


def llava_next(tokenizer):
    """One tensor of tiles per image, and its size as a tuple."""
    parts = {"vision_config": CLIPVisionConfig(**VISION), "text_config": LlamaConfig(**TEXT)}
    config = LlavaNextConfig(**parts, **TOKEN, image_grid_pinpoints=GRID)
    images = LlavaNextImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_grid_pinpoints=GRID
    )
    processor = LlavaNextProcessor(images, tokenizer, **_parts("<|image_pad|>"), **LLAVA)
    return LlavaNextForConditionalGeneration(config), processor


def gemma3(tokenizer):
    """One tensor per image, and token types of different lengths."""
    images = Gemma3ImageProcessor(size={"height": 16, "width": 16})
    processor = Gemma3Processor(images, tokenizer, **_parts("<|vision_start|>"), image_seq_length=4)
    return tiny_models.gemma3_vl(TEXT, PART, BEGIN, END), processor


def _parts(place):
    return {"chat_template": TURNS.replace("PLACE", place)}


@pytest.fixture(params=[llava, llava_next, gemma3])
def family(request):
    """Builds a small model with random weights, and the processor of its family."""
    tokens = {"image_token": "<|image_pad|>", "boi_token": "<|vision_start|>", "eoi_token": "<|vision_end|>"}

    def build():
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(policy_path(), padding_side="left", extra_special_tokens=tokens)
        model, processor = request.param(tokenizer)
        return model.eval(), processor

    return build


def drawings():
    """Four problems, two of them with the same text and different images."""
    images = []
    for number, size in enumerate([(20, 30), (20, 30), (60, 30), (30, 30)]):
        drawn = Pictures.new("RGB", size, "white")
        ImageDraw.Draw(drawn).line([(2, 2 + 5 * number), (18, 28 - 5 * number)], fill="black", width=4)
        images.append(drawn)
    prompts = [[{"role": "user", "content": text}] for text in ("1 2", "1 2", "3 4 5 6", "7")]
    return Dataset.from_dict({"prompt": prompts, "solution": ["1"] * 4, "image": images}).cast_column("image", Image())


def test_training_runs_each_distinct_prompt_once(tmp_path, family, monkeypatch):
    found = {}
    for shared in ("never", "auto"):
        model, processor = family()
        fields, rows, sampled = [], [], []
        tokenize, generate = CEPOTrainer._tokenize_prompts, CEPOTrainer._generate_single_turn

        def tokenized(self, prompts, tokenize=tokenize, fields=fields):
            result = tokenize(self, prompts)
            fields.append(result[2])
            return result

        def generated(self, *args, generate=generate, rows=rows, sampled=sampled, **kwargs):
            watched = self.model.base_model.language_model.register_forward_pre_hook(
                lambda _, args, inputs: rows.append(inputs["inputs_embeds"].shape[:2]), with_kwargs=True
            )
            result = generate(self, *args, **kwargs)
            watched.remove()
            sampled.append(result[0])
            return result

        monkeypatch.setattr(CEPOTrainer, "_tokenize_prompts", tokenized)
        monkeypatch.setattr(CEPOTrainer, "_generate_single_turn", generated)
        options = {"method": "grpo", "shared_prompt_update": shared, "learning_rate": 0.0, "seed": 1}
        args = CEPOConfig(str(tmp_path), **(QUICK | options))
        trainer = CEPOTrainer(model, letters, args, drawings(), processing_class=processor)
        trainer.train()
        monkeypatch.undo()
        assert all(isinstance(one["pixel_values"], list) for one in fields)
        found[shared] = sampled, [count for count, width in rows if width > 1], trainer._sharing.generator.shares
    assert found["auto"][0] == found["never"][0]
    assert found["never"][1:] == ([8, 8], None)
    assert found["auto"][1:] == ([8, 2, 2], True)  # whole rows and the trial, from then on each prompt once


def test_prompts_with_other_images_are_distinct(tmp_path, family):
    """Equal token ids do not make equal prompts."""
    model, processor = family()
    args = CEPOConfig(str(tmp_path), method="grpo", **QUICK)
    trainer = CEPOTrainer(model, letters, args, drawings(), processing_class=processor)
    rows = drawings().select([0, 0, 1, 1])
    prompts = [conversation_of(row, processor) for row in rows]
    ids, images, fields = trainer._tokenize_prompts(prompts)
    shared = trainer._sharing._shared_prompts(ids, images, fields)
    assert ids[0] == ids[2]
    assert (shared.firsts, shared.owners) == ([0, 2], [0, 0, 1, 1])
    assert {name: len(values) for name, values in shared.images.items()} == dict.fromkeys(shared.images, 2)
    assert all(isinstance(values, torch.Tensor) for values in shared.images.values())
    trainer.model.to("meta")  # as another device
    assert {v.device.type for v in trainer._sharing._shared_prompts(ids, images, fields).images.values()} == {"meta"}
    # Tiles of several images in one field, which TRL assigns to images after sampling.
    tiles = {"pixel_values": [torch.zeros(3, 16, 16)] * 9}
    assert trainer._sharing._shared_prompts(ids, images, tiles) is None
    ragged = {"pixel_values": [torch.zeros(3, 16, 16 + row) for row in range(4)]}
    assert trainer._sharing._shared_prompts(ids, images, ragged) is None


class TakesLists(LlavaForConditionalGeneration):
    """A model that takes lists of images."""

    @wraps(LlavaForConditionalGeneration.forward)  # its signature is looked at
    def forward(self, pixel_values=None, **inputs):
        assert pixel_values is None or isinstance(pixel_values, list)
        return super().forward(pixel_values=None if pixel_values is None else torch.stack(pixel_values), **inputs)


def test_sample_runs_each_distinct_prompt_once(family, monkeypatch):
    model, processor = family()
    lists = isinstance(model, LlavaForConditionalGeneration)
    if lists:
        model.__class__ = TakesLists
        call = type(processor).__call__

        def with_lists(self, *args, **kwargs):
            output = call(self, *args, **kwargs)
            output["pixel_values"] = list(output["pixel_values"])
            return output

        monkeypatch.setattr(type(processor), "__call__", with_lists)
    rows = list(drawings())
    once = [conversation_of(row, processor) for row in rows]
    shared = [conversation for conversation in once for _ in range(4)]
    apart = [conversation_of(row, processor) for row in rows for _ in range(4)]  # objects of their own: not shared

    def sampled(conversations):
        with seeded(0):
            return sample(model, processor, conversations, Sampling(8))

    expected = sampled(apart)
    assert _GENERATORS[model].shares is None
    assert sampled(shared) == expected
    assert _GENERATORS[model].shares is True
    assert sampled(shared) == expected  # after the trial
