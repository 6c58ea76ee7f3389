"""Run each distinct prompt once in training: in the policy's log-probs, in sampling, and in the divergence loss.

`PromptSharing` wraps methods of a `CEPOTrainer`, which works without it.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
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
from ..scoring.pipeline import LogProbs, Pipeline
from ..scoring.requests import TOKEN_TYPES, Prompt, Request, distinct_prompts
from ..trainer.batches import Batch, images_of_rows, known_images, prompts_of, select_rows, tokens_of
from ..trainer.sharding import inner_model, is_sharded
from .generation import PrefixSharingGenerator, SharedPrompts
from .image_features import ImageFeatures
from .tree import Tree, shared_prefixes, tree_of
from .tree_attention import tree_unsupported_reason
from .tree_forward import tree_log_probs, tree_states
from .trial import products_dtype, trial_failure

_logger = logging.getLogger(__name__)

# Losses that are means over rollouts or over the tokens of an optimizer step, whatever the order of rows.
_ORDERLESS_LOSSES = ("grpo", "dapo", "dr_grpo", "cispo", "luspo", "sapo", "vespo")
_SCALAR_ARGUMENTS = ("batch_size", "compute_entropy", "compute_aux_loss")
# (B, T) log-probs and entropies.
_Found = tuple[Tensor, Tensor | None]


class PromptSharing:
    """Wraps methods of a trainer, each by a method that takes the original first.

    If all micro-batches of a generation belong to one optimizer step, groups stay together in them. TRL's shuffle of
    rows would only decide which prompts run together.

    Args:
        trainer: A `CEPOTrainer`.

    Attributes:
        shares: Whether the update shares prompts; None before the first batch, on which a trial decides.
    """

    def __init__(self, trainer: Any):
        self._trainer = trainer
        self.shares: bool | None = None
        self.generator = PrefixSharingGenerator(self._warn)
        self.features = ImageFeatures(self._warn)
        self._batch: Batch | None = None  # the generation batch in the order of its groups
        if trainer.args.shared_prompt_update != "never":
            trainer.training_step = partial(self._training_step, trainer.training_step)
            trainer._prepare_inputs = partial(self._prepare_inputs, trainer._prepare_inputs)
            trainer._generate_and_score_completions = partial(self._new_batch, trainer._generate_and_score_completions)
            trainer._generate_single_turn = partial(self._generate_single_turn, trainer._generate_single_turn)
            trainer._policy_log_probs = partial(self._policy_log_probs, trainer._policy_log_probs)
            trainer._distillation_batch = partial(self._distillation_batch, trainer._distillation_batch)
        if trainer.args.shared_prompt != "never":
            trainer._teachers.pipeline = partial(self._pipeline, trainer._teachers.pipeline)

    @property
    def _model(self) -> PreTrainedModel:
        return inner_model(self._trainer, self._trainer.model)

    def _warn(self, line: str) -> None:
        if self._trainer.accelerator.is_main_process:
            _logger.warning("%s", line)

    # Teachers ---------------------------------------------------------------------------------------------------------

    def _pipeline(self, original: Callable[..., Pipeline], *args: Any, **kwargs: Any) -> Pipeline:
        """The pipeline, whose passes with the same weights run the vision tower once per image."""
        pipeline = original(*args, **kwargs)
        teachers = pipeline.teacher_log_probs
        return replace(
            pipeline,
            log_probs=self._with_kept_features(pipeline.log_probs),
            teacher_log_probs=None if teachers is None else self._with_kept_features(teachers),
        )

    def _with_kept_features(self, log_probs: LogProbs) -> LogProbs:
        def score(prompts: Sequence[Prompt], requests: Sequence[Request]) -> list[Tensor]:
            with self.features.kept(self._model, only_here=True):
                return log_probs(prompts, requests)

        return score

    # Batches ----------------------------------------------------------------------------------------------------------

    def _training_step(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a frozen vision tower once per image in a training step."""
        with self.features.kept(self._model):
            return original(*args, **kwargs)

    def _new_batch(self, original: Callable[..., Batch], *args: Any, **kwargs: Any) -> Batch:
        self.features.forget()
        self._batch = original(*args, **kwargs)
        return self._batch

    def _prepare_inputs(self, original: Callable[..., Batch], *args: Any, **kwargs: Any) -> Batch:
        """The micro-batch, with groups kept together where the loss allows it."""
        inputs = original(*args, **kwargs)
        batch, self._batch = self._batch, None
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
            self.shares is not False
            and 1 < args.steps_per_generation == args.gradient_accumulation_steps
            and args.loss_type in _ORDERLESS_LOSSES
            and args.top_entropy_quantile == 1.0
        )

    # Log-probs --------------------------------------------------------------------------------------------------------

    def _policy_log_probs(
        self, original: Callable[..., Any], model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
    ) -> Any:
        """TRL's `_get_per_token_logps_and_entropies`."""
        options = {**dict(zip(_SCALAR_ARGUMENTS, args, strict=False)), **kwargs}
        if self.shares is False or options.get("compute_aux_loss"):
            return original(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)
        tensors = {k: v for k, v in options.items() if k not in _SCALAR_ARGUMENTS and v is not None}
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, **tensors}
        count, entropies = len(input_ids), options.get("compute_entropy", False)
        size = options.get("batch_size") or count
        found = []
        for start in range(0, count, size):
            part = batch if size >= count else select_rows(batch, range(start, min(start + size, count)))
            found.append(self._log_probs_of(original, model, part, logits_to_keep, entropies))
        log_probs = torch.cat([log_probs for log_probs, _ in found])
        return log_probs, torch.cat([e for _, e in found if e is not None]) if entropies else None, None

    def _log_probs_of(
        self, original: Callable[..., Any], model: Any, batch: Batch, kept: int, entropies: bool
    ) -> _Found:
        """Log-probs and entropies of completions, with prompts shared where that is exact."""

        def whole() -> _Found:
            return original(model, logits_to_keep=kept, compute_entropy=entropies, **batch)[:2]

        tree = tree_of_rows(batch, kept, self._trainer._image_token)
        mask = batch["attention_mask"][:, -kept:].bool()

        def shared() -> _Found:
            if tree is None:
                return whole()
            with self._trainer.accelerator.autocast():
                log_probs, entropy = tree_log_probs(model, inner_model(self._trainer, model), *tree)
            zeros = log_probs.new_zeros(mask.shape)
            rows = zeros.masked_scatter(mask, log_probs)
            return rows, zeros.masked_scatter(mask, entropy) if entropies and entropy is not None else None

        if self.shares is None:
            self._decide(tree is not None, lambda: whole()[0][mask], lambda: shared()[0][mask])
        return shared() if self.shares else whole()

    def _decide(self, shareable: bool, whole: Callable[[], Tensor], shared: Callable[[], Tensor]) -> None:
        """Set `shares`, by the option, the model's structure and a trial, on all processes together.

        Args:
            shareable: Whether the rows of this process share prompts. Without any, the decision is left to later rows.
            whole, shared: Log-probs from whole and from shared prompts [nats].
        """
        most = self._trainer._distributed.all_reduce_max
        if not most(shareable):
            return
        reason = tree_unsupported_reason(self._model)
        if has_dropout(self._trainer.model):
            reason = "all rollouts of a prompt would share its dropout"
        if self._trainer.args.shared_prompt_update == "always":
            if reason is not None:
                raise ValueError(f"shared_prompt_update='always': {reason}; use 'auto'")
        elif reason is None:
            with torch.no_grad(), self._trainer.accelerator.autocast():
                reason = trial_failure(whole(), shared(), products_dtype(self._model))
            if most(reason is not None):
                reason = reason or "a trial failed on another process"
        self.shares = reason is None
        if reason is not None:
            self._warn(
                f"the update runs every prompt once per rollout: {reason}. This is slower and gives the same numbers."
            )

    def _distillation_batch(self, original: Callable[..., DistillationBatch], inputs: Batch) -> DistillationBatch:
        """The rollouts of a divergence loss, whose distinct contexts run once where that is exact."""
        batch = original(inputs)
        if self.shares is False:
            return batch
        prefixes = shared_prefixes(batch.prompts, [*batch.student, *batch.teacher])
        shareable = len(prefixes) == len(batch.prompts)
        shared = replace(batch, states=tree_states) if shareable else batch
        if self.shares is None:
            trainer, inner = self._trainer, self._model

            def log_probs(of: DistillationBatch) -> Tensor:
                unwrapped = trainer.accelerator.unwrap_model(trainer.model)
                run = _ForwardRedirection()  # through the wrapper's forward, which sharding hooks into
                hidden = run(trainer.model_wrapped, unwrapped, of.states, inner, of.prompts, of.teacher)[of.counted]
                return sampled_log_probs(hidden, Head.of(inner), of.tokens, trainer.temperature)

            self._decide(shareable, lambda: log_probs(batch), lambda: log_probs(shared))
        return shared if self.shares else batch

    # Sampling ---------------------------------------------------------------------------------------------------------

    def _generate_single_turn(
        self, original: Callable[..., Any], prompt_ids, images, multimodal_fields, *args, **kwargs
    ) -> Any:
        trainer = self._trainer
        if trainer.use_vllm or trainer.use_transformers_continuous_batching or is_sharded(trainer):
            return original(prompt_ids, images, multimodal_fields, *args, **kwargs)
        prompts = self._shared_prompts(prompt_ids, images, multimodal_fields)
        with trainer.accelerator.autocast():
            dtype = products_dtype(self._model)
        with self.generator.generating(self._model, trainer.eos_token_ids, prompts, dtype):
            return original(prompt_ids, images, multimodal_fields, *args, **kwargs)

    def _shared_prompts(self, prompt_ids: list[list[int]], images: Any, fields: dict[str, Any]) -> SharedPrompts | None:
        """Which rows have the same prompt; None if all differ or the processor's fields are unknown."""
        if not known_images(fields):
            return None
        batch: Batch = {name: _stacked(value) for name, value in fields.items() if name not in TOKEN_TYPES}
        if any(value is None for value in batch.values()):  # images of different shapes, which TRL pads
            return None
        if images is not None:
            batch["num_images"] = [len(of_row or []) for of_row in images]
        if not _splits_by_row(batch, len(prompt_ids)):
            return None
        shown = images_of_rows(batch)
        firsts, owners = distinct_prompts(prompt_ids, shown.same)
        if len(firsts) == len(owners):
            return None
        device = self._model.device
        return SharedPrompts(firsts, owners, {name: value.to(device) for name, value in shown.of(firsts).items()})


