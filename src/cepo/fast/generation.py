"""Sampling with transformers: run each distinct prompt once, and drop rows that have ended.

`generate` runs the prompt of every row, images included, and continues all rows until the last one ends. Hooks on the
model run the distinct prompts alone in the first pass and expand their keys, values and logits to all rows; later
passes omit ended rows and copy no cache (`kv_cache.py`). The remaining rows get the same logits to rounding and the
same random draws, so a seed samples the same completions.

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
from .kv_cache import cache_argument, cache_unsupported_reason, grouped_decoding, grow_in_place
from .trial import trial_failure

# Ended rows are dropped from the cache, which copies it, once they are this share of its rows.
_ENDED = 0.125
# Passes between counts of the rows that have ended: for each count the host waits for the device.
_COUNTED_EVERY = 8


@dataclass(frozen=True)
class SharedPrompts:
    """Which rows of a batch have the same prompt.

    Attributes:
        firsts: U row indices, one row for each prompt.
        owners: B prompt indices, one for each row.
        images: Image inputs of the U prompts, on the model's device.
    """

    firsts: Sequence[int]
    owners: Sequence[int]
    images: dict[str, Any]


@dataclass
class PrefixSharingGenerator:
    """Lets a model generate with shared prompts, if its structure and a trial on the first batch allow it.

    Attributes:
        warn: Called once with the reason if prompts are not shared.
        shares: Whether prompts are shared; None before the trial.
    """

    warn: Callable[[str], None]
    shares: bool | None = None
    _features: ImageFeatures | None = None

    @contextmanager
    def generating(
        self,
        model: PreTrainedModel,
        ends: Collection[int],
        prompts: SharedPrompts | None = None,
        dtype: torch.dtype | None = None,
    ) -> Iterator[None]:
        """Context in which `model.generate` shares prompts and drops ended rows.

        Args:
            model: Transformers model, without wrappers.
            ends: Ids of the end-of-sequence tokens.
            prompts: Which rows share a prompt; None if all prompts differ or are unknown.
            dtype: Dtype of the matrix products, which sets the trial's tolerance; None: that of the weights.
        """
        reason = cache_unsupported_reason(model)
        if reason is not None:
            if self.shares is None:
                self._refuse(reason)
            yield
            return
        passes = _Passes(self, model, torch.tensor(sorted(ends), device=model.device), prompts, dtype or model.dtype)
        hooks = [
            model.register_forward_pre_hook(passes.before, with_kwargs=True),
            model.register_forward_hook(passes.after, with_kwargs=True),
        ]
        try:
            with grouped_decoding(), self._vision_tower_once(model):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _vision_tower_once(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """Run the vision tower once per image; since transformers 5.24 `generate` runs it for all rows beforehand."""
        if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
            return nullcontext()
        self._features = self._features or ImageFeatures(self.warn)
        return self._features.kept(model, only_here=True)

    def decide(self, expected: Tensor, shared: Tensor, dtype: torch.dtype) -> None:
        """Share prompts if their logits equal those of whole prompts to rounding."""
        reason = trial_failure(expected, shared, dtype)
        if reason is None:
            self.shares = True
        else:
            self._refuse(reason)

    def _refuse(self, reason: str) -> None:
        self.shares = False
        self.warn(f"sampling runs every prompt once per rollout: {reason}. This is slower and gives the same numbers.")


class _Passes:
    """Hooks around the forward passes of one call of `generate`."""

    def __init__(
        self,
        generator: PrefixSharingGenerator,
        model: PreTrainedModel,
        ends: Tensor,
        prompts: SharedPrompts | None,
        dtype: torch.dtype,
    ):
        self._generator, self._model, self._ends, self._prompts = generator, model, ends, prompts
        self._dtype = dtype
        self._called = cache_argument(model)
        self._trying = False
        self._first = False  # whether the current pass runs prompts
        self._passes = 0
        self._held = self._ended = torch.zeros(0, dtype=torch.long)  # rows in the cache; (B,) bool, ended rows

    def before(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:  # noqa: ARG002
        """Omit repeated prompts in the first pass, and ended rows in later ones."""
        cache: Any = kwargs.get(self._called)
        ids = kwargs.get("input_ids")
        if self._trying or ids is None or type(cache) is not DynamicCache:
            return None
        self._first = cache.get_seq_length() == 0
        if self._first:
            self._held = torch.arange(len(ids), device=ids.device)
            self._ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
            if self._generator.shares and self._fits(ids):
                return args, self._distinct_inputs(kwargs)
            return None
        if ids.shape[1] != 1 or len(ids) != len(self._ended):
            return None
        self._ended |= torch.isin(ids[:, 0], self._ends)
        active = ~self._ended[self._held]
        self._passes += 1
        if self._passes % _COUNTED_EVERY == 0 and 0 < int(active.sum()) <= (1 - _ENDED) * len(active):
            kept = active.nonzero().flatten()
            cache.batch_select_indices(kept)
            self._held = self._held[kept]
        return None if len(self._held) == len(ids) else (args, _rows(kwargs, self._held))

    def after(self, model: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:  # noqa: ARG002
        """Expand logits to all rows; those of ended rows are not used."""
        cache: Any = kwargs.get(self._called)
        if self._trying or type(cache) is not DynamicCache or "input_ids" not in kwargs:
            return None
        if self._first:
            if self._prompts is not None:
                if self._generator.shares and len(output.logits) == len(self._prompts.firsts):
                    self._expand(output, cache)
                elif self._generator.shares is None and self._fits(kwargs["input_ids"]):
                    self._generator.decide(output.logits, self._try(kwargs), self._dtype)
            grow_in_place(cache)
        elif len(self._held) < len(self._ended) and len(output.logits) == len(self._held):
            whole = output.logits.new_zeros(len(self._ended), *output.logits.shape[1:])
            output.logits = whole.index_copy(0, self._held, output.logits)
        return None

    def _fits(self, ids: Tensor) -> bool:
        return self._prompts is not None and len(ids) == len(self._prompts.owners)

    def _distinct_inputs(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        assert self._prompts is not None
        firsts = torch.tensor(self._prompts.firsts, device=self._held.device)
        inputs = {**_rows(kwargs, firsts), **self._prompts.images}
        inputs.pop("mm_encoder_outputs", None)  # since transformers 5.24: the features of all rows
        return inputs

    def _expand(self, output: Any, cache: DynamicCache) -> None:
        assert self._prompts is not None
        owners = torch.tensor(self._prompts.owners, device=self._held.device)
        cache.batch_select_indices(owners)
        output.logits = output.logits[owners]

    def _try(self, kwargs: dict[str, Any]) -> Tensor:
        self._trying = True
        try:
            cache = DynamicCache(config=self._model.config)
            output = self._model(**{**self._distinct_inputs(kwargs), self._called: cache})
            self._expand(output, cache)
            return output.logits
        finally:
            self._trying = False


def _rows(kwargs: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """The inputs of a pass for some of its rows."""
    picked = dict(kwargs)
    for name in ("input_ids", "attention_mask", *TOKEN_TYPES):
        if isinstance(picked.get(name), Tensor):
            picked[name] = picked[name][rows]
    if isinstance(picked.get("position_ids"), Tensor):  # (B, S), or more dimensions before these (M-RoPE)
        picked["position_ids"] = picked["position_ids"][..., rows, :]
    return picked
