"""Prompts, contexts and completions as trees with shared prefixes. Independent of models."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..references.groups import Ids
from ..scoring.requests import Prompt, Request, batches_of, common_length


@dataclass(frozen=True)
class Tree:
    """Prompts cached together, their contexts (stems), and the completions of these (leaves).

    Attributes:
        prompts: Index and shared prefix of each prompt.
        stems: Row in `prompts`, and the tokens after its prefix. All stems have the same length, since a sliding window
            would count padding between cached tokens.
        leaves: For each pass: row in `stems`, the rest of the context, and the request.
    """

    prompts: list[tuple[int, Ids]]
    stems: list[tuple[int, Ids]]
    leaves: list[list[tuple[int, Ids, Request]]]


def shared_prefixes(prompts: Sequence[Prompt], requests: Sequence[Request]) -> dict[int, Ids]:
    """The common prefix of each prompt's contexts, for prompts whose prefix includes all images."""
    contexts: dict[int, set[Ids]] = {}
    for request in requests:
        contexts.setdefault(request.prompt, set()).add(request.context)
    prefixes = {}
    for index, members in contexts.items():
        # Each context keeps two tokens: one for its stem, one from which the completion is predicted.
        length = min(common_length(members), min(map(len, members)) - 2)
        images_end = prompts[index].images_end
        # One text token after the images: positions after it increase by one.
        if length >= 1 and images_end is not None and length > images_end:
            prefixes[index] = next(iter(members))[:length]
    return prefixes


def prefix_cache_unsupported_reason(prompts: Sequence[Prompt], requests: Sequence[Request]) -> str | None:
    """Why the contexts without their last token cannot be cached, or None.

    The last cached token must be text: positions after it increase by one.
    """
    if any(len(request.context) < 2 for request in requests):
        return "a prompt has a single token"
    ends = ((prompts[request.prompt].images_end, len(request.context) - 1) for request in requests)
    if any(images_end is None or images_end >= length for images_end, length in ends):
        return "images reach to the end of its prompts"
    return None


def trees_of(requests: Sequence[Request], prefixes: dict[int, Ids], max_tokens: int) -> Iterator[Tree]:
    """Trees of prompts of similar length, with at most `max_tokens` cached tokens each."""
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


def two_contexts(requests: Sequence[Request]) -> list[Request]:
    """Two requests of one prompt in different contexts; a single request if there are none."""
    for first, second in itertools.pairwise(sorted(requests, key=lambda request: request.prompt)):
        if first.prompt == second.prompt and first.context != second.context:
            return [first, second]
    return list(requests[:1])
