"""`CEPOTrainer`: TRL's GRPOTrainer with token advantages.

    rollouts -> references -> hints -> log-probs -> evidence -> token advantages -> loss

TRL samples the rollouts, rewards them and computes the loss, and calls three hooks of this class: `_calculate_rewards`
collects texts and rewards, `_generate_and_score_completions` adds evidence to the generation batch, and `_compute_loss`
replaces the (B,) advantages by (B, T) token advantages.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor, nn

from ..acceleration import fast
from ..data.checks import can_be_explained, check_solution
from ..data.files import write_whole
from ..data.images import broken_images_named
from ..data.models import freeze_vision_tower
from ..data.pixels import with_opaque_images
from ..data.reward_validation import refuse_infinite, validated
from ..data.sampling import check_special_tokens, text_of_messages
from ..distillation.losses import DistillationBatch
from ..methods.stages import Evidence
from ..references.extraction import final_answer, text_of_completion
from ..references.groups import Fallback, Group, References, Rollout
from ..scoring.pipeline import no_evidence, verdicts_of
from ..scoring.prompts import PromptEncoder, thinking_opening
from ..scoring.requests import Prompt
from .advantages import assign_credit, mask_unscored_rollouts, with_token_advantages
from .batches import Batch, prompt_of, refuse_mixed_images, rows_with_gradient, trained_tokens
from .cepo_config import CEPOConfig
from .completion_batch import CompletionBatch
from .distillation import distillation_batch, divergence_loss, find_teacher_prompts
from .distributed import Distributed
from .health_warnings import FailedUploads, HealthWarnings
from .metrics import Stopwatch, credit_metrics, credit_sums, verdict_shares
from .model_card import RunFacts, paper_of, run_section
from .nonfinite_gradients import NonfiniteGradients
from .patches import head_gathered_with_gradient
from .resuming import ResumingTrainer
from .samples import Samples
from .teachers import FollowPolicy, Teachers
from .validation import first_error_index, reward_index, uses_solution, validate_data, validate_run


class CEPOTrainer(ResumingTrainer):
    """Trainer for CEPO and related methods (`CEPOConfig.method`), a drop-in replacement for TRL's [`GRPOTrainer`].

    The constructor, dataset columns, reward functions, PEFT, callbacks and loggers are those of GRPOTrainer. Methods
    with teachers need conversational prompts and a `solution` column.

    Example:

    ```python
    from cepo import CEPOConfig, CEPOTrainer, answer_reward, load_figures, policy_path

    trainer = CEPOTrainer(
        model=policy_path(),
        reward_funcs=answer_reward,
        args=CEPOConfig(output_dir="out", max_steps=1),
        train_dataset=load_figures("train", 100),
    )
    trainer.train()
    ```

    Metrics, beside TRL's: `cepo/correct` and `cepo/verdicts/missing` (see `verdict_shares`), `cepo/coefficient`
    (lambda), `cepo/rows_scored` (share of rollouts scored by teachers), `cepo/fallback/*` (share of the rollouts with
    an advantage that lack the r- of their rule), `cepo/evidence/*` and `cepo/credit/*` (see `credit_metrics`),
    `cepo/divergence` [nats] of OPSD and SDPO, `cepo/skipped_steps`, and `cepo/seconds/generation`, `teachers` and
    `update`.

    Raises:
        TypeError: If `args` is not a `CEPOConfig`.
        ValueError: For a dataset or options that cannot work, before any training.
    """

    _tag_names = ["trl", "cepo"]
    reward_funcs: list[Any]
    #: Called whenever a model card is written.
    run_facts: Callable[[], RunFacts] = RunFacts

    def __init__(self, model, reward_funcs=None, args: CEPOConfig | None = None, train_dataset=None, *rest, **kwargs):
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = CEPOConfig(f"{name.rstrip('/').split('/')[-1]}-CEPO")
        if not isinstance(args, CEPOConfig):
            raise TypeError(f"CEPOTrainer takes a CEPOConfig as `args`, got {type(args).__name__}")
        makes_prompts = kwargs.get("environment_factory") is not None
        validate_data(args, train_dataset, reward_funcs, environment_prompts=makes_prompts)
        self.method = args.method_spec
        self._name, self._paper = self.method.name.upper(), paper_of(self.method)
        self._needs_solution = uses_solution(args)
        saves = args.log_completions and (self._needs_solution or can_be_explained(train_dataset))
        # Whether answers and verdicts of a generation batch are gathered, in a `CompletionBatch`.
        self._collects = self._needs_solution or self.method.changes_advantages or saves
        self._samples = Samples(self, saves=saves)
        self._stopwatch = Stopwatch("generation", "teachers", "update")
        self._completion_batch: CompletionBatch | None = None  # while one is scored
        self._divergence_sums: list[Tensor] = []
        self._gradients = NonfiniteGradients(args.max_nonfinite_grad_steps)
        super().__init__(model, reward_funcs, args, train_dataset, *rest, **kwargs)
        template = {"chat_template": self.chat_template, **(self.chat_template_kwargs or {})}
        self._thinking = thinking_opening(self.processing_class, template)
        self.reward_funcs = [
            func if isinstance(func, nn.Module) else validated(func, name, self._thinking, args.answer_extractor)
            for func, name in zip(self.reward_funcs, self.reward_func_names, strict=True)
        ]
        validate_run(self)
        names = self.reward_func_names
        # The first reward function decides which rollouts are correct, unless the option names another.
        self._correctness_index = reward_index(args, "correctness_reward", names) or 0
        self._first_error_index = first_error_index(args, names, self.reward_weights, self._correctness_index)
        # Whether rollouts without a gradient are left out of the update.
        self._skips = args.skips and not self.aux_loss_enabled
        if args.freeze_vision_tower:
            freeze_vision_tower(self.model)
        self._distributed = Distributed(self.accelerator)
        self._teachers = Teachers(self, args, self._distributed)
        follow = FollowPolicy(self._teachers, self._gradients)
        for callback in (self._gradients, follow, HealthWarnings(), FailedUploads(self)):
            self.add_callback(callback)
        if self._needs_solution:
            self._encoder = PromptEncoder(self.processing_class, {"tools": self.tools or None, **template})
        shortcuts = fast()  # wraps methods of this trainer: each prompt is encoded once per group
        self._sharing = None if shortcuts is None else shortcuts.share_prompts(self)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of this process in each part of training; `update` is the loss, forward and backward."""
        return self._stopwatch.seconds

    def train(self, *args, **kwargs):
        with broken_images_named(self.train_dataset, "the training set"):
            output = super().train(*args, **kwargs)
        self._gradients.raise_if_stopped(self.args.output_dir, self.state.global_step)
        return output

    # Hooks of TRL and transformers, in the order of a training step ---------------------------------------------------

    def training_step(self, model, inputs, num_items_in_batch):
        with self._stopwatch.measure("update"):
            loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self._log_cepo("coefficient", self._coefficient)
            for part, seconds in self._stopwatch.lap().items():
                self._log_cepo(f"seconds/{part}", seconds)
            self._log_divergence()
        return loss

    def _generate_and_score_completions(self, inputs):
        refuse_mixed_images(inputs)
        if not isinstance(self.train_dataset, Dataset):  # the rows of a stream are unknown before they arrive
            check_special_tokens([row["prompt"] for row in inputs], self.processing_class, "a batch of the stream")
        if self._is_vlm:
            inputs = [with_opaque_images(row) for row in inputs]
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)
        with self._stopwatch.measure(None):  # pauses `update`
            batch = super()._generate_and_score_completions(inputs)
            with self._stopwatch.measure("teachers"):
                scored = 0.0
                if self.args.uses_divergence_loss:
                    scored = find_teacher_prompts(self, batch)
                elif self._coefficient > 0:
                    scored = self._find_evidence(batch)
            self._log_cepo("rows_scored", scored)
            if self._completion_batch is not None:
                self._samples.keep(self._completion_batch, batch)
        self._completion_batch = None
        return batch

    def _generate(self, prompts):
        with self._stopwatch.measure("generation" if self.model.training else None):
            return super()._generate(prompts)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        refuse_infinite(rewards, self.reward_func_names)
        if self.model.training:
            verdicts = rewards[:, self._correctness_index]
            correct, missing = verdict_shares(verdicts, self.args.correctness_threshold)
            self._log_cepo("correct", correct)
            self._log_cepo("verdicts/missing", missing)
            if self._collects:
                self._completion_batch = self._collect(inputs, prompts, completions, rewards)
        return mask_unscored_rollouts(rewards, self.reward_weights)

    def _compute_loss(self, model, inputs):
        if not self.model.training:
            return super()._compute_loss(model, inputs)
        if self.args.uses_divergence_loss:
            loss, sums = divergence_loss(self, model, inputs)
            self._divergence_sums.append(sums)
            return loss
        inputs = self._with_token_advantages(inputs)
        if not self._skips:
            return super()._compute_loss(model, inputs)
        # Every process keeps as many rows as the one with most; the factor corrects the mean for the rows left out.
        most = self._distributed.all_reduce_max if self.accelerator.num_processes > 1 else None
        rows, factor = rows_with_gradient(inputs, self.loss_type, most)
        if rows is None:
            # As in GRPO, a loss of 0 has zero gradients rather than none, so that momentum still moves the weights.
            return sum(p.flatten()[:1].sum() * 0.0 for p in model.parameters() if p.requires_grad)
        return super()._compute_loss(model, rows) * factor

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        with head_gathered_with_gradient() if self.is_fsdp_enabled else nullcontext():
            return self._policy_log_probs(model, *args, **kwargs)

    def _policy_log_probs(self, model, *args, **kwargs):
        """Log-probs by TRL's forward pass, or with shared prompts (`fast/`)."""
        return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._gradients.check(self, norm)
        return norm

    def log(self, logs, start_time=None):
        if self._is_vlm and "wandb" in self.args.report_to:
            # W&B refuses a table column with parts of different types, such as text and images.
            prompts = self._logs["prompt"]
            for index, prompt in enumerate(prompts):
                if not isinstance(prompt, str):
                    prompts[index] = [{"role": role, "content": text} for role, text in text_of_messages(prompt)]
        super().log(logs, start_time)

    def create_model_card(self, model_name=None, dataset_name=None, tags=None):
        """Write TRL's model card and a section on the run to the output directory."""
        if not self.is_world_process_zero():
            return
        facts = self.run_facts()
        super().create_model_card(
            model_name or Path(self.args.output_dir).name, dataset_name or facts.hub_dataset, tags
        )
        card = Path(self.args.output_dir) / "README.md"
        text = card.read_text(encoding="utf-8").rstrip()
        # TRL writes None for a base model from a folder, and for a model without a name on the Hub.
        base, name = (Path(path).name for path in (self.model.config._name_or_path, self.args.output_dir))
        text = text.replace("[None](https://huggingface.co/None)", f"`{base}`").replace(
            'model="None"', f'model="{name}"'
        )
        write_whole(card, f"{text}\n\n{run_section(self, facts)}")

    def _save_extra(self, folder):
        self._teachers.weights.save(folder)

    def _load_extra(self, folder):
        self._teachers.weights.load(folder)

    # Stages -----------------------------------------------------------------------------------------------------------

    def _collect(
        self, rows: list[dict[str, Any]], prompts: list[Any], completions: list[Any], rewards: Tensor
    ) -> CompletionBatch:
        """Answers, rewards and verdicts of all processes, since groups may span processes."""
        args = self.args
        texts = [self._thinking + text_of_completion(completion) for completion in completions]
        answers = [final_answer(text, args.answer_extractor) for text in texts]
        solutions = [
            check_solution(row, f"a row of the training set (prompt {row['prompt']!r})", args.answer_extractor)
            if self._needs_solution
            else str(row.get("solution") or "")
            for row in rows
        ]
        gathered = gather_object(list(zip(answers, texts, solutions, strict=True)))
        totals = (rewards * self.reward_weights.to(rewards.device)).nansum(dim=1).tolist()
        rollouts = []
        for (answer, text, _), total, values in zip(gathered, totals, rewards.tolist(), strict=True):
            verdict = values[self._correctness_index]  # NaN if the function returned None
            error = math.nan if self._first_error_index is None else values[self._first_error_index]
            correct = None if math.isnan(verdict) else verdict >= args.correctness_threshold
            first_error = None if math.isnan(error) else int(error)
            rollouts.append(Rollout(answer, total, correct, text, first_error, local=False))
        first = self.accelerator.process_index * len(rows)
        solutions = [solution for *_, solution in gathered]
        return CompletionBatch(rows, prompts, rollouts, solutions, self.num_generations, first)

    def _groups(self, batch: Batch) -> tuple[list[Group], list[Prompt]]:
        """Groups of a generation batch, and their prompts."""
        assert self._completion_batch is not None  # TRL calls `_calculate_rewards` for every batch
        groups, rows = self._completion_batch.groups(batch)
        return groups, self._prompts(batch, rows)

    def _find_evidence(self, batch: Batch) -> float:
        """Add evidence to a generation batch; returns the share of rollouts that teachers have scored."""
        advantages, mask = batch["advantages"], trained_tokens(batch)
        groups, prompts = self._groups(batch)
        verdicts = verdicts_of(groups).to(advantages)
        if not self.method.needs_solution:  # the method needs no evidence: it is 0
            self._add_evidence(batch, no_evidence(mask.shape, mask.device), verdicts)
            return 0.0
        wanted = (self.method.rollout_filter(advantages, verdicts, self.args.method_options) & mask.any(dim=1)).tolist()
        pipeline = self._teachers.pipeline(self._encoder, batch)
        with self._teachers.scoring_mode():
            (scored,) = pipeline.find_evidence(  # references, hints, log-probs, evidence
                [self.args.method_options],
                groups,
                prompts,
                scored=wanted,
                student=self._teachers.student_logps(batch),
                width=mask.shape[1],
                device=mask.device,
            )
        self._add_evidence(batch, scored.evidence, verdicts)
        if not self.method.needs_teachers:
            return 0.0
        self._log_fallbacks(scored.references, wanted)
        return self._distributed.mean(torch.tensor([bool(c) for c in scored.contexts], device=mask.device))

    def _add_evidence(self, batch: Batch, evidence: Evidence, verdicts: Tensor) -> None:
        """Add (B, ...) evidence to a generation batch, and log the token advantages that it gives at this step."""
        batch |= {
            "evidence": evidence.values,
            "scored": evidence.scored,
            "unscorable": evidence.unscorable,
            "verdicts": verdicts,
        }
        inputs, result = assign_credit(batch, self.args.method_options, self.state.global_step, self._distributed.sum)
        sums = credit_sums(inputs, result)
        totals = dict(zip(sums, self._distributed.sum_numbers(list(sums.values())), strict=True))
        for name, value in credit_metrics(totals, signed=self.method.evidence_is_signed).items():
            self._log_cepo(name, value)

    def _with_token_advantages(self, inputs: Batch) -> Batch:
        return with_token_advantages(inputs, self.args.method_options, self.state.global_step, self._distributed.sum)

    def _distillation_batch(self, inputs: Batch) -> DistillationBatch:
        return distillation_batch(inputs, self._image_token)

    def _prompts(self, batch: Batch, rows: Sequence[int]) -> list[Prompt]:
        return [prompt_of(batch, row, self._image_token) for row in rows]

    @property
    def _image_token(self) -> int | None:
        """The placeholder token of image parts, if the model has one."""
        config = self.model.config
        return getattr(config, "image_token_id", getattr(config, "image_token_index", None))

    @property
    def _coefficient(self) -> float:
        """lambda."""
        return self.args.coefficient_at(self.state.global_step)

    # Metrics ----------------------------------------------------------------------------------------------------------

    def _log_cepo(self, name: str, value: float) -> None:
        self._metrics["train"][f"cepo/{name}"].append(value)

    def _log_divergence(self) -> None:
        """Mean divergence and entropy [nats] over the tokens of a step."""
        if not self._divergence_sums:
            return
        sums = torch.stack(self._divergence_sums).sum(0)
        self._divergence_sums.clear()
        divergence, entropy, tokens = self._distributed.sum(sums).tolist()
        if tokens:
            self._log_cepo("divergence", divergence / tokens)
            self._metrics["train"]["entropy"].append(entropy / tokens)

    def _log_fallbacks(self, references: Sequence[References], wanted: Sequence[bool]) -> None:
        """Log the share of the wanted rollouts with a fallback, for each reason."""
        counts, reasons = Counter(r.fallback for r in itertools.compress(references, wanted)), get_args(Fallback)
        total, *numbers = self._distributed.sum_numbers([sum(wanted), *(counts[reason] for reason in reasons)])
        for reason, number in zip(reasons, numbers, strict=True):
            self._log_cepo(f"fallback/{reason}", number / total if total else 0.0)
