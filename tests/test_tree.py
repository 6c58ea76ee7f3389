"""The layout of prefix trees against plain loops over requests."""

import random
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cepo.fast.tree import shared_prefixes, tree_of, trees_of, two_contexts
from cepo.fast.tree_attention import TreeMask
from cepo.scoring.requests import Prompt, Request, length_of

SEEDS = st.integers(0, 10**6)


def some_requests(seed):
    """Prompts of few distinct tokens, each with one to three contexts and up to four completions, some empty."""
    draw = random.Random(seed)

    def words(low, high):
        return tuple(draw.randrange(3) for _ in range(draw.randint(low, high)))

    prompts, requests = [], []
    for index in range(draw.randint(1, 3)):
        body, header = words(1, 5), words(1, 3)
        prompts.append(Prompt(body + header))
        contexts = {body + words(0, 3) + header for _ in range(draw.randint(1, 3))}
        # Hashable requests are distinct.
        requests += {Request(index, context, words(0, 4)): None for context in sorted(contexts) for _ in range(4)}
    draw.shuffle(requests)
    return prompts, requests


def paths_of(tree):
    """For each request the positions of its tokens in the row: those of its ancestors, then its own."""
    leaves = range(len(tree.nodes) - len(tree.requests), len(tree.nodes))
    return [
        [place for index in [*tree.ancestors(tree.nodes[leaf].parent), leaf] for place in tree.ranges[index]]
        for leaf in leaves
    ]


@settings(max_examples=200)
@given(SEEDS)
def test_each_path_is_its_request(seed):
    prompts, requests = some_requests(seed)
    prefixes = shared_prefixes(prompts, requests)
    kept = [request for request in requests if request.prompt in prefixes]
    if not kept:
        return
    tree = tree_of(kept, prefixes)
    own = tree.first_leaf
    for request, path in zip(kept, paths_of(tree), strict=True):
        whole = request.context + request.completion
        length = len(request.completion)
        assert tuple(tree.ids[place] for place in path) == (whole[:-1] if length else request.context[:-1])
        # The log-probs of a completion are read, one request after the other, after the inner nodes.
        assert path[len(path) - length :] == list(range(own, own + length))
        assert tree.labels[own - tree.first_leaf :][:length] == request.completion
        own += length
    assert own == len(tree.ids)
    # Each prefix and each rest of a context is there once.
    contexts = {(request.prompt, request.context) for request in kept}
    inner = sum(len(prefixes[prompt]) for prompt in prefixes)
    assert tree.first_leaf == inner + sum(len(context) - 1 - len(prefixes[prompt]) for prompt, context in contexts)


@settings(max_examples=200)
@given(SEEDS, st.sampled_from([0, 64]))
def test_tokens_attend_to_their_ancestors(seed, padding):
    """The rows of attention, with their masks, against the paths; every token has one result; positions count on."""
    prompts, requests = some_requests(seed)
    prefixes = shared_prefixes(prompts, requests)
    kept = [request for request in requests if request.prompt in prefixes]
    if not kept:
        return
    tree = tree_of(kept, prefixes)
    window = random.Random(seed).choice([None, 2, 4])
    expected, depths = {}, {}
    for node, places in zip(tree.nodes, tree.ranges, strict=True):
        before = [place for index in tree.ancestors(node.parent) for place in tree.ranges[index]]
        for count, place in enumerate(places):
            seen = [*before, *places[: count + 1]]
            expected[place] = seen if window is None else seen[-window:]
            depths[place] = len(seen) - 1
    with patch("cepo.fast.tree._PADDING", padding):
        mask = TreeMask(tree, torch.device("cpu"))
    results = []  # of each row of attention, in the order of `back`
    for family, (places, longest) in enumerate(mask.families):
        seen = mask.mask(family, window)
        if seen is None:
            seen = torch.ones(longest, longest, dtype=torch.bool).tril()[None, None]
        width = places.shape[1]
        for row in places.tolist():
            for query in range(longest):
                results.append([row[key] for key in range(width) if seen[0, 0, query, key]])
    assert {place: results[index] for place, index in enumerate(mask.back.tolist())} == expected
    roots, distances = tree.continued()
    found = [len(tree.nodes[root].tokens) + distance for root, distance in zip(roots, distances, strict=True)]
    assert found == [depths[place] for place in range(len(tree.ids) - len(found), len(tree.ids))]


@settings(max_examples=200)
@given(SEEDS, st.integers(1, 60))
def test_trees_fit_and_have_all_requests(seed, max_tokens):
    prompts, requests = some_requests(seed)
    prefixes = shared_prefixes(prompts, requests)
    kept = [request for request in requests if request.prompt in prefixes]
    trees = list(trees_of(kept, prefixes, max_tokens))
    assert sorted(hash(request) for tree in trees for request in tree.requests) == sorted(map(hash, kept))
    assert all(len(tree.ids) <= max_tokens or len(tree.requests) == 1 for tree in trees)
    if sum(len(tree.ids) for tree in trees) <= max_tokens:
        assert len(trees) <= 1


@pytest.mark.parametrize(
    ("images_end", "contexts", "length"),
    [
        (0, [(1, 2, 3)], 2),
        (0, [(1, 2, 3), (1, 2, 4, 3)], 2),
        (0, [(1, 2, 3), (4, 2, 3)], None),
        (0, [(1,)], None),
        (1, [(1, 2, 3)], 2),
        (2, [(1, 2, 3)], None),  # the image reaches to the end of the prefix
        (None, [(1, 2, 3)], None),
    ],
)
def test_shared_prefixes(images_end, contexts, length):
    prompts = [Prompt(contexts[0], images_end=images_end)]
    found = shared_prefixes(prompts, [Request(0, context, (7,)) for context in contexts])
    assert found == ({} if length is None else {0: contexts[0][:length]})


def test_two_contexts_are_of_one_prompt():
    one, other = Request(1, (1, 2), (3,)), Request(1, (1, 4), (3,))
    assert two_contexts([one, Request(0, (1, 4), (3,)), other]) == [one, other]
    assert two_contexts([one, Request(1, (1, 2), (5,))]) == [one]
    assert two_contexts([]) == []


@settings(max_examples=200)
@given(SEEDS, st.integers(1, 40))
def test_a_tree_never_costs_more_than_whole_rows(seed, times):
    """Tokens, and pairs of a query and a key, padding of both included; so prompts are shared wherever they can be."""
    prompts, requests = some_requests(seed)
    requests = [Request(r.prompt, r.context, r.completion * times) for r in requests]
    prefixes = shared_prefixes(prompts, requests)
    kept = [request for request in requests if request.prompt in prefixes]
    if not kept:
        return
    tree = tree_of(kept, prefixes)
    longest = max(map(length_of, kept))
    assert len(tree.ids) < len(kept) * longest
    assert TreeMask(tree, torch.device("cpu")).pairs <= len(kept) * longest**2
