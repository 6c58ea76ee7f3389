"""Requests as a prefix tree, and the tree as one row of tokens. Pure functions on token ids.

    [prompt | hint+ | hint- | rollout 1 | rollout 2 | ...]

Prompts (roots) come first, then the contexts of prompts with several (stems), then the completions (leaves) in the
order of their requests. A leaf starts with the last token of its context, which predicts the first token of the
completion, and ends before the completion's last token: its positions are those that predict the completion.

Dimensions: n tokens of the row.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from ..references.groups import Ids
from ..scoring.requests import Prompt, Request, common_length

_PADDING = 64  # tokens that cost less than another call of the attention kernel


@dataclass(frozen=True)
class Node:
    """Tokens that continue those of the node `parent`. A root has no parent, and the images of its prompt."""

    tokens: Ids
    prompt: int
    parent: int | None = None


@dataclass(frozen=True)
class Tree:
    """A prefix tree of requests.

    Attributes:
        nodes: Roots, stems and leaves; parents come before their children.
        requests: The requests, one for each of the last nodes.
    """

    nodes: list[Node]
    requests: list[Request]

    @cached_property
    def ids(self) -> Ids:
        """The row's n token ids."""
        return tuple(itertools.chain.from_iterable(node.tokens for node in self.nodes))

    @cached_property
    def ranges(self) -> list[range]:
        """Positions of each node in the row."""
        ends = itertools.accumulate(len(node.tokens) for node in self.nodes)
        return [range(end - len(node.tokens), end) for node, end in zip(self.nodes, ends, strict=True)]

    @cached_property
    def roots(self) -> list[Node]:
        return [node for node in self.nodes if node.parent is None]

    def ancestors(self, parent: int | None) -> list[int]:
        """A parent and its ancestors, from the root on."""
        return [] if parent is None else [*self.ancestors(self.nodes[parent].parent), parent]

    @property
    def first_leaf(self) -> int:
        """Number of tokens before the leaves. The tokens of the leaves predict `labels`."""
        return len(self.ids) - len(self.labels)

    @cached_property
    def labels(self) -> Ids:
        """The tokens of all completions, one request after the other."""
        return tuple(itertools.chain.from_iterable(request.completion for request in self.requests))

    def continued(self) -> tuple[list[int], list[int]]:
        """For each token after the roots: index of its root, and number of tokens between the root and it."""
        roots: list[int] = []
        distances: list[int] = []
        for node in self.nodes[len(self.roots) :]:
            first, *rest = self.ancestors(node.parent)
            before = sum(len(self.nodes[index].tokens) for index in rest)
            roots += [first] * len(node.tokens)
            distances += range(before, before + len(node.tokens))
        return roots, distances

    def families(self) -> Iterator[tuple[list[int], list[range]]]:
        """Positions of a path from the root, and those of children at its end, whose attention is computed together.

        A token attends to its node's path and, in its node, to itself and the tokens before it. Roots have no path.
        Children of a parent are apart where their lengths, and so the padding, differ much.
        """
        children: dict[int | None, list[range]] = {}
        for node, places in zip(self.nodes, self.ranges, strict=True):
            if places:
                children.setdefault(node.parent, []).append(places)
        for parent, members in children.items():
            path = [place for index in self.ancestors(parent) for place in self.ranges[index]]
            together: list[range] = []
            for child in sorted(members, key=len, reverse=True):
                if together and len(together[0]) - len(child) > max(_PADDING, len(together[0]) // 4):
                    yield path, together
                    together = []
                together.append(child)
            yield path, together


def shared_prefixes(prompts: Sequence[Prompt], requests: Sequence[Request]) -> dict[int, Ids]:
    """The root of each prompt: the common prefix of its contexts, without their last tokens.

    Prompts whose prefix is empty or does not end with text after the last image are left out: positions after the root
    increase by one.
    """
    contexts: dict[int, set[Ids]] = {}
    for request in requests:
        contexts.setdefault(request.prompt, set()).add(request.context)
    prefixes = {}
    for index, members in contexts.items():
        length = min(common_length(members), min(map(len, members)) - 1)
        images_end = prompts[index].images_end
        if images_end is not None and length > images_end:
            prefixes[index] = next(iter(members))[:length]
    return prefixes


def tree_of(requests: Sequence[Request], prefixes: dict[int, Ids]) -> Tree:
    """The tree of some requests.

    Args:
        requests: The requests.
        prefixes: See `shared_prefixes`.
    """
    prompts = list(dict.fromkeys(request.prompt for request in requests))
    nodes = [Node(prefixes[prompt], prompt) for prompt in prompts]
    roots = {prompt: index for index, prompt in enumerate(prompts)}
    parents = {}
    for prompt, context in dict.fromkeys((request.prompt, request.context) for request in requests):
        parents[prompt, context] = roots[prompt]
        if stem := context[len(prefixes[prompt]) : -1]:
            parents[prompt, context] = len(nodes)
            nodes.append(Node(stem, prompt, roots[prompt]))
    for request in requests:
        predicting = (request.context[-1:] + request.completion)[: len(request.completion)]
        nodes.append(Node(predicting, request.prompt, parents[request.prompt, request.context]))
    return Tree(nodes, list(requests))


def trees_of(requests: Sequence[Request], prefixes: dict[int, Ids], max_tokens: int) -> Iterator[Tree]:
    """Trees of at most `max_tokens` tokens, the requests of a prompt together; one request always fits."""
    part: list[Request] = []
    known: set[int | tuple[int, Ids]] = set()
    held = 0
    for request in sorted(requests, key=lambda request: (request.prompt, request.context)):
        new = _new_tokens(request, prefixes[request.prompt], known)
        if part and held + new > max_tokens:
            yield tree_of(part, prefixes)
            part, known, held = [], set(), 0
            new = _new_tokens(request, prefixes[request.prompt], known)
        part.append(request)
        known |= {request.prompt, (request.prompt, request.context)}
        held += new
    if part:
        yield tree_of(part, prefixes)


def _new_tokens(request: Request, prefix: Ids, known: set[int | tuple[int, Ids]]) -> int:
    """Tokens that a request adds to a tree that has the prompts and contexts of `known`."""
    root = 0 if request.prompt in known else len(prefix)
    stem = 0 if (request.prompt, request.context) in known else len(request.context) - 1 - len(prefix)
    return root + stem + len(request.completion)


def two_contexts(requests: Sequence[Request]) -> list[Request]:
    """Two requests of one prompt in different contexts; a single request if there are none."""
    for first, second in itertools.pairwise(sorted(requests, key=lambda request: request.prompt)):
        if first.prompt == second.prompt and first.context != second.context:
            return [first, second]
    return list(requests[:1])
