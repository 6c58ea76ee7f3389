"""Decoding without copies of the KV cache.

transformers copies the cache of every layer for each new token, and, for grouped-query attention with a mask, once
more for each query head. Both are avoided here; numbers change by rounding only.

Dimensions: B rows, H query heads, K key heads, S cached tokens, D of a head.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# Room of a new buffer, as a share of the cached tokens and in tokens.
_SHARE, _TOKENS = 0.25, 32


def cache_argument(model: nn.Module) -> str:
    """The name of a model's cache argument: `cache` since transformers 5.24, `past_key_values` before."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def cache_unsupported_reason(model: PreTrainedModel) -> str | None:
    """Why the structure of a model does not allow continuing a prompt in several rows; None if it does."""
    if not hasattr(model, "_prepare_position_ids_for_generation"):
        return "it cannot prepare position ids"
    known = inspect.signature(model.forward).parameters
    if missing := {"position_ids", cache_argument(model), "logits_to_keep"} - known.keys():
        return f"its forward pass takes no {' or '.join(sorted(missing))}"
    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
    if others := kinds - {DynamicLayer, DynamicSlidingWindowLayer}:
        return f"its cache has layers other than keys and values: {', '.join(t.__name__ for t in others)}"
    return None


class GrowingLayer(DynamicLayer):
    """A cache layer that appends tokens in place, in a buffer with room. For passes without gradient."""

    def __init__(self, layer: DynamicLayer):
        super().__init__()
        assert layer.keys is not None
        assert layer.values is not None
        self.dtype, self.device, self.is_initialized = layer.keys.dtype, layer.keys.device, True
        self.keys, self.values = layer.keys, layer.values
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._views: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Append (B, K, s, D) keys and values; returns all of them."""
        assert self.keys is not None
        assert self.values is not None
        before = self.keys.shape[-2]
        after = before + key_states.shape[-2]
        # Cropping or reordering a cache replaces the views.
        unchanged = self._views is not None and self._views[0] is self.keys and self._views[1] is self.values
        if self._buffers is None or not unchanged or self._buffers[0].shape[-2] < after:
            room = after + int(_SHARE * after) + _TOKENS
            self._buffers = _with_room(self.keys, room), _with_room(self.values, room)
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., before:after, :] = new
        keys, values = self._buffers
        self._views = self.keys, self.values = keys[..., :after, :], values[..., :after, :]
        return self._views


def _with_room(held: Tensor, room: int) -> Tensor:
    buffer = held.new_empty(*held.shape[:-2], room, held.shape[-1])
    buffer[..., : held.shape[-2], :] = held
    return buffer


def grow_in_place(cache: DynamicCache) -> None:
    """Let the full-attention layers of a filled cache grow in place."""
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.is_initialized:
            cache.layers[index] = GrowingLayer(layer)


@contextmanager
def grouped_decoding() -> Iterator[None]:
    """Patch `sdpa` so that a single query does not repeat the keys of its group; other calls are unchanged."""
    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        heads, shared = query.shape[1], key.shape[1]
        simple = query.shape[2] == 1 < heads // shared and not torch.is_grad_enabled() and not kwargs.get("dropout")
        one_mask = attention_mask is None or (attention_mask.dim() == 4 and attention_mask.shape[1] == 1)
        if not simple or not one_mask or kwargs.get("position_bias") is not None:
            return plain(module, query, key, value, attention_mask, **kwargs)
        # The query heads of a key head take the place of the queries: (B, K, H / K, D).
        rows = query.reshape(query.shape[0], shared, heads // shared, query.shape[-1])
        found = nn.functional.scaled_dot_product_attention(
            rows, key, value, attn_mask=attention_mask, scale=kwargs.get("scaling")
        )
        return found.reshape(query.shape[0], 1, heads, value.shape[-1]), None

    ALL_ATTENTION_FUNCTIONS["sdpa"] = attention
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = plain