def tree_of_rows(batch: Batch, width: int, image_token: int | None) -> tuple[list[Prompt], Tree] | None:
    """The prompts and the tree of a micro-batch; None if all prompts differ or cannot be shared.

    Args:
        batch: (B, P + T) `input_ids` and `attention_mask`, and the images and token types of TRL's batch.
        width: T.
        image_token: See `prompts_of`.
    """
    ids, mask = batch["input_ids"], batch["attention_mask"]
    contexts = tokens_of(ids[:, :-width], mask[:, :-width])
    firsts, owners = distinct_prompts(contexts, images_of_rows(batch).same)
    if len(firsts) == len(ids) or any(batch[name][:, -width:].any() for name in TOKEN_TYPES if name in batch):
        return None
    masked = {"prompt_ids": ids[:, :-width], "prompt_mask": mask[:, :-width]}
    prompts = prompts_of(batch | masked, firsts, image_token)
    completions = tokens_of(ids[:, -width:], mask[:, -width:])
    requests = [Request(owner, prompts[owner].ids, ids) for owner, ids in zip(owners, completions, strict=True)]
    prefixes = shared_prefixes(prompts, requests)
    return (prompts, tree_of(requests, prefixes)) if len(prefixes) == len(prompts) else None


def _stacked(values: Any) -> Tensor | None:
    """A field of a processor's output as a tensor: processors return tensors, lists of tensors, or nested lists.

    None if shapes differ.
    """
    if not (isinstance(values, list | tuple) and values and isinstance(values[0], Tensor | np.ndarray | list | tuple)):
        return torch.as_tensor(values)
    parts = [part for one in values if (part := _stacked(one)) is not None]
    equal = len(parts) == len(values) and len({part.shape for part in parts}) == 1
    return torch.stack(parts) if equal else None


def _splits_by_row(batch: Batch, rows: int) -> bool:
    """Whether `pixel_values` can be split by rows; TRL counts the tiles of images after sampling only."""
    pixels = batch.get("pixel_values")
    if pixels is None or "image_grid_thw" in batch or "image_position_ids" in batch:
        return True
    return "spatial_shapes" not in batch and len(pixels) in (rows, sum(batch.get("num_images", ())))
