"""Forward passes: how requests become log-probs. Two ways, one result.

`Concatenated` runs every request whole: [prompt in its context + completion]. `SharedPrompt` runs a prompt once, with
its images, and branches its key-value cache: first into the contexts (r+, r-, ...), then into the completions. No
token is run twice there but for one per completion, from which its first token is predicted.

Dimensions: n rows of a pass, P prompt tokens, S tokens run in a pass after what is cached.
"""

import copy
import inspect
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ..references.groups import Ids
from .head import Head, sampled_log_probs
from .requests import (
    Prompt,
    Request,
    Tree,
    batches_of,
    distinct_prompts,
    length_of,
    shared_prefixes,
    spare_request,
    trees_of,
    two_contexts,
)

_logger = logging.getLogger(__name__)


# The most of each of these numbers over all processes.
ReduceMax = Callable[[Sequence[int]], list[int]]


def single_process(numbers: Sequence[int]) -> list[int]:
    """`ReduceMax` of a single process."""
    return list(numbers)


def _nothing(kind: str) -> None:
    """Before a pass nothing is to be done."""


@dataclass(frozen=True)
class ScoringModel:
    """A model, as the scorer calls it.

    Attributes:
        model: What is called, wrapped as training left it.
        unwrapped: The transformers model inside.
        autocast: Makes the context of mixed precision.
        fused: Whether the model has TRL's fused LM head (`trl.trainer.utils.add_fused_lm_head`), by which log-probs
            come through the wrapped model's own forward pass. Without it they are taken from hidden states here.
        temperature: Of the distributions; a fused head has its own.
        before_pass: Called before each pass with its kind: ``completions`` or ``cache``.
    """

    model: nn.Module
    unwrapped: PreTrainedModel
    autocast: Callable[[], AbstractContextManager] = nullcontext
    fused: bool = False
    temperature: float = 1.0
    before_pass: Callable[[str], None] = _nothing

    @property
    def device(self) -> torch.device:
        return self.unwrapped.device

    def log_probs(self, labels: Tensor, **inputs: Any) -> Tensor:
        """(n, S - 1) log-probs [nats] of the tokens after the first; 0 where the label is -100. No (n, S, V) logits."""
        self.before_pass("completions")
        with self.autocast():
            if self.fused:
                return self.model(labels=labels, fused_lm_head=True, **inputs).log_probs.float()
            hidden = self.unwrapped.base_model(use_cache=False, **inputs).last_hidden_state[:, :-1]
            wanted = labels[:, 1:] != -100
            found = sampled_log_probs(hidden[wanted], Head.of(self.unwrapped), labels[:, 1:][wanted], self.temperature)
        return found.new_zeros(wanted.shape).masked_scatter(wanted, found)

    def fill(self, cache: Cache, **inputs: Any) -> None:
        """Run tokens for their keys and values alone."""
        self.before_pass("cache")
        with self.autocast():
            self.model(**{cache_argument(self.unwrapped): cache}, use_cache=True, logits_to_keep=1, **inputs)

    def positions(self, inputs: dict[str, Any]) -> Tensor:
        """Position ids of a prompt, (n, P), or (d, n, P) where positions have several dimensions (M-RoPE)."""
        return self.unwrapped._prepare_position_ids_for_generation(inputs["input_ids"], dict(inputs))

    def why_no_branches(self) -> str | None:
        """What keeps this model's cache from being branched, as far as its structure tells; None if nothing does."""
        if not hasattr(self.unwrapped, "_prepare_position_ids_for_generation"):
            return "it does not tell its positions"
        known = inspect.signature(self.unwrapped.forward).parameters
        if missing := {"position_ids", cache_argument(self.unwrapped), "logits_to_keep"} - known.keys():
            return f"its forward pass takes no {' or '.join(sorted(missing))}"
        others = {type(layer) for layer in DynamicCache(config=self.unwrapped.config).layers} - _BRANCHING_LAYERS
        if others:
            return f"its cache has layers that are not keys and values: {', '.join(t.__name__ for t in others)}"
        return None


