"""Prompts once in the policy's own log-probs: those of the update, of the policy that sampled, and of the reference."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl import GRPOTrainer
from trl.models.utils import _ForwardRedirection
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

from ..data.checks import check_image_sizes
from ..data.images import with_opaque_images
from ..distillation.losses import DistillationBatch
from ..scoring.generation import SharedPrompts, Sparing
from ..scoring.head import Head, sampled_log_probs
from ..scoring.image_features import ImageFeatures
from ..scoring.passes import ScoringModel, branched_states, why_trial_failed
from ..scoring.requests import TOKEN_TYPES, distinct_prompts, why_not_branched
from ..scoring.score import has_dropout
from ..scoring.shared_rows import (
    Found,
    Rows,
    branched,
    difference,
    distinct,
    packed,
    packing_pays,
    why_not_shared,
)
from .batches import Batch, images_of_rows, known_images, select_rows
from .layout import checkpoints_activations, inner_model, is_sharded

_logger = logging.getLogger(__name__)

# TRL's means over rollouts, or over the tokens of an optimiser step, which the order of its rows does not change.
_WITHOUT_ORDER = ("grpo", "dapo", "dr_grpo", "cispo", "luspo", "sapo", "vespo")
_NO_COMPANIONS = ("batch_size", "compute_entropy", "compute_aux_loss")


class SharedPromptTrainer(GRPOTrainer):
    """TRL's trainer, whose passes for log-probs run each distinct prompt of a micro-batch once.

    Where all micro-batches of a generation belong to one optimiser step, groups stay together in them. TRL shuffles
    rows among them, which changes nothing but which prompts run together.
    """

    _shares: bool | None = None  # None: not decided yet
    _buffered_inputs: list[Batch] | None
    _in_order: Batch | None = None  # the generation batch, before TRL shuffles it

    def __init__(self, *args, **kwargs):
        self._sparing = Sparing(self._say)
        self._features = ImageFeatures(self._say)
        super().__init__(*args, **kwargs)
        if self._is_vlm:  # the processor is known from here on
            check_image_sizes(self.train_dataset, self.processing_class)

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        whole = super()._get_per_token_logps_and_entropies
        options = {**dict(zip(_NO_COMPANIONS, args, strict=False)), **kwargs}
        if self._shares is False or options.get("compute_aux_loss") or self.args.shared_prompt_update == "never":
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
            found.append(self._read(model, part, logits_to_keep, entropies))
        log_probs = torch.cat([log_probs for log_probs, _ in found])
        return (
            log_probs,
            torch.cat([entropy for _, entropy in found if entropy is not None]) if entropies else None,
            None,
        )

    def _read(self, model: Any, batch: Batch, kept: int, entropies: bool) -> Found:
        """Log-probs and entropies of a batch's completions: with its prompts shared where that is exact and pays."""

        def whole() -> Found:
            found = super(SharedPromptTrainer, self)._get_per_token_logps_and_entropies(
                model, logits_to_keep=kept, compute_entropy=entropies, **batch
            )
            return found[0], found[1]

        rows = rows_of(batch, batch["input_ids"].shape[1] - kept)
        if rows is None:
            return whole()
        unwrapped = self.accelerator.unwrap_model(model)
        inner = inner_model(self, model)
        checkpoints = checkpoints_activations(inner) and torch.is_grad_enabled()
        if checkpoints and not packing_pays(inner, rows):
            return whole()
        way = packed if checkpoints else branched

        def shared() -> Found:
            with self.accelerator.autocast():
                return way(inner, rows)

        def through_the_wrapper() -> Found:  # whose forward DDP has to see
            return _ForwardRedirection()(model, unwrapped, shared)

        if self._shares is None:

            def apart() -> Tensor:
                with torch.no_grad():
                    return difference(whole()[0], through_the_wrapper()[0], batch["attention_mask"][:, -kept:])

            self._shares = self._decide_by(inner, apart, checkpoints=checkpoints)
            if not self._shares:
                return whole()
        return through_the_wrapper()

    def _decide_by(self, inner: PreTrainedModel, difference: Callable[[], Tensor], *, checkpoints: bool) -> bool:
        """Whether prompts are shared: as the option says, or as structure and a trial do.

        Args:
            inner: The model.
            difference: Tries it; the mean |difference| of log-probs from those of whole prompts [nats].
            checkpoints: Whether its passes are checkpointed.
        """
        reason = "weights are sharded" if is_sharded(self) else None
        if reason is None and has_dropout(self.model):
            reason = "dropout would be the same for all rollouts of a prompt"
        reason = reason or why_not_shared(ScoringModel(inner, inner), checkpoints=checkpoints)
        if self.args.shared_prompt_update == "always":
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

    def _sharing(self, batch: DistillationBatch) -> DistillationBatch:
        """A batch to distil from whose contexts run once, where that is exact, and it is not known to be futile."""
        if self._shares is False or self.args.shared_prompt_update == "never":
            return batch
        inner = inner_model(self, self.model)
        if why_not_branched(batch.prompts, [*batch.student, *batch.teacher]) is not None:
            return batch
        if self._shares is None and checkpoints_activations(inner):
            self._say("the update runs every prompt once per rollout: gradient checkpointing leaves no cache.")
            self._shares = False
            return batch
        shared = replace(batch, states=branched_states)
        if self._shares is None:

            def log_probs(of: DistillationBatch) -> Tensor:
                hidden = of.states(inner, of.prompts, of.teacher)[of.counted]
                return sampled_log_probs(hidden, Head.of(inner), of.tokens, self.temperature)

            def apart() -> Tensor:
                with torch.no_grad(), self.accelerator.autocast():
                    return (log_probs(shared) - log_probs(batch)).abs().mean()

            self._shares = self._decide_by(inner, apart, checkpoints=False)
        return shared if self._shares else batch

    # Sampling ---------------------------------------------------------------------------------------------------------

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, *args, **kwargs):
        generate = super()._generate_single_turn
        others = self.use_vllm or self.use_transformers_continuous_batching or is_sharded(self)
        if others or self.args.shared_prompt_update == "never":
            return generate(prompt_ids, images, multimodal_fields, *args, **kwargs)
        prompts = self._shared_prompts(prompt_ids, images, multimodal_fields)
        with self._sparing.generating(inner_model(self, self.model), self.eos_token_ids, prompts):
            return generate(prompt_ids, images, multimodal_fields, *args, **kwargs)

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
        device = inner_model(self, self.model).device
        return SharedPrompts(firsts, owners, {name: value.to(device) for name, value in shown.of(firsts).items()})

    def _say(self, line: str) -> None:
        if self.accelerator.is_main_process:
            _logger.warning("%s", line)

    # Which rows run together ------------------------------------------------------------------------------------------

    def training_step(self, *args, **kwargs):
        if self.args.shared_prompt_update == "never" or is_sharded(self):
            return super().training_step(*args, **kwargs)
        with self._features.kept(inner_model(self, self.model)):
            return super().training_step(*args, **kwargs)

    def _generate_and_score_completions(self, inputs):
        self._features.forget()
        if self._is_vlm:
            inputs = [with_opaque_images(row) for row in inputs]
        self._in_order = super()._generate_and_score_completions(inputs)  # to which evidence will be added
        return self._in_order

    def _prepare_inputs(self, generation_batch):
        self._in_order = None
        inputs = super()._prepare_inputs(generation_batch)
        if self._in_order is None or not self.model.training or not self._keeps_groups():
            return inputs
        steps = self.args.steps_per_generation
        parts = split_tensor_dict(split_pixel_values_by_grid(self._in_order), steps)
        self._in_order = None
        self._buffered_inputs = [unsplit_pixel_values_by_grid(part) for part in parts]
        return self._buffered_inputs[self._step % steps]

    def _keeps_groups(self) -> bool:
        args = self.args
        return (
            args.shared_prompt_update != "never"
            and self._shares is not False
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
