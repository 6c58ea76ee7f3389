"""Prompts, requests, and batches of requests. Independent of models.

Dimensions: P prompt tokens.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..references.groups import Ids

# Model inputs with one number per token, beside the token ids.
TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")


@dataclass(frozen=True)
class Prompt:
    """A prompt as the student saw it.

    Attributes:
        ids: P token ids, images expanded to their tokens.
        images: Image inputs of the model, from the processor; empty without images.
        token_types: Inputs of the model with one number per token, each (P,).
        images_end: Number of tokens up to the end of the last image; None if the images could not be located.
    """

    ids: Ids
    images: dict[str, Tensor] = field(default_factory=dict)
    token_types: dict[str, Tensor] = field(default_factory=dict)
    images_end: int | None = 0


def end_of_images(ids: Ids, token_types: Iterable[Tensor], image_token: int | None) -> int | None:
    """Number of tokens up to the end of the last image; None if no image is found.

    Args:
        ids: P token ids.
        token_types: Token types, each (P,), non-zero at images.
        image_token: Id of the image token, if the model has one.
    """
    shown = torch.tensor([token == image_token for token in ids])
    for types in token_types:
        shown |= types.cpu() != 0
    return int(shown.nonzero().max()) + 1 if shown.any() else None


def text_length(prompt: Prompt) -> int:
    """Number of text tokens of a prompt, by its token types."""
    if not prompt.images or not prompt.token_types:
        return len(prompt.ids)
    shown = torch.stack([types.cpu() != 0 for types in prompt.token_types.values()]).any(0)
    return len(prompt.ids) - int(shown.sum())


@dataclass(frozen=True)
class Request:
    """One completion to score after one prompt in one context. Hashable.

    Attributes:
        prompt: Index of the prompt.
        context: Token ids of the prompt in this context, the hint included; images are those of the prompt.
        completion: Token ids of the completion, as sampled.
    """

    prompt: int
    context: Ids
    completion: Ids


def batches_of(items: Sequence[Any], length: Callable[[Any], int], max_tokens: int) -> Iterator[Sequence[Any]]:
    """Split items, sorted by length, into batches of at most `max_tokens`, padding included; one item always fits."""
    start = 0
    for end, item in enumerate(items):
        if end > start and (end + 1 - start) * length(item) > max_tokens:
            yield items[start:end]
            start = end
    if items:
        yield items[start:]


def common_length(sequences: Collection[Ids] | Collection[str]) -> int:
    """Length of the common prefix of all sequences of tokens or characters."""
    # The first and last sequence in lexicographic order differ earliest.
    first, last = min(sequences), max(sequences)
    return next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))


def length_of(request: Request) -> int:
    """Tokens of a request."""
    return len(request.context) + len(request.completion)


def spare_request(prompts: Sequence[Prompt]) -> Request:
    """The shortest possible request of the first prompt."""
    return Request(0, prompts[0].ids, prompts[0].ids[-1:])


def distinct_prompts(prompts: Sequence[Sequence[int]], same: Callable[[int, int], bool]) -> tuple[list[int], list[int]]:
    """The distinct prompts among rows.

    Args:
        prompts: Token ids of each row's prompt.
        same: (row, row) -> whether the images of two rows are equal.

    Returns:
        For each of the U distinct prompts its first row, and for each row the index of its prompt.
    """
    known: dict[tuple[int, ...], list[int]] = {}
    firsts: list[int] = []
    owners: list[int] = []
    for row, tokens in enumerate(prompts):
        alike = known.setdefault(tuple(tokens), [])
        owner = next((index for index in alike if same(firsts[index], row)), None)
        if owner is None:
            owner = len(firsts)
            firsts.append(row)
            alike.append(owner)
        owners.append(owner)
    return firsts, owners