def cache_argument(model: nn.Module) -> str:
    """What this model's forward pass calls its cache: `cache` since transformers 5.24, `past_key_values` before."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


_BRANCHING_LAYERS = {DynamicLayer, DynamicSlidingWindowLayer}


class Branches(DynamicCache):
    """Rows of a cache, each as often as wanted, expanded one layer at a time and never stored.

    So the keys and values of the prompt are held once, and once more for the layer that is running.
    """

    def __init__(self, trunk: Cache, rows: Tensor):
        super().__init__()
        self.layers = trunk.layers
        self.rows = rows

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        layer = copy.copy(self.layers[layer_idx])
        # Not the layer's own way to pick rows: several threads add up its gradient in an order of chance.
        layer.keys, layer.values = (part.index_select(0, self.rows) for part in (layer.keys, layer.values))
        return layer.update(key_states, value_states, *args, **kwargs)


@dataclass(frozen=True)
class Concatenated:
    """Every request whole, padded on the right. Works for any model.

    Attributes:
        model: The model.
        max_tokens: The most tokens of one pass, padding included; one request always fits.
        reduce_max: Brings processes to one number of passes: under FSDP and ZeRO-3 each has to take part in each pass
            of any other.
    """

    model: ScoringModel
    max_tokens: int
    reduce_max: ReduceMax = single_process

    def log_probs(self, prompts: Sequence[Prompt], requests: Sequence[Request]) -> list[Tensor]:
        """Log-probs [nats] of each request's completion, in the order of the requests."""
        order = sorted(range(len(requests)), key=lambda i: length_of(requests[i]))
        batches = [list(b) for b in batches_of(order, lambda i: length_of(requests[i]), self.max_tokens)]
        # Agreed before the first pass: a process without one must not gather numbers while another gathers weights.
        (calls,) = self.reduce_max([len(batches)])
        results: dict[int, Tensor] = {}
        for batch in batches:
            results |= dict(zip(batch, self._pass(prompts, [requests[i] for i in batch]), strict=True))
        for _ in range(calls - len(batches)):  # for the others' sake; nobody reads the result
            self._pass(prompts, [spare_request(prompts)])
        return [results[i] for i in range(len(requests))]

    def _pass(self, prompts: Sequence[Prompt], requests: list[Request]) -> list[Tensor]:
        inputs = _whole(prompts, requests, self.model.device)
        starts = [len(request.context) for request in requests]
        labels = _labels(inputs["input_ids"], starts, [len(request.completion) for request in requests])
        return _completions_of(self.model.log_probs(labels, **inputs), starts, requests)


def hidden_states(model: PreTrainedModel, prompts: Sequence[Prompt], requests: Sequence[Request]) -> Tensor:
    """Hidden states before the LM head at the positions that predict the completions, every request whole.

    Args:
        model: The transformers model; gradient and mode are the caller's.
        prompts: The prompts.
        requests: What to read, in one pass.

    Returns:
        (N, H): the tokens of all completions, one request after the other.
    """
    output = model.base_model(use_cache=False, **_whole(prompts, requests, model.device))
    starts = [len(request.context) for request in requests]
    return torch.cat(_completions_of(output.last_hidden_state, starts, requests))


def branched_states(model: PreTrainedModel, prompts: Sequence[Prompt], requests: Sequence[Request]) -> Tensor:
    """The same as `hidden_states`, each distinct context run once; see `ScoringModel.why_no_branches`.

    All but a context's last token, which completions take with them, is held as keys and values, in the graph where
    there is one.
    """
    device = model.device
    # A prompt's index tells its images, but one prompt may stand in several places.
    shown = [prompts[request.prompt].images for request in requests]
    firsts, owners = distinct_prompts(
        [list(request.context) for request in requests],
        lambda one, other: all(torch.equal(shown[one][name], shown[other][name]) for name in shown[one]),
    )
    rows = [prompts[requests[first].prompt] for first in firsts]
    inputs = _inputs(rows, [requests[first].context[:-1] for first in firsts], device, left=True)
    mask, positions = inputs["attention_mask"], ScoringModel(model, model).positions(inputs)
    cache = DynamicCache(config=model.config)
    called = cache_argument(model)
    model.base_model(**{called: cache}, use_cache=True, position_ids=positions, **inputs)
    own, own_mask = _pad([request.context[-1:] + request.completion for request in requests], device)
    places = torch.tensor(owners, device=device)
    output = model.base_model(
        input_ids=own,
        attention_mask=torch.cat([mask[places], own_mask], dim=1),
        position_ids=_following(positions[..., -1:], places, own),
        **{called: Branches(cache, places)},
    )
    return torch.cat(_completions_of(output.last_hidden_state, [1] * len(requests), requests))


def _whole(prompts: Sequence[Prompt], requests: Sequence[Request], device: torch.device) -> dict[str, Tensor]:
    """The model's inputs for whole requests, padded on the right."""
    rows = [prompts[request.prompt] for request in requests]
    return _inputs(rows, [request.context + request.completion for request in requests], device)


def _inputs(
    rows: Sequence[Prompt], sequences: Sequence[Ids], device: torch.device, *, left: bool = False
) -> dict[str, Tensor]:
    """The model's inputs for sequences that begin as these prompts do, padded on a side."""
    ids, mask = _pad(sequences, device, left=left)
    types = _token_types(rows, [len(tokens) for tokens in sequences], device, left=left)
    return {"input_ids": ids, "attention_mask": mask, **types, **_images(rows, device)}


