"""Forward passes of a teacher: how readings become log-probs. Two ways, one result.

`Concatenated` runs every reading whole: [prompt in its context + completion]. `SharedPrompt` runs a prompt once, with
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

from .requests import (
    Ids,
    Prompt,
    Reading,
    Tree,
    batches_of,
    length_of,
    shared_prefixes,
    spare_reading,
    trees_of,
    two_contexts,
)

_logger = logging.getLogger(__name__)


# The most of each of these numbers over all processes.
Agree = Callable[[Sequence[int]], list[int]]


def alone(numbers: Sequence[int]) -> list[int]:
    """`Agree` of a single process."""
    return list(numbers)


@dataclass(frozen=True)
class Policy:
    """The model, as its teachers call it. It needs TRL's fused LM head (`trl.trainer.utils.add_fused_lm_head`).

    Attributes:
        model: What is called, wrapped as training left it.
        unwrapped: The transformers model inside.
        autocast: Makes the context of mixed precision.
    """

    model: nn.Module
    unwrapped: PreTrainedModel
    autocast: Callable[[], AbstractContextManager] = nullcontext

    @property
    def device(self) -> torch.device:
        return self.unwrapped.device

    def log_probs(self, labels: Tensor, **inputs: Any) -> Tensor:
        """(n, S - 1) log-probs [nats] of the tokens after the first; 0 where the label is -100. No (n, S, V) logits."""
        with self.autocast():
            return self.model(labels=labels, fused_lm_head=True, **inputs).log_probs.float()

    def fill(self, cache: Cache, **inputs: Any) -> None:
        """Run tokens for their keys and values alone."""
        with self.autocast():
            self.model(past_key_values=cache, use_cache=True, logits_to_keep=1, **inputs)

    def positions(self, inputs: dict[str, Any]) -> Tensor:
        """Position ids of a prompt, (n, P), or (d, n, P) where positions have several dimensions (M-RoPE)."""
        return self.unwrapped._prepare_position_ids_for_generation(inputs["input_ids"], dict(inputs))

    def why_no_branches(self) -> str | None:
        """What keeps this model's cache from being branched, as far as its structure tells; None if nothing does."""
        if not hasattr(self.unwrapped, "_prepare_position_ids_for_generation"):
            return "it does not tell its positions"
        known = inspect.signature(self.unwrapped.forward).parameters
        if missing := {"position_ids", "past_key_values", "logits_to_keep"} - known.keys():
            return f"its forward pass takes no {' or '.join(sorted(missing))}"
        others = {type(layer) for layer in DynamicCache(config=self.unwrapped.config).layers} - _BRANCHING_LAYERS
        if others:
            return f"its cache has layers that are not keys and values: {', '.join(t.__name__ for t in others)}"
        return None


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
        layer.batch_select_indices(self.rows)
        return layer.update(key_states, value_states, *args, **kwargs)


@dataclass(frozen=True)
class Concatenated:
    """Every reading whole, padded on the right. Works for any model.

    Attributes:
        policy: The model.
        max_tokens: The most tokens of one pass, padding included; one reading always fits.
        agree: Brings processes to one number of passes: under FSDP and ZeRO-3 each has to take part in each pass of
            any other.
    """

    policy: Policy
    max_tokens: int
    agree: Agree = alone

    def read(self, prompts: Sequence[Prompt], readings: Sequence[Reading]) -> list[Tensor]:
        """Log-probs [nats] of each reading's completion, in the order of the readings."""
        order = sorted(range(len(readings)), key=lambda i: length_of(readings[i]))
        batches = [list(b) for b in batches_of(order, lambda i: length_of(readings[i]), self.max_tokens)]
        results: dict[int, Tensor] = {}
        for batch in batches:
            results |= dict(zip(batch, self._pass(prompts, [readings[i] for i in batch]), strict=True))
        (calls,) = self.agree([len(batches)])
        for _ in range(calls - len(batches)):  # for the others' sake; nobody reads the result
            self._pass(prompts, [spare_reading(prompts)])
        return [results[i] for i in range(len(readings))]

    def _pass(self, prompts: Sequence[Prompt], readings: list[Reading]) -> list[Tensor]:
        inputs = _whole(prompts, readings, self.policy.device)
        starts = [len(reading.context) for reading in readings]
        labels = _labels(inputs["input_ids"], starts, [len(reading.completion) for reading in readings])
        return _completions_of(self.policy.log_probs(labels, **inputs), starts, readings)


