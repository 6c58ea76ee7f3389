"""Forward passes over prefix trees: each prompt and each context runs once for all of its completions.

A tree is one row of one pass, so gradient checkpointing, LoRA, DDP and FSDP work as for any row.

The tokens that run, and so the FLOPs, are those of a KV cache that is expanded to contexts and completions. A cache
needs a pass for each level, of which FSDP gathers all weights, and memory for the keys and values of all layers.

Dimensions: n tokens of the row, N tokens of all completions, H width of the hidden states.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..scoring.forward import FullForward, ReduceMax, ScoringModel, inputs_of, single_process
from ..scoring.requests import Prompt, Request, distinct_prompts, spare_request
from .tree import Tree, shared_prefixes, tree_of, trees_of, two_contexts
from .tree_attention import TreeMask, attend_to_trees, tree_unsupported_reason, uploaded
from .trial import products_dtype, trial_failure


def forward_for(
    model: ScoringModel,
    max_tokens: int,
    reduce_max: ReduceMax,
    prompts: Sequence[Prompt],
    requests: Sequence[Request],
    *,
    tried: bool | None,
) -> tuple[Any, str | None]:
    """The forward for a model, and the reason why it does not share prompts; None if it does.

    Args:
        model, max_tokens, reduce_max: As in `FullForward`.
        prompts, requests: Requests of the trial.
        tried: True if an earlier trial has passed; None: run a trial.
    """
    shared = TreeForward(model, max_tokens, reduce_max)
    reason = None if tried else trial_reason(shared, prompts, requests)
    return (shared if reason is None else FullForward(model, max_tokens, reduce_max)), reason


def inputs_of_tree(model: PreTrainedModel, prompts: Sequence[Prompt], tree: Tree) -> dict[str, Any]:
    """Model inputs of a tree's row.

    Args:
        model: The transformers model; see `tree_unsupported_reason`.
        prompts: The prompts, by the index in `Node.prompt`.
        tree: The tree.

    Returns:
        (1, n) `input_ids` and token types, (1, n) or (d, 1, n) `position_ids` (M-RoPE), the images of the roots, and a
        `TreeMask` as `attention_mask`.
    """
    attend_to_trees(model)
    device = model.device
    inputs = inputs_of([prompts[root.prompt] for root in tree.roots], [r.tokens for r in tree.roots], device, left=True)
    positions = model._prepare_position_ids_for_generation(inputs["input_ids"], dict(inputs))
    width = positions.shape[-1]
    places = [row * width + c for row, r in enumerate(tree.roots) for c in range(width - len(r.tokens), width)]
    index = uploaded(places, device)
    roots, distances = uploaded(tree.continued(), device)
    after = positions[..., -1].index_select(-1, roots) + 1 + distances
    before = positions.flatten(-2).index_select(-1, index)
    row = {
        "input_ids": uploaded([tree.ids], device),
        "position_ids": torch.cat([before, after], dim=-1).unsqueeze(-2),
    }
    images = None
    for name in prompts[tree.roots[0].prompt].token_types:
        types = inputs.pop(name).flatten().index_select(0, index)
        row[name] = torch.cat([types, types.new_zeros(len(roots))])[None]
        if name == "token_type_ids":  # models with this input let the tokens of an image attend to each other
            shown = row[name][0] == 1
            starts = shown & ~nn.functional.pad(shown, (1, 0))[:-1]
            images = torch.where(shown, starts.cumsum(0), -1)
    return {**inputs, **row, "attention_mask": TreeMask(tree, device, images)}


def tree_log_probs(
    model: Any, inner: PreTrainedModel, prompts: Sequence[Prompt], tree: Tree
) -> tuple[Tensor, Tensor | None]:
    """(N,) log-probs [nats] of the completions, and entropies [nats] if TRL's fused LM head computes them.

    Args:
        model: The model as training wraps it, with the fused LM head.
        inner: The transformers model inside.
        prompts, tree: See `inputs_of_tree`.
    """
    output = model(shift_labels=_labels(tree, inner), fused_lm_head=True, **inputs_of_tree(inner, prompts, tree))
    entropies = None if output.entropy is None else output.entropy[0, tree.first_leaf :]
    return output.log_probs[0, tree.first_leaf :], entropies


def _labels(tree: Tree, model: PreTrainedModel) -> Tensor:
    """(1, n) the token that each position of the row predicts, -100 before the leaves."""
    return uploaded([[-100] * tree.first_leaf + list(tree.labels)], model.device)


def tree_states(model: PreTrainedModel, prompts: Sequence[Prompt], requests: Sequence[Request]) -> Tensor:
    """(N, H) hidden states as by `hidden_states`, with each distinct context run once; see `shared_prefixes`."""
    images = [prompts[request.prompt].images for request in requests]
    firsts, owners = distinct_prompts(
        [request.context for request in requests],
        lambda one, other: all(torch.equal(images[one][name], images[other][name]) for name in images[one]),
    )
    own = [Request(owner, r.context, r.completion) for owner, r in zip(owners, requests, strict=True)]
    prompts = [prompts[requests[first].prompt] for first in firsts]
    tree = tree_of(own, shared_prefixes(prompts, own))
    output = model.base_model(use_cache=False, **inputs_of_tree(model, prompts, tree))
    return output.last_hidden_state[0, tree.first_leaf :]


@dataclass(frozen=True)
class TreeForward:
    """Runs the requests of a prompt in one row. `FullForward` runs those whose prompt cannot be shared.

    Attributes:
        model: Model for which `tree_unsupported_reason` is None.
        max_tokens: Most tokens of a pass; a prompt that is split runs again. One request always fits.
        reduce_max: As in `FullForward`.
    """

    model: ScoringModel
    max_tokens: int
    reduce_max: ReduceMax = single_process

    def log_probs(self, prompts: Sequence[Prompt], requests: Sequence[Request]) -> list[Tensor]:
        """Log-probs [nats] of each request's completion, in the order of the requests."""
        prefixes = shared_prefixes(prompts, requests)
        trees = list(trees_of([r for r in requests if r.prompt in prefixes], prefixes, self.max_tokens))
        (count,) = self.reduce_max([len(trees)])
        results: dict[Request, Tensor] = {}
        for tree in trees:
            results |= zip(tree.requests, self._pass(prompts, tree), strict=True)
        for _ in range(count - len(trees)):  # join the passes of other processes
            spare = spare_request(prompts)
            self._pass(prompts, tree_of([spare], {0: spare.context[:-1]}))
        others = [request for request in requests if request.prompt not in prefixes]
        whole = FullForward(self.model, self.max_tokens, self.reduce_max)
        results |= zip(others, whole.log_probs(prompts, others), strict=True)
        return [results[request] for request in requests]

    def _pass(self, prompts: Sequence[Prompt], tree: Tree) -> tuple[Tensor, ...]:
        inner = self.model.unwrapped
        found = self.model.log_probs(_labels(tree, inner), **inputs_of_tree(inner, prompts, tree))
        return found[0, tree.first_leaf :].split([len(request.completion) for request in tree.requests])


def trial_reason(shared: TreeForward, prompts: Sequence[Prompt], requests: Sequence[Request]) -> str | None:
    """Why a model's prompts cannot be shared: its structure, or a trial against `FullForward`; None if they can.

    The trial scores two contexts of one prompt both ways, and has to pass on every process.
    """
    reason = tree_unsupported_reason(shared.model.unwrapped)
    if reason is None:
        trial = two_contexts(requests) or [spare_request(prompts)]
        whole = FullForward(shared.model, shared.max_tokens, shared.reduce_max)
        expected, found = (torch.cat(way.log_probs(prompts, trial)) for way in (whole, shared))
        with shared.model.autocast():
            reason = trial_failure(expected, found, products_dtype(shared.model.unwrapped))
    (failed,) = shared.reduce_max([int(reason is not None)])
    return reason or ("it failed on another process" if failed else None)