@dataclass(frozen=True)
class SharedPrompt:
    """Every prompt once; contexts and completions branch from its cache.

    Readings whose prompt cannot be shared (its images do not all come before the hint) are left to `Concatenated`.

    Attributes:
        model: The model; see `ScoringModel.why_no_branches`.
        max_tokens: The most tokens held at once: rows of a pass times (cached + run) tokens, and as many again in the
            cache that is branched. One prompt and one request always fit.
        reduce_max: As in `Concatenated`.
    """

    model: ScoringModel
    max_tokens: int
    reduce_max: ReduceMax = single_process

    def log_probs(self, prompts: Sequence[Prompt], requests: Sequence[Request]) -> list[Tensor]:
        """Log-probs [nats] of each request's completion, in the order of the requests."""
        prefixes = shared_prefixes(prompts, requests)
        shared = [request for request in requests if request.prompt in prefixes]
        others = [request for request in requests if request.prompt not in prefixes]
        results = self._read_shared(prompts, shared, prefixes)
        whole = Concatenated(self.model, self.max_tokens, self.reduce_max)
        results |= zip(others, whole.log_probs(prompts, others), strict=True)
        return [results[request] for request in requests]

    def _read_shared(
        self, prompts: Sequence[Prompt], requests: list[Request], prefixes: dict[int, Ids]
    ) -> dict[Request, Tensor]:
        trees = list(trees_of(requests, prefixes, self.max_tokens))
        (count,) = self.reduce_max([len(trees)])
        if count > len(trees):  # these are for the others' sake; nobody reads the result
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
        """Cache, (n, P) mask and the last position of each prompt's prefix, padded on the left."""
        device = self.model.device
        rows = [prompts[index] for index, _ in tree.prompts]
        inputs = _inputs(rows, [prefix for _, prefix in tree.prompts], device, left=True)
        mask, positions = inputs["attention_mask"], self.model.positions(inputs)
        cache = DynamicCache(config=self.model.unwrapped.config)
        self.model.fill(cache, position_ids=positions, **inputs)
        return cache, mask, positions[..., -1:]

    def _run_stems(self, tree: Tree, cache: Cache, mask: Tensor, last: Tensor) -> tuple[Cache, Tensor, Tensor]:
        """The same for each context, its stem run after the prompt's prefix."""
        device = self.model.device
        rows = torch.tensor([row for row, _ in tree.stems], device=device)
        ids, stem_mask = _pad([stem for _, stem in tree.stems], device)
        cache.batch_select_indices(rows)
        mask = torch.cat([mask[rows], stem_mask], dim=1)
        positions = _following(last, rows, ids)
        self.model.fill(cache, input_ids=ids, attention_mask=mask, position_ids=positions)
        return cache, mask, positions[..., -1:]

    def _run_leaves(
        self, leaves: list[tuple[int, Ids, Request]], cache: Cache, mask: Tensor, last: Tensor
    ) -> dict[Request, Tensor]:
        device = self.model.device
        rows = torch.tensor([row for row, _, _ in leaves], device=device)
        ids, own_mask = _pad([rest + request.completion for _, rest, request in leaves], device)
        starts = [len(rest) for _, rest, _ in leaves]
        requests = [request for _, _, request in leaves]
        log_probs = self.model.log_probs(
            _labels(ids, starts, [len(request.completion) for request in requests]),
            input_ids=ids,
            attention_mask=torch.cat([mask[rows], own_mask], dim=1),
            position_ids=_following(last, rows, ids),
            **{cache_argument(self.model.unwrapped): Branches(cache, rows)},
        )
        return dict(zip(requests, _completions_of(log_probs, starts, requests), strict=True))


def why_not_shared(shared: SharedPrompt, prompts: Sequence[Prompt], requests: Sequence[Request]) -> str | None:
    """Why this model's prompts cannot be shared: by its structure, or by a trial against plain concatenation.

    The trial reads two contexts of one prompt both ways, and counts on any process (`shared.reduce_max`).

    Returns:
        A reason, or None if sharing is exact to what the weights' precision resolves.
    """
    reason = shared.model.why_no_branches()
    if reason is None:
        trial = two_contexts(requests) or [spare_request(prompts)]
        reason = _difference(shared, prompts, trial)
    (failed,) = shared.reduce_max([int(reason is not None)])
    return reason or ("it failed on another process" if failed else None)


def _difference(shared: SharedPrompt, prompts: Sequence[Prompt], trial: list[Request]) -> str | None:
    whole = Concatenated(shared.model, shared.max_tokens, shared.reduce_max)
    expected = torch.cat(whole.log_probs(prompts, trial))
    return why_trial_failed(
        lambda: (torch.cat(shared.log_probs(prompts, trial)) - expected).abs().mean(),
        "log-probs",
        shared.model.unwrapped.dtype,
    )


