"""Sampling without a server: each distinct prompt, its images included, is run once, and its cache branched.

`generate` runs the prompt of every row. Here its first pass runs the distinct ones alone, and rows take their keys,
values and logits from these: the same numbers but for rounding, so that the same seed samples the same.

Dimensions: B rows, U distinct prompts.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from .passes import TOLERANCE, ScoringModel
from .requests import TOKEN_TYPES


@dataclass
class Prefill:
    """Whether a model's prompts are run once, decided by its structure and a trial on the first batch.

    Attributes:
        shares: None: not decided yet.
        say: Called with the reason, once, where they are not.
    """

    say: Callable[[str], None]
    shares: bool | None = None

    @contextmanager
    def once(
        self, model: PreTrainedModel, firsts: Sequence[int], owners: Sequence[int], images: dict[str, Tensor]
    ) -> Iterator[None]:
        """What `model` generates here, it generates from prompts that were run once.

        Args:
            model: The transformers model inside of all wrappers.
            firsts: For each of the U prompts a row that has it.
            owners: For each of the B rows the index of its prompt.
            images: Of the U prompts, as the model takes them.
        """
        if self.shares is None and (reason := ScoringModel(model, model).why_no_branches()) is not None:
            self._leave(reason)
        if not self.shares and self.shares is not None:
            yield
            return
        original = model._prefill
        few, rows = (torch.tensor(places, device=model.device) for places in (firsts, owners))

        def prefill(input_ids: Tensor, config: Any, kwargs: dict[str, Any], **rest: Any) -> Any:
            cache: Any = kwargs.get("past_key_values")
            if len(input_ids) != len(owners) or type(cache) is not DynamicCache or cache.get_seq_length() > 0:
                return original(input_ids, config, kwargs, **rest)
            if self.shares:
                return shared(input_ids, config, kwargs, cache, **rest)
            output = original(input_ids, config, kwargs, **rest)
            self._try(output, lambda trial: shared(input_ids, config, kwargs, trial, **rest), model)
            return output

        def shared(input_ids: Tensor, config: Any, kwargs: dict[str, Any], cache: Cache, **rest: Any) -> Any:
            picked = {name: value for name, value in kwargs.items() if name not in images}
            for name in ("attention_mask", *TOKEN_TYPES):
                if picked.get(name) is not None:
                    picked[name] = picked[name][few]
            if picked.get("position_ids") is not None:
                picked["position_ids"] = picked["position_ids"][..., few, :]
            output = original(input_ids[few], config, {**picked, **images, "past_key_values": cache}, **rest)
            cache.batch_select_indices(rows)
            output.logits = output.logits[rows]
            return output

        model._prefill = prefill
        try:
            yield
        finally:
            del model._prefill

    def _try(self, expected: Any, shared: Callable[[Cache], Any], model: PreTrainedModel) -> None:
        trial = DynamicCache(config=model.config)
        try:
            found = shared(trial)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, NotImplementedError) as error:
            self._leave(f"a trial ended in {type(error).__name__}: {str(error).splitlines()[0]}")
            return
        off = (found.logits[:, -1] - expected.logits[:, -1]).abs().mean().item()
        if off > TOLERANCE[model.dtype]:
            self._leave(f"in a trial, logits were off by {off:.2g} on average")
            return
        self.shares = True

    def _leave(self, reason: str) -> None:
        self.shares = False
        self.say(f"sampling runs every prompt once per rollout: {reason}. This is slower and gives the same numbers.")
