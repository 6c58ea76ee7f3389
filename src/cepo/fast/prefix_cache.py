"""Score rollouts with each prompt run once: its KV cache is expanded to contexts (r+, r-, ...), then to completions.

Only one token per completion runs twice: the last of its context, which predicts its first token.

Dimensions: n rows of a pass, P prompt tokens, S tokens that run in a pass after the cached ones.
"""

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ..references.groups import Ids
from ..scoring.forward import (
    FullForward,
    ReduceMax,
    ScoringModel,
    completions_of_rows,
    inputs_of,
    labels_of,
    padded,
    single_process,
)
from ..scoring.requests import Prompt, Request, distinct_prompts, spare_request
from .prefix_tree import Tree, shared_prefixes, trees_of, two_contexts


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
    shared = PrefixCachedForward(model, max_tokens, reduce_max)
    reason = None if tried else trial_reason(shared, prompts, requests)
    return (shared if reason is None else FullForward(model, max_tokens, reduce_max)), reason


def _fill(model: ScoringModel, cache: Cache, **inputs: Any) -> None:
    """Add tokens to a cache."""
    model.before_pass("cache")
    with model.autocast():
        model.model(**{cache_argument(model.unwrapped): cache}, use_cache=True, logits_to_keep=1, **inputs)


def positions_of(model: PreTrainedModel, inputs: dict[str, Any]) -> Tensor:
    """Position ids of a prompt, (n, P), or (d, n, P) where positions have several dimensions (M-RoPE)."""
    return model._prepare_position_ids_for_generation(inputs["input_ids"], dict(inputs))


def unsupported_reason(model: PreTrainedModel) -> str | None:
    """Why the structure of a model does not allow its cache to be expanded; None if it does."""
    if not hasattr(model, "_prepare_position_ids_for_generation"):
        return "it cannot prepare position ids"
    known = inspect.signature(model.forward).parameters
    if missing := {"position_ids", cache_argument(model), "logits_to_keep"} - known.keys():
        return f"its forward pass takes no {' or '.join(sorted(missing))}"
    others = {type(layer) for layer in DynamicCache(config=model.config).layers} - _EXPANDABLE
    if others:
        return f"its cache has layers other than keys and values: {', '.join(t.__name__ for t in others)}"
    return None


