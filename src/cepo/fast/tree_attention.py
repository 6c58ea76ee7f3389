"""Attention of a prefix tree (`tree.py`): every token attends to its ancestors.

transformers passes a `BlockMask` unchanged to the attention of each layer, with gradient checkpointing also in the
backward pass. `TreeMask` is one by type alone. The attention function that the model uses passes such calls to
`_attend`, and all other calls on: one call of `scaled_dot_product_attention` for each parent, whose rows are its
children, and whose keys are those of the path from the root. Its cost is at most that of whole rows, on any device.

Dimensions: n tokens, H query heads, D of a head; c children of a parent, with p tokens before them and at most t each.
"""

from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .kv_cache import cache_unsupported_reason
from .tree import Tree


def uploaded(numbers: Any, device: torch.device) -> Tensor:
    """Integers as a tensor on a device, for which the host does not wait."""
    return torch.tensor(numbers, dtype=torch.long).to(device, non_blocking=True)


class TreeMask(BlockMask):
    """Which tokens of a tree's row attend to each other.

    Args:
        tree: The tree.
        device: Device of the model.
        images: (n,) index of each token's image, whose tokens attend to each other, -1 for text; None: text only,
            or images whose tokens attend to earlier ones only.
    """

    def __init__(self, tree: Tree, device: torch.device, images: Tensor | None = None):
        # Without the block structure of the base class, which needs all n x n pairs.
        self._length, self._images = len(tree.ids), images
        self._masks: dict[tuple[int, int | None], Tensor | None] = {}
        back, held = [0] * self._length, 0
        self.families: list[tuple[Tensor, int]] = []
        for path, children in tree.families():
            longest = max(map(len, children))
            # Padding repeats the last token of a child, to which no token before it attends.
            rows = [[*path, *child, *[child[-1]] * (longest - len(child))] for child in children]
            self.families.append((uploaded(rows, device), longest))
            for row, child in enumerate(children):
                first = held + row * longest
                back[child.start : child.stop] = range(first, first + len(child))
            held += len(children) * longest
        self.back = uploaded(back, device)

    @property
    def shape(self) -> tuple[int, ...]:
        return 1, 1, self._length, self._length

    @property
    def pairs(self) -> int:
        """Number of pairs of a query and a key, padding included."""
        return sum(places.numel() * longest for places, longest in self.families)

    def mask(self, family: int, window: int | None) -> Tensor | None:
        """(1 or c, 1, t, p + t) bool mask of a family's attention; None for causal attention without a path.

        Args:
            family: Index in `families`.
            window: Tokens of the layer's sliding window; None for full attention.
        """
        if (family, window) not in self._masks:
            self._masks[family, window] = self._mask(*self.families[family], window)
        return self._masks[family, window]

    def _mask(self, places: Tensor, longest: int, window: int | None) -> Tensor | None:
        width = places.shape[1]
        if longest == width and self._images is None and (window is None or window >= width):
            return None
        keys = torch.arange(width, device=places.device)
        distance = keys[width - longest :, None] - keys
        seen = (distance >= 0)[None, None]
        if self._images is not None:
            images = self._images[places][:, None]
            queries = images[..., width - longest :, None]
            seen = seen | ((queries == images[..., None, :]) & (queries >= 0))
        return seen if window is None else seen & (distance < window)


def _attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, tree: TreeMask, **kwargs: Any) -> Tensor:
    """(1, n, H, D) attention of a tree's (1, H, n, D) queries."""
    found = []
    for family, (places, longest) in enumerate(tree.families):
        queries, keys, values = (
            part[0].index_select(1, index.flatten()).unflatten(1, index.shape).transpose(0, 1)
            for part, index in ((query, places[:, -longest:]), (key, places), (value, places))
        )
        rows, _ = sdpa_attention_forward(
            module,
            queries,
            keys,
            values,
            tree.mask(family, kwargs.get("sliding_window")),
            dropout=kwargs.get("dropout", 0.0),
            scaling=kwargs.get("scaling"),
            is_causal=True,
        )
        found.append(rows.flatten(0, 1))
    return torch.cat(found).index_select(0, tree.back)[None]


def attend_to_trees(model: PreTrainedModel) -> None:
    """Let the attention function of a model take a `TreeMask`. Other calls are unchanged."""
    name = model.config.get_text_config()._attn_implementation
    plain = ALL_ATTENTION_FUNCTIONS[name]
    if getattr(plain, "takes_trees", False):
        return

    @wraps(plain)
    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        if isinstance(attention_mask, TreeMask):
            return _attend(module, query, key, value, attention_mask, **kwargs), None
        return plain(module, query, key, value, attention_mask, *args, **kwargs)

    attention.takes_trees = True  # type: ignore[attr-defined]
    ALL_ATTENTION_FUNCTIONS[name] = attention


def tree_unsupported_reason(model: PreTrainedModel) -> str | None:
    """Why the structure of a model does not allow attention to a tree; None if it does."""
    config = model.config.get_text_config()
    if reason := cache_unsupported_reason(model):
        return reason
    if others := set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}:
        return f"it has layers of {', '.join(sorted(others))}"
    if not model._supports_sdpa or getattr(config, "attn_logit_softcapping", None):
        return "scaled_dot_product_attention does not support its attention"
    if config._attn_implementation not in ALL_ATTENTION_FUNCTIONS:
        return f"its attention is {config._attn_implementation!r}; attn_implementation='sdpa' supports it"
    return None
