"""Sampling without a server, sparing: each distinct prompt is run once, and rows that have ended are not run on.

`generate` runs the prompt of every row, its images included, and goes on with all rows until the last has ended. Hooks
on the model let its first pass run the distinct prompts alone, from which rows take their keys, values and logits;
later passes leave out what has ended, and copy no cache (`kv_cache.py`). The other rows see the same numbers but for
rounding and the same random draws, so that the same seed samples the same.

Dimensions: B rows, U distinct prompts, V vocabulary.
"""

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from ..scoring.requests import TOKEN_TYPES
from .image_features import ImageFeatures
from .kv_cache import grow_in_place, keys_read_as_they_lie
from .prefix_cache import cache_argument, unsupported_reason, why_trial_failed

# Rows are dropped from the cache, which copies it, when so large a part of those that are held has ended.
_ENDED = 0.125


@dataclass(frozen=True)
class SharedPrompts:
    """Which rows of a batch have the same prompt.

    Attributes:
        firsts: For each of the U prompts a row that has it.
        owners: For each of the B rows the index of its prompt.
        images: Of the U prompts, as the model takes them, on its device: tensors, or what else its processor makes.
    """

    firsts: Sequence[int]
    owners: Sequence[int]
    images: dict[str, Any]


@dataclass
class PrefixSharingGenerator:
    """Whether a model generates from prompts that run once: its structure and a trial on the first batch decide.

    Attributes:
        say: Called with the reason, once, where it does not.
        shares: None: not decided yet.
    """

    say: Callable[[str], None]
    shares: bool | None = None
    _features: ImageFeatures | None = None

    @contextmanager
    def generating(
        self, model: PreTrainedModel, ends: Collection[int], prompts: SharedPrompts | None = None
    ) -> Iterator[None]:
        """What `model` generates here it generates so: greedily or by sampling, a single batch.

        Args:
            model: The transformers model inside of all wrappers.
            ends: Ids of the tokens that end a row.
            prompts: Which rows share a prompt; None: none do, or it is not known.
        """
        reason = unsupported_reason(model)
        if reason is not None:
            if self.shares is None:
                self._leave(reason)
            yield
            return
        passes = _Passes(self, model, torch.tensor(sorted(ends), device=model.device), prompts)
        hooks = [
            model.register_forward_pre_hook(passes.before, with_kwargs=True),
            model.register_forward_hook(passes.after, with_kwargs=True),
        ]
        try:
            with keys_read_as_they_lie(), self._seeing_once(model):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _seeing_once(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """Since transformers 5.24 `generate` runs the tower for all rows, before any pass; here once an image."""
        if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
            return nullcontext()
        self._features = self._features or ImageFeatures(self.say)
        return self._features.kept_for_now(model)

    def decide(self, expected: Tensor, shared: Callable[[], Tensor], dtype: torch.dtype) -> None:
        """Compare the logits of shared prompts with those of whole ones."""
        reason = why_trial_failed(lambda: (shared() - expected).abs().mean(), "logits", dtype)
        if reason is None:
            self.shares = True
        else:
            self._leave(reason)

    def _leave(self, reason: str) -> None:
        self.shares = False
        self.say(f"sampling runs every prompt once per rollout: {reason}. This is slower and gives the same numbers.")


class _Passes:
    """The passes of one call of `generate`."""

    def __init__(
        self, generator: PrefixSharingGenerator, model: PreTrainedModel, ends: Tensor, prompts: SharedPrompts | None
    ):
        self._generator, self._model, self._ends, self._prompts = generator, model, ends, prompts
        self._called = cache_argument(model)
        self._trying = False
        self._first = False  # whether the pass at hand runs prompts
        self._held = self._ended = torch.zeros(0, dtype=torch.long)  # rows in the cache; (B,) which have ended

    def before(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:  # noqa: ARG002
        """Leave out rows whose numbers are known or not needed."""
        cache: Any = kwargs.get(self._called)
        ids = kwargs.get("input_ids")
        if self._trying or ids is None or type(cache) is not DynamicCache:
            return None
        self._first = cache.get_seq_length() == 0
        if self._first:
            self._held = torch.arange(len(ids), device=ids.device)
            self._ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
            if self._generator.shares and self._fits(ids):
                return args, self._few(kwargs)
            return None
        if ids.shape[1] != 1 or len(ids) != len(self._ended):
            return None
        self._ended |= torch.isin(ids[:, 0], self._ends)  # what was sampled last, and is run now
        going = ~self._ended[self._held]
        if 0 < going.sum() <= (1 - _ENDED) * len(going):
            cache.batch_select_indices(going.nonzero().flatten())
            self._held = self._held[going]
        return None if len(self._held) == len(ids) else (args, _rows(kwargs, self._held))

    def after(self, model: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:  # noqa: ARG002
        """Logits for all rows; those of rows that have ended are nobody's."""
        cache: Any = kwargs.get(self._called)
        if self._trying or type(cache) is not DynamicCache or "input_ids" not in kwargs:
            return None
        if self._first:
            if self._prompts is not None:
                if self._generator.shares and len(output.logits) == len(self._prompts.firsts):
                    self._spread(output, cache)
                elif self._generator.shares is None and self._fits(kwargs["input_ids"]):
                    self._generator.decide(output.logits, lambda: self._try(kwargs), self._model.dtype)
            grow_in_place(cache)
        elif len(self._held) < len(self._ended) and len(output.logits) == len(self._held):
            whole = output.logits.new_zeros(len(self._ended), *output.logits.shape[1:])
            output.logits = whole.index_copy(0, self._held, output.logits)
        return None

    def _fits(self, ids: Tensor) -> bool:
        return self._prompts is not None and len(ids) == len(self._prompts.owners)

    def _few(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        assert self._prompts is not None
        firsts = torch.tensor(self._prompts.firsts, device=self._held.device)
        few = {**_rows(kwargs, firsts), **self._prompts.images}
        few.pop("mm_encoder_outputs", None)  # since transformers 5.24: the features of all rows
        return few

    def _spread(self, output: Any, cache: DynamicCache) -> None:
        assert self._prompts is not None
        owners = torch.tensor(self._prompts.owners, device=self._held.device)
        cache.batch_select_indices(owners)
        output.logits = output.logits[owners]

    def _try(self, kwargs: dict[str, Any]) -> Tensor:
        self._trying = True
        try:
            cache = DynamicCache(config=self._model.config)
            output = self._model(**{**self._few(kwargs), self._called: cache})
            self._spread(output, cache)
            return output.logits
        finally:
            self._trying = False


def _rows(kwargs: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """A pass for some of its rows."""
    picked = dict(kwargs)
    for name in ("input_ids", "attention_mask", *TOKEN_TYPES):
        if isinstance(picked.get(name), Tensor):
            picked[name] = picked[name][rows]
    if isinstance(picked.get("position_ids"), Tensor):  # (B, S), or more dimensions before these (M-RoPE)
        picked["position_ids"] = picked["position_ids"][..., rows, :]
    return picked
