"""Random prompts, with and without images, for the models of tiny_models."""

import torch

from cepo.scoring.requests import Prompt
from tests.support.tiny_models import BEGIN, END, IMAGE, IMAGE_MODELS, TEXT_MODELS, VOCABULARY

SHAREABLE = [*TEXT_MODELS, *IMAGE_MODELS]


def words(draw, low, high):
    return tuple(draw.randrange(6, VOCABULARY) for _ in range(draw.randint(low, high)))


def image_for(name, draw):
    """Tokens and model inputs of an image; Qwen's images vary in size."""
    if name == "gemma3_vl":
        return (BEGIN, *[IMAGE] * 4, END), {"pixel_values": torch.randn(1, 3, 16, 16)}
    height, width = draw.choice([(4, 4), (4, 8), (8, 6)])
    fields = {
        "pixel_values": torch.randn(height * width, 3 * 2 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, height, width]]),
    }
    return (BEGIN, *[IMAGE] * (height * width // 4), END), fields


def prompt_for(name, draw, images):
    """Text, then images with text between them, then the question."""
    ids = words(draw, 2, 5)
    fields = []
    for _ in range(images):
        tokens, values = image_for(name, draw)
        ids += tokens + words(draw, 0, 3)
        fields.append(values)
    ids += words(draw, 3, 9)
    if name not in IMAGE_MODELS:
        return Prompt(ids)
    types = torch.tensor([int(i == IMAGE) for i in ids])
    merged = {key: torch.cat([values[key] for values in fields]) for key in fields[0]} if fields else {}
    end = int(types.nonzero().max()) + 1 if images else 0
    return Prompt(ids, merged, {"token_type_ids" if name == "gemma3_vl" else "mm_token_type_ids": types}, end)