def why_trial_failed(difference: Callable[[], Tensor], what: str, dtype: torch.dtype) -> str | None:
    """Why a quicker way to run a model cannot be taken; None if it gives the same numbers.

    Args:
        difference: Tries it; the mean |difference| from the numbers of the plain way.
        what: These numbers.
        dtype: Of the weights, whose precision decides what is the same.
    """
    try:
        off = difference().item()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, NotImplementedError, KeyError) as error:
        return f"a trial ended in {type(error).__name__}: {str(error).splitlines()[0]}"
    return None if off <= _TOLERANCE[dtype] else f"in a trial, {what} were off by {off:.2g} nats on average"


# Mean |difference| of two exact ways to compute log-probs [nats]: rounding alone reaches a hundredth of these in
# float32 and a tenth of these in bfloat16.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}


class Scorer:
    """Makes the passes: prompts shared where the model's cache allows it, which is tried once.

    Args:
        model: The model.
        reduce_max: As in `Concatenated`.
        shares: Whether to share prompts; None: as the model's structure and a trial on the first requests say.
        warns: Whether to warn where prompts are not shared; one process is enough.
    """

    def __init__(
        self,
        model: ScoringModel,
        *,
        reduce_max: ReduceMax = single_process,
        shares: bool | None = None,
        warns: bool = True,
    ):
        self.model, self.reduce_max, self.shares, self.warns = model, reduce_max, shares, warns

    def log_probs(self, prompts: Sequence[Prompt], requests: Sequence[Request], *, max_tokens: int) -> list[Tensor]:
        """Log-probs [nats] of each request's completion, in the order of the requests.

        Args:
            prompts: The prompts.
            requests: What to read; equal ones once.
            max_tokens: The most tokens of a pass, padding included.
        """
        if self.reduce_max([len(requests)]) == [0]:
            return []
        shared = SharedPrompt(self.model, max_tokens, self.reduce_max)
        if self.shares is None:
            reason = why_not_shared(shared, prompts, requests)
            self.shares = reason is None
            if reason is not None and self.warns:
                _logger.warning(
                    "teachers run every prompt anew for each context and rollout, because %s cannot branch from a "
                    "prompt's cache: %s. This is slower and gives the same numbers.",
                    type(self.model.unwrapped).__name__,
                    reason,
                )
        way = shared if self.shares else Concatenated(self.model, max_tokens, self.reduce_max)
        return way.log_probs(prompts, requests)


def _pad(rows: Sequence[Ids], device: torch.device, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """(n, S) ids and attention mask; padding is token 0, which nothing attends to."""
    width = max(map(len, rows))
    ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long).unbind()
    for row, tokens in enumerate(rows):
        where = slice(width - len(tokens), width) if left else slice(0, len(tokens))
        ids[row, where] = torch.tensor(tokens, dtype=torch.long)
        mask[row, where] = 1
    return ids.to(device), mask.to(device)


def _labels(ids: Tensor, starts: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """The ids where a completion stands, -100 elsewhere."""
    labels = torch.full_like(ids, -100)
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        labels[row, start : start + length] = ids[row, start : start + length]
    return labels


def _completions_of(log_probs: Tensor, starts: Sequence[int], requests: Sequence[Request]) -> list[Tensor]:
    """The log-probs (or hidden states) of each completion; those of a token stand one place before it."""
    return [
        row[start - 1 : start - 1 + len(request.completion)]
        for row, start, request in zip(log_probs, starts, requests, strict=True)
    ]


def _following(last: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
    """Positions of `ids` (n, S) after the last position of the rows that they continue; leading dimensions stay."""
    return last[..., rows, :] + 1 + torch.arange(ids.shape[1], device=ids.device)


def _token_types(
    prompts: Sequence[Prompt], lengths: Sequence[int], device: torch.device, *, left: bool = False
) -> dict[str, Tensor]:
    """The token types of sequences that begin as the prompts do, up to the end of their images, and go on as text."""
    result = {}
    for name in prompts[0].token_types:
        begun = [tuple(prompt.token_types[name][: prompt.images_end].tolist()) for prompt in prompts]
        rows = [types + (0,) * (length - len(types)) for types, length in zip(begun, lengths, strict=True)]
        result[name], _ = _pad(rows, device, left=left)
    return result


def _images(prompts: Sequence[Prompt], device: torch.device) -> dict[str, Tensor]:
    """The images of several prompts, one after the other."""
    names = {name: None for prompt in prompts for name in prompt.images}
    return {
        name: torch.cat([prompt.images[name] for prompt in prompts if name in prompt.images]).to(device)
        for name in names
    }