def hidden_states(model: PreTrainedModel, prompts: Sequence[Prompt], readings: Sequence[Reading]) -> Tensor:
    """Hidden states before the LM head at the positions that predict the completions, every reading whole.

    Args:
        model: The transformers model; gradient and mode are the caller's.
        prompts: The prompts.
        readings: What to read, in one pass.

    Returns:
        (N, H): the tokens of all completions, one reading after the other.
    """
    output = model.base_model(use_cache=False, **_whole(prompts, readings, model.device))
    starts = [len(reading.context) for reading in readings]
    return torch.cat(_completions_of(output.last_hidden_state, starts, readings))


def _whole(prompts: Sequence[Prompt], readings: Sequence[Reading], device: torch.device) -> dict[str, Tensor]:
    """The model's inputs for whole readings, padded on the right."""
    rows = [prompts[reading.prompt] for reading in readings]
    ids, mask = _pad([reading.context + reading.completion for reading in readings], device)
    lengths = [len(reading.context + reading.completion) for reading in readings]
    return {
        "input_ids": ids,
        "attention_mask": mask,
        **_token_types(rows, lengths, device),
        **_images(rows, device),
    }


@dataclass(frozen=True)
class SharedPrompt:
    """Every prompt once; contexts and completions branch from its cache.

    Readings whose prompt cannot be shared (its images do not all come before the hint) are left to `Concatenated`.

    Attributes:
        policy: The model; see `Policy.why_no_branches`.
        max_tokens: The most tokens held at once: rows of a pass times (cached + run) tokens, and as many again in the
            cache that is branched. One prompt and one reading always fit.
        agree: As in `Concatenated`.
    """

    policy: Policy
    max_tokens: int
    agree: Agree = alone

    def read(self, prompts: Sequence[Prompt], readings: Sequence[Reading]) -> list[Tensor]:
        """Log-probs [nats] of each reading's completion, in the order of the readings."""
        prefixes = shared_prefixes(prompts, readings)
        shared = [reading for reading in readings if reading.prompt in prefixes]
        others = [reading for reading in readings if reading.prompt not in prefixes]
        results = self._read_shared(prompts, shared, prefixes)
        whole = Concatenated(self.policy, self.max_tokens, self.agree)
        results |= zip(others, whole.read(prompts, others), strict=True)
        return [results[reading] for reading in readings]

    def _read_shared(
        self, prompts: Sequence[Prompt], readings: list[Reading], prefixes: dict[int, Ids]
    ) -> dict[Reading, Tensor]:
        trees = list(trees_of(readings, prefixes, self.max_tokens))
        (count,) = self.agree([len(trees)])
        if count > len(trees):  # these are for the others' sake; nobody reads the result
            spare = spare_reading(prompts)
            spare_trees = list(trees_of([spare], {0: spare.context[:-2]}, self.max_tokens))
            trees += spare_trees * (count - len(trees))
        passes = self.agree([len(tree.leaves) for tree in trees])
        results: dict[Reading, Tensor] = {}
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
        device = self.policy.device
        rows = [prompts[index] for index, _ in tree.prompts]
        ids, mask = _pad([prefix for _, prefix in tree.prompts], device, left=True)
        lengths = [len(prefix) for _, prefix in tree.prompts]
        types = _token_types(rows, lengths, device, left=True)
        inputs = {"input_ids": ids, "attention_mask": mask, **types, **_images(rows, device)}
        positions = self.policy.positions(inputs)
        cache = DynamicCache(config=self.policy.unwrapped.config)
        self.policy.fill(cache, position_ids=positions, **inputs)
        return cache, mask, positions[..., -1:]

    def _run_stems(self, tree: Tree, cache: Cache, mask: Tensor, last: Tensor) -> tuple[Cache, Tensor, Tensor]:
        """The same for each context, its stem run after the prompt's prefix."""
        device = self.policy.device
        rows = torch.tensor([row for row, _ in tree.stems], device=device)
        ids, stem_mask = _pad([stem for _, stem in tree.stems], device)
        cache.batch_select_indices(rows)
        mask = torch.cat([mask[rows], stem_mask], dim=1)
        positions = _following(last, rows, ids)
        self.policy.fill(cache, input_ids=ids, attention_mask=mask, position_ids=positions)
        return cache, mask, positions[..., -1:]

    def _run_leaves(
        self, leaves: list[tuple[int, Ids, Reading]], cache: Cache, mask: Tensor, last: Tensor
    ) -> dict[Reading, Tensor]:
        device = self.policy.device
        rows = torch.tensor([row for row, _, _ in leaves], device=device)
        ids, own_mask = _pad([rest + reading.completion for _, rest, reading in leaves], device)
        starts = [len(rest) for _, rest, _ in leaves]
        readings = [reading for _, _, reading in leaves]
        log_probs = self.policy.log_probs(
            _labels(ids, starts, [len(reading.completion) for reading in readings]),
            input_ids=ids,
            attention_mask=torch.cat([mask[rows], own_mask], dim=1),
            position_ids=_following(last, rows, ids),
            past_key_values=Branches(cache, rows),
        )
        return dict(zip(readings, _completions_of(log_probs, starts, readings), strict=True))


