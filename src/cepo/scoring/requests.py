"""What is scored: prompts, requests, and how these are cut into passes. No model is needed.

Dimensions: P prompt tokens.
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..references.groups import Ids

# Companions of the token ids, one number per token, that some models take.
TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")


@dataclass(frozen=True)
class Prompt:
    """A prompt as the student read it.

    Attributes:
        ids: P token ids, images expanded to their tokens.
        images: What the processor made of its images, as the model takes it; empty without images.
        token_types: Per-token companions of the ids that the model takes, each (P,).
        images_end: How many tokens it takes until all images are past; None if they could not be found.
    """

    ids: Ids
    images: dict[str, Tensor] = field(default_factory=dict)
    token_types: dict[str, Tensor] = field(default_factory=dict)
    images_end: int | None = 0


def end_of_images(ids: Ids, token_types: Iterable[Tensor], image_token: int | None) -> int | None:
    """How many tokens of a prompt with images it takes until all of them are past; None if they are not found.

    Args:
        ids: P token ids.
        token_types: Per-token companions of the ids, each (P,), not 0 at images.
        image_token: The token that stands for a part of an image, if the model has one.
    """
    shown = torch.tensor([token == image_token for token in ids])
    for types in token_types:
        shown |= types.cpu() != 0
    return int(shown.nonzero().max()) + 1 if shown.any() else None


def text_length(prompt: Prompt) -> int:
    """How many tokens of a prompt are no part of an image, as far as its token types tell."""
    if not prompt.images or not prompt.token_types:
        return len(prompt.ids)
    shown = torch.stack([types.cpu() != 0 for types in prompt.token_types.values()]).any(0)
    return len(prompt.ids) - int(shown.sum())


@dataclass(frozen=True)
class Request:
    """One completion, read after one prompt in one context. Equal requests are equal, and hash so.

    Attributes:
        prompt: Index of the prompt.
        context: Token ids of the prompt in this context, a hint included; the images as in the prompt.
        completion: Token ids of the completion, as sampled.
    """

    prompt: int
    context: Ids
    completion: Ids


@dataclass(frozen=True)
class Tree:
    """Prompts whose caches are held together, the contexts that branch from them, the completions that branch from
    those.

    Attributes:
        prompts: Index and shared prefix of each prompt.
        stems: Row in `prompts` and tokens that follow there, the same number for all: no padding may stand between
            cached tokens, for a sliding window counts it.
        leaves: For each pass: row in `stems`, what is left of the context, and the request.
    """

    prompts: list[tuple[int, Ids]]
    stems: list[tuple[int, Ids]]
    leaves: list[list[tuple[int, Ids, Request]]]


def batches_of(items: Sequence[Any], length: Callable[[Any], int], max_tokens: int) -> Iterator[Sequence[Any]]:
    """Cuts items, sorted by length, into batches of at most `max_tokens` with their padding; one item always fits."""
    start = 0
    for end, item in enumerate(items):
        if end > start and (end + 1 - start) * length(item) > max_tokens:
            yield items[start:end]
            start = end
    if items:
        yield items[start:]


def common_length(sequences: Collection[Ids] | Collection[str]) -> int:
    """How many leading tokens, or characters, all sequences have in common."""
    # The first and the last in lexicographic order differ earliest.
    first, last = min(sequences), max(sequences)
    return next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))


def shared_prefixes(prompts: Sequence[Prompt], requests: Sequence[Request]) -> dict[int, Ids]:
    """The prefix that all contexts of a prompt share, for every prompt that has one with all of its images."""
    contexts: dict[int, set[Ids]] = {}
    for request in requests:
        contexts.setdefault(request.prompt, set()).add(request.context)
    prefixes = {}
    for index, members in contexts.items():
        # Two tokens are left to each context: one for its stem, one from which the completion is predicted.
        length = min(common_length(members), min(map(len, members)) - 2)
        images_end = prompts[index].images_end
        # One text token after the images: from its position on, positions count by one.
        if length >= 1 and images_end is not None and length > images_end:
            prefixes[index] = next(iter(members))[:length]
    return prefixes


def prefix_cache_unsupported_reason(prompts: Sequence[Prompt], requests: Sequence[Request]) -> str | None:
    """Why all but the last token of these contexts cannot be run for their completions to go on from; None if they can.

    The last token that is run has to be text: from its position on, positions count by one.
    """
    if any(len(request.context) < 2 for request in requests):
        return "a prompt has a single token"
    ends = ((prompts[request.prompt].images_end, len(request.context) - 1) for request in requests)
    if any(images_end is None or images_end >= length for images_end, length in ends):
        return "images reach to the end of its prompts"
    return None


def trees_of(requests: Sequence[Request], prefixes: dict[int, Ids], max_tokens: int) -> Iterator[Tree]:
    """Prompts of similar length together, as many as `max_tokens` of cache allow."""
    by_prompt: dict[int, list[Request]] = {}
    for request in requests:
        by_prompt.setdefault(request.prompt, []).append(request)
    indices = sorted(by_prompt, key=lambda index: len(prefixes[index]))

    def contexts_of(index: int) -> list[Ids]:
        return list(dict.fromkeys(request.context for request in by_prompt[index]))

    start = held = 0
    for end, index in enumerate(indices):
        rows = 1 + len(contexts_of(index))
        if end > start and (held + rows) * max(map(len, contexts_of(index))) > max_tokens:
            yield _tree(indices[start:end], by_prompt, prefixes, max_tokens)
            start, held = end, 0
        held += rows
    if indices:
        yield _tree(indices[start:], by_prompt, prefixes, max_tokens)


def _tree(
    indices: Sequence[int], by_prompt: dict[int, list[Request]], prefixes: dict[int, Ids], max_tokens: int
) -> Tree:
    prompts = [(index, prefixes[index]) for index in indices]
    rests = {
        (index, request.context): request.context[len(prefixes[index]) :]
        for index in indices
        for request in by_prompt[index]
    }
    stem_length = min(map(len, rests.values())) - 1
    rows = {index: row for row, index in enumerate(indices)}
    stems = [(rows[index], rest[:stem_length]) for (index, _), rest in rests.items()]
    stem_of = {key: row for row, key in enumerate(rests)}
    leaves = [
        (stem_of[index, request.context], rests[index, request.context][stem_length:], request)
        for index in indices
        for request in by_prompt[index]
    ]
    leaves.sort(key=_leaf_length)
    cached = max(len(prefix) for _, prefix in prompts) + stem_length
    batches = batches_of(leaves, lambda leaf: cached + _leaf_length(leaf), max_tokens)
    return Tree(prompts, stems, [list(batch) for batch in batches])


def _leaf_length(leaf: tuple[int, Ids, Request]) -> int:
    _, rest, request = leaf
    return len(rest) + len(request.completion)


def length_of(request: Request) -> int:
    return len(request.context) + len(request.completion)


def two_contexts(requests: Sequence[Request]) -> list[Request]:
    """A request, and another of the same prompt in another context if there is one."""
    for first, second in itertools.pairwise(sorted(requests, key=lambda request: request.prompt)):
        if first.prompt == second.prompt and first.context != second.context:
            return [first, second]
    return list(requests[:1])


def spare_request(prompts: Sequence[Prompt]) -> Request:
    """The shortest request there is, of the first prompt."""
    return Request(0, prompts[0].ids, prompts[0].ids[-1:])


def distinct_prompts(prompts: Sequence[list[int]], same: Callable[[int, int], bool]) -> tuple[list[int], list[int]]:
    """Which rows have the same prompt.

    Args:
        prompts: Token ids of each row's.
        same: Whether the images of two rows are the same.

    Returns:
        For each of the U prompts the first row that has it, and for each row the index of its prompt.
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
