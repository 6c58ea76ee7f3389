"""Each prompt once in training: in the policy's own log-probs, in sampling, and in a divergence.

`PromptSharing` is what `CEPOTrainer` delegates to; `trainer/sharing.py` has the same calls without any sharing.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl.models.utils import _ForwardRedirection
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

from ..distillation.losses import DistillationBatch
from ..scoring.forward import has_dropout
from ..scoring.head import Head, sampled_log_probs
from ..scoring.requests import TOKEN_TYPES, distinct_prompts
from ..trainer.batches import Batch, images_of_rows, known_images, select_rows
from ..trainer.sharding import checkpoints_activations, inner_model, is_sharded
from .generation import PrefixSharingGenerator, SharedPrompts
from .image_features import ImageFeatures
from .prefix_cache import branched_states, why_trial_failed
from .prefix_tree import prefix_cache_unsupported_reason
from .shared_rows import Found, Rows, branched, difference, distinct, packed, packing_pays, sharing_unsupported_reason

_logger = logging.getLogger(__name__)

# TRL's means over rollouts, or over the tokens of an optimizer step, which the order of its rows does not change.
_WITHOUT_ORDER = ("grpo", "dapo", "dr_grpo", "cispo", "luspo", "sapo", "vespo")
_NO_COMPANIONS = ("batch_size", "compute_entropy", "compute_aux_loss")


class PromptSharing:
    """Runs each distinct prompt of a micro-batch once.

    Where all micro-batches of a generation belong to one optimizer step, groups stay together in them. TRL shuffles
    rows among them, which changes nothing but which prompts run together.

    Args:
        trainer: A `CEPOTrainer`.
    """

    def __init__(self, trainer: Any):
        self._trainer = trainer
        self.shares: bool | None = None  # None: not decided yet
        self.generator = PrefixSharingGenerator(self._say)
        self.features = ImageFeatures(self._say)
        self._in_order: Batch | None = None  # the generation batch, before TRL shuffles it

    @property
    def _off(self) -> bool:
        return self.shares is False or self._trainer.args.shared_prompt_update == "never"

    # Log-probs --------------------------------------------------------------------------------------------------------

    def log_probs(
        self, whole: Callable[..., Any], model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
    ) -> Any:
        """TRL's `_get_per_token_logps_and_entropies`, of which `whole` is its own."""
        options = {**dict(zip(_NO_COMPANIONS, args, strict=False)), **kwargs}
        if self._off or options.get("compute_aux_loss"):
            return whole(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)
        companions = {
            name: value for name, value in options.items() if name not in _NO_COMPANIONS and value is not None
        }
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, **companions}
        count, entropies = len(input_ids), options.get("compute_entropy", False)
        size = options.get("batch_size") or count
        found = []
        for start in range(0, count, size):
            part = batch if size >= count else select_rows(batch, range(start, min(start + size, count)))
            found.append(self._score(whole, model, part, logits_to_keep, entropies))
        log_probs = torch.cat([log_probs for log_probs, _ in found])
        return (
            log_probs,
            torch.cat([entropy for _, entropy in found if entropy is not None]) if entropies else None,
            None,
        )

    def _score(self, whole_rows: Callable[..., Any], model: Any, batch: Batch, kept: int, entropies: bool) -> Found:
        """Log-probs and entropies of a batch's completions: with its prompts shared where that is exact and pays."""

        def whole() -> Found:
            found = whole_rows(model, logits_to_keep=kept, compute_entropy=entropies, **batch)
            return found[0], found[1]

        rows = rows_of(batch, batch["input_ids"].shape[1] - kept)
        if rows is None:
            return whole()
        unwrapped = self._trainer.accelerator.unwrap_model(model)
        inner = inner_model(self._trainer, model)
        checkpoints = checkpoints_activations(inner) and torch.is_grad_enabled()
        if checkpoints and not packing_pays(inner, rows):
            return whole()
        way = packed if checkpoints else branched

        def shared() -> Found:
            with self._trainer.accelerator.autocast():
                return way(inner, rows)

        def through_the_wrapper() -> Found:  # whose forward DDP has to see
            return _ForwardRedirection()(model, unwrapped, shared)

        if self.shares is None:

            def apart() -> Tensor:
                with torch.no_grad():
                    return difference(whole()[0], through_the_wrapper()[0], batch["attention_mask"][:, -kept:])

            self.shares = self._decide_by(inner, apart, checkpoints=checkpoints)
            if not self.shares:
                return whole()
        return through_the_wrapper()

    def _decide_by(self, inner: PreTrainedModel, difference: Callable[[], Tensor], *, checkpoints: bool) -> bool:
        """Whether prompts are shared: as the option says, or as structure and a trial do.

        Args:
            inner: The model.
            difference: Tries it; the mean |difference| of log-probs from those of whole prompts [nats].
            checkpoints: Whether its passes are checkpointed.
        """
        reason = "weights are sharded" if is_sharded(self._trainer) else None
        if reason is None and has_dropout(self._trainer.model):
            reason = "dropout would be the same for all rollouts of a prompt"
        reason = reason or sharing_unsupported_reason(inner, checkpoints=checkpoints)
        if self._trainer.args.shared_prompt_update == "always":
            if reason is not None:
                raise ValueError(f"shared_prompt_update='always': {reason}; take 'auto'")
            return True
        if reason is None:
            reason = why_trial_failed(difference, "log-probs", inner.dtype)
        if reason is not None:
            self._say(
                f"the update runs every prompt once per rollout: {reason}. This is slower and gives the same numbers."
            )
        return reason is None

    def distillation(self, batch: DistillationBatch) -> DistillationBatch:
        """A batch to distil from whose contexts run once, where that is exact, and it is not known to be futile."""
        if self._off:
            return batch
        inner = inner_model(self._trainer, self._trainer.model)
        if prefix_cache_unsupported_reason(batch.prompts, [*batch.student, *batch.teacher]) is not None:
            return batch
        if self.shares is None and checkpoints_activations(inner):
            self._say("the update runs every prompt once per rollout: gradient checkpointing leaves no cache.")
            self.shares = False
            return batch
        shared = replace(batch, states=branched_states)
        if self.shares is None:

            def log_probs(of: DistillationBatch) -> Tensor:
                hidden = of.states(inner, of.prompts, of.teacher)[of.counted]
                return sampled_log_probs(hidden, Head.of(inner), of.tokens, self._trainer.temperature)

            def apart() -> Tensor:
                with torch.no_grad(), self._trainer.accelerator.autocast():
                    return (log_probs(shared) - log_probs(batch)).abs().mean()

            self.shares = self._decide_by(inner, apart, checkpoints=False)
        return shared if self.shares else batch

    # Sampling ---------------------------------------------------------------------------------------------------------

    def generate(self, whole: Callable[..., Any], prompt_ids, images, multimodal_fields, *args, **kwargs) -> Any:
        """TRL's `_generate_single_turn`, of which `whole` is its own."""
        trainer = self._trainer
        others = trainer.use_vllm or trainer.use_transformers_continuous_batching or is_sharded(trainer)
        if others or trainer.args.shared_prompt_update == "never":
            return whole(prompt_ids, images, multimodal_fields, *args, **kwargs)
        prompts = self._shared_prompts(prompt_ids, images, multimodal_fields)
        inner = inner_model(trainer, trainer.model)
        with self.generator.generating(inner, trainer.eos_token_ids, prompts):
            return whole(prompt_ids, images, multimodal_fields, *args, **kwargs)

    def _shared_prompts(self, prompt_ids: list[list[int]], images: Any, fields: dict[str, Any]) -> SharedPrompts | None:
        """Which rows have which prompt; None where none is shared."""
        if not known_images(fields):
            return None
        try:
            batch: Batch = {name: _stacked(value) for name, value in fields.items() if name not in TOKEN_TYPES}
        except RuntimeError:  # images of different shapes, which TRL pads
            return None
        if images is not None:
            batch["num_images"] = [len(of_row or []) for of_row in images]
        if not _splits_by_row(batch, len(prompt_ids)):
            return None
        shown = images_of_rows(batch)
        firsts, owners = distinct_prompts(prompt_ids, shown.same)
        if len(firsts) == len(owners):
            return None
        device = inner_model(self._trainer, self._trainer.model).device
        return SharedPrompts(firsts, owners, {name: value.to(device) for name, value in shown.of(firsts).items()})

    def _say(self, line: str) -> None:
        if self._trainer.accelerator.is_main_process:
            _logger.warning("%s", line)

    # Which rows run together ------------------------------------------------------------------------------------------

    @contextmanager
    def training_step(self) -> Iterator[None]:
        """A training step, in which a frozen vision tower runs once an image."""
        trainer = self._trainer
        if trainer.args.shared_prompt_update == "never" or is_sharded(trainer):
            yield
            return
        with self.features.kept(inner_model(trainer, trainer.model)):
            yield

    def before_generation(self) -> None:
        """Forget the image features of the batch before."""
        self.features.forget()

    def generated(self, batch: Batch) -> None:
        """Take note of a generation batch in its order, to which evidence will be added."""
        self._in_order = batch

    def regrouped(self, inputs: Batch) -> Batch:
        """The micro-batch that TRL has prepared, with groups kept together where that changes no number."""
        batch, self._in_order = self._in_order, None
        trainer = self._trainer
        if batch is None or not trainer.model.training or not self._keeps_groups():
            return inputs
        steps = trainer.args.steps_per_generation
        parts = split_tensor_dict(split_pixel_values_by_grid(batch), steps)
        trainer._buffered_inputs = [unsplit_pixel_values_by_grid(part) for part in parts]
        return trainer._buffered_inputs[trainer._step % steps]

    def _keeps_groups(self) -> bool:
        args = self._trainer.args
        return (
            args.shared_prompt_update != "never"
            and self.shares is not False
            and 1 < args.steps_per_generation == args.gradient_accumulation_steps
            and args.loss_type in _WITHOUT_ORDER
            and args.top_entropy_quantile == 1.0
        )