def why_not_shared(shared: SharedPrompt, prompts: Sequence[Prompt], readings: Sequence[Reading]) -> str | None:
    """Why this model's prompts cannot be shared: by its structure, or by a trial against plain concatenation.

    The trial reads two contexts of one prompt both ways, and counts on any process (`shared.agree`).

    Returns:
        A reason, or None if sharing is exact to what the weights' precision resolves.
    """
    reason = shared.policy.why_no_branches()
    if reason is None:
        trial = two_contexts(readings) or [spare_reading(prompts)]
        reason = _difference(shared, prompts, trial)
    (failed,) = shared.agree([int(reason is not None)])
    return reason or ("it failed on another process" if failed else None)


def _difference(shared: SharedPrompt, prompts: Sequence[Prompt], trial: list[Reading]) -> str | None:
    whole = Concatenated(shared.policy, shared.max_tokens, shared.agree)
    expected = torch.cat(whole.read(prompts, trial))
    try:
        found = torch.cat(shared.read(prompts, trial))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, NotImplementedError, KeyError) as error:
        return f"a trial ended in {type(error).__name__}: {str(error).splitlines()[0]}"
    off = (found - expected).abs().mean().item()
    if off <= _TOLERANCE[shared.policy.unwrapped.dtype]:
        return None
    return f"in a trial, log-probs were off by {off:.2g} nats on average"


# Mean |difference| of two exact ways to compute log-probs [nats]: rounding alone reaches a hundredth of these in
# float32 and a tenth of these in bfloat16.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}


class Reader:
    """Makes the teachers' passes: prompts shared where the model's cache allows it, which is tried once.

    Args:
        policy: The model.
        agree: As in `Concatenated`.
        shares: Whether to share prompts; None: as the model's structure and a trial on the first readings say.
        speaks: Whether to warn where prompts are not shared; one process is enough.
    """

    def __init__(self, policy: Policy, *, agree: Agree = alone, shares: bool | None = None, speaks: bool = True):
        self.policy, self.agree, self.shares, self.speaks = policy, agree, shares, speaks

    def read(self, prompts: Sequence[Prompt], readings: Sequence[Reading], *, max_tokens: int) -> list[Tensor]:
        """Log-probs [nats] of each reading's completion, in the order of the readings.

        Args:
            prompts: The prompts.
            readings: What to read; equal ones once.
            max_tokens: The most tokens of a pass, padding included.
        """
        if self.agree([len(readings)]) == [0]:
            return []
        shared = SharedPrompt(self.policy, max_tokens, self.agree)
        if self.shares is None:
            reason = why_not_shared(shared, prompts, readings)
            self.shares = reason is None
            if reason is not None and self.speaks:
                _logger.warning(
                    "teachers run every prompt anew for each context and rollout, because %s cannot branch from a "
                    "prompt's cache: %s. This is slower and gives the same numbers.",
                    type(self.policy.unwrapped).__name__,
                    reason,
                )
        way = shared if self.shares else Concatenated(self.policy, max_tokens, self.agree)
        return way.read(prompts, readings)


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


def _completions_of(log_probs: Tensor, starts: Sequence[int], readings: Sequence[Reading]) -> list[Tensor]:
    """The log-probs (or hidden states) of each completion; those of a token stand one place before it."""
    return [
        row[start - 1 : start - 1 + len(reading.completion)]
        for row, start, reading in zip(log_probs, starts, readings, strict=True)
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