def cache_argument(model: nn.Module) -> str:
    """The name of a model's cache argument: `cache` since transformers 5.24, `past_key_values` before."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


_EXPANDABLE = {DynamicLayer, DynamicSlidingWindowLayer}


class ExpandedCache(DynamicCache):
    """Repeats rows of a cache, one layer at a time, so that only the running layer holds a copy.

    Args:
        trunk: Cache of the distinct prompts.
        rows: For each row of a pass the row of `trunk`.
    """

    def __init__(self, trunk: Cache, rows: Tensor):
        super().__init__()
        self.layers = trunk.layers
        self.rows = rows

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        layer = copy.copy(self.layers[layer_idx])
        # `batch_select_indices` would index with [], whose gradient is summed in a nondeterministic order.
        layer.keys, layer.values = (part.index_select(0, self.rows) for part in (layer.keys, layer.values))
        return layer.update(key_states, value_states, *args, **kwargs)


def branched_states(model: PreTrainedModel, prompts: Sequence[Prompt], requests: Sequence[Request]) -> Tensor:
    """`hidden_states` with each distinct context run once; see `unsupported_reason`.

    The cache holds a context without its last token, which runs with the completions, and stays in the graph.
    """
    device = model.device
    images = [prompts[request.prompt].images for request in requests]
    firsts, owners = distinct_prompts(
        [list(request.context) for request in requests],
        lambda one, other: all(torch.equal(images[one][name], images[other][name]) for name in images[one]),
    )
    rows = [prompts[requests[first].prompt] for first in firsts]
    inputs = inputs_of(rows, [requests[first].context[:-1] for first in firsts], device, left=True)
    mask, positions = inputs["attention_mask"], positions_of(model, inputs)
    cache = DynamicCache(config=model.config)
    called = cache_argument(model)
    model.base_model(**{called: cache}, use_cache=True, position_ids=positions, **inputs)
    ids, ids_mask = padded([request.context[-1:] + request.completion for request in requests], device)
    places = torch.tensor(owners, device=device)
    output = model.base_model(
        input_ids=ids,
        attention_mask=torch.cat([mask[places], ids_mask], dim=1),
        position_ids=following_positions(positions[..., -1:], places, ids),
        **{called: ExpandedCache(cache, places)},
    )
    return torch.cat(completions_of_rows(output.last_hidden_state, [1] * len(requests), requests))


@dataclass(frozen=True)
class PrefixCachedForward:
    """Runs every prompt once; contexts and completions continue its cache.

    `FullForward` scores requests whose prompt cannot be shared, because an image follows the hint.

    Attributes:
        model: Model for which `unsupported_reason` is None.
        max_tokens: Largest number of tokens held at once: rows of a pass times (cached + run) tokens, and as many
            again in the cache that is expanded. One prompt and one request always fit.
        reduce_max: As in `FullForward`.
    """

    model: ScoringModel
    max_tokens: int
    reduce_max: ReduceMax = single_process

    def log_probs(self, prompts: Sequence[Prompt], requests: Sequence[Request]) -> list[Tensor]:
        """Log-probs [nats] of each request's completion, in the order of the requests."""
        prefixes = shared_prefixes(prompts, requests)
        shared = [request for request in requests if request.prompt in prefixes]
        others = [request for request in requests if request.prompt not in prefixes]
        results = self._shared_log_probs(prompts, shared, prefixes)
        whole = FullForward(self.model, self.max_tokens, self.reduce_max)
        results |= zip(others, whole.log_probs(prompts, others), strict=True)
        return [results[request] for request in requests]

    def _shared_log_probs(
        self, prompts: Sequence[Prompt], requests: list[Request], prefixes: dict[int, Ids]
    ) -> dict[Request, Tensor]:
        trees = list(trees_of(requests, prefixes, self.max_tokens))
        (count,) = self.reduce_max([len(trees)])
        if count > len(trees):  # join the passes of other processes; the result is not used
            spare = spare_request(prompts)
            spare_trees = list(trees_of([spare], {0: spare.context[:-2]}, self.max_tokens))
            trees += spare_trees * (count - len(trees))
        passes = self.reduce_max([len(tree.leaves) for tree in trees])
        results: dict[Request, Tensor] = {}
        for tree, calls in zip(trees, passes, strict=True):
            cache, mask, positions = self._run_prompts(tree, prompts)
            cache, mask, positions = self._run_stems(tree, cache, mask, positions)
            for leaves in tree.leaves:
                results |= self._run_leaves(leaves, cache, mask, positions)
            for _ in range(calls - len(tree.leaves)):
                self._run_leaves(tree.leaves[0][:1], cache, mask, positions)
        return results

    def _run_prompts(self, tree: Tree, prompts: Sequence[Prompt]) -> tuple[Cache, Tensor, Tensor]:
        """Cache, (n, P) mask and last position of the prompts' shared prefixes, padded on the left."""
        device = self.model.device
        rows = [prompts[index] for index, _ in tree.prompts]
        inputs = inputs_of(rows, [prefix for _, prefix in tree.prompts], device, left=True)
        mask, positions = inputs["attention_mask"], positions_of(self.model.unwrapped, inputs)
        cache = DynamicCache(config=self.model.unwrapped.config)
        _fill(self.model, cache, position_ids=positions, **inputs)
        return cache, mask, positions[..., -1:]

    def _run_stems(self, tree: Tree, cache: Cache, mask: Tensor, last: Tensor) -> tuple[Cache, Tensor, Tensor]:
        """The same for the contexts, whose stems continue the prefixes."""
        device = self.model.device
        rows = torch.tensor([row for row, _ in tree.stems], device=device)
        ids, stem_mask = padded([stem for _, stem in tree.stems], device)
        cache.batch_select_indices(rows)
        mask = torch.cat([mask[rows], stem_mask], dim=1)
        positions = following_positions(last, rows, ids)
        _fill(self.model, cache, input_ids=ids, attention_mask=mask, position_ids=positions)
        return cache, mask, positions[..., -1:]

    def _run_leaves(
        self, leaves: list[tuple[int, Ids, Request]], cache: Cache, mask: Tensor, last: Tensor
    ) -> dict[Request, Tensor]:
        device = self.model.device
        rows = torch.tensor([row for row, _, _ in leaves], device=device)
        ids, own_mask = padded([rest + request.completion for _, rest, request in leaves], device)
        starts = [len(rest) for _, rest, _ in leaves]
        requests = [request for _, _, request in leaves]
        log_probs = self.model.log_probs(
            labels_of(ids, starts, [len(request.completion) for request in requests]),
            input_ids=ids,
            attention_mask=torch.cat([mask[rows], own_mask], dim=1),
            position_ids=following_positions(last, rows, ids),
            **{cache_argument(self.model.unwrapped): ExpandedCache(cache, rows)},
        )
        return dict(zip(requests, completions_of_rows(log_probs, starts, requests), strict=True))


def trial_reason(shared: PrefixCachedForward, prompts: Sequence[Prompt], requests: Sequence[Request]) -> str | None:
    """Why a model's prompts cannot be shared: its structure, or a trial against `FullForward`; None if they can.

    The trial scores two contexts of one prompt both ways, and has to pass on every process.
    """
    model = shared.model.unwrapped
    reason = unsupported_reason(model)
    if reason is None:
        trial = two_contexts(requests) or [spare_request(prompts)]
        expected = torch.cat(FullForward(shared.model, shared.max_tokens, shared.reduce_max).log_probs(prompts, trial))
        reason = trial_failure(expected, lambda: torch.cat(shared.log_probs(prompts, trial)), model.dtype)
    (failed,) = shared.reduce_max([int(reason is not None)])
    return reason or ("it failed on another process" if failed else None)


def trial_failure(expected: Tensor, trial: Callable[[], Tensor], dtype: torch.dtype) -> str | None:
    """Why a faster way to run a model is not used; None if it gives the same numbers to rounding.

    Args:
        expected: Log-probs or logits of full forward passes [nats].
        trial: Computes the same numbers in the faster way.
        dtype: Dtype of the weights, which sets the tolerance.
    """
    try:
        off = ((trial() - expected).abs().sum() / max(1, expected.numel())).item()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, NotImplementedError, KeyError) as error:
        return f"a trial ended in {type(error).__name__}: {str(error).splitlines()[0]}"
    return None if off <= _TOLERANCE[dtype] else f"in a trial, numbers differed by {off:.2g} nats on average"


# Largest mean absolute difference [nats]; rounding reaches a hundredth of it in float32, a tenth in bfloat16.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}


def following_positions(last: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
    """Positions of (n, S) `ids` after the last positions of the rows that they continue; leading dimensions stay."""
    return last[..., rows, :] + 1 + torch.arange(ids.shape[1], device=ids.device)