def rows_of(batch: Batch, width: int) -> Rows | None:
    """A batch of log-probs as rows that share prompts; None where there is nothing to share.

    Args:
        batch: (B, P + T) `input_ids` and `attention_mask`, and what TRL passes along.
        width: P.
    """
    ids, mask = batch["input_ids"], batch["attention_mask"]
    images = images_of_rows(batch)
    firsts, owners = distinct(ids[:, :width], mask[:, :width], images.same)
    if len(firsts) == len(ids):
        return None
    begin = int(mask[:, :width].any(0).int().argmax())  # padding that no prompt of these needs
    types = {name: batch[name][:, begin:] for name in TOKEN_TYPES if name in batch}
    rows = Rows(
        ids[:, begin:],
        mask[:, begin:],
        width - begin,
        torch.tensor(owners, device=ids.device),
        torch.tensor(firsts, device=ids.device),
        types,
        images.of(firsts),
    )
    return rows if rows.why_whole() is None else None


def _stacked(values: Any) -> Tensor:
    """A field of a processor's output as a tensor: processors return tensors, lists of tensors, or nested lists.

    Raises:
        RuntimeError: If the shapes differ.
    """
    if isinstance(values, list | tuple) and values and isinstance(values[0], Tensor | np.ndarray | list | tuple):
        return torch.stack([_stacked(one) for one in values])
    return torch.as_tensor(values)


def _splits_by_row(batch: Batch, rows: int) -> bool:
    """Whether TRL can split `pixel_values` by rows; it counts the tiles of images after sampling only."""
    pixels = batch.get("pixel_values")
    if pixels is None or "image_grid_thw" in batch or "image_position_ids" in batch:
        return True
    return "spatial_shapes" not in batch and len(pixels) in (rows, sum(batch.get("num_images", ())))
