"""`CEPOTrainer`: TRL's GRPOTrainer with credit placed token by token. The only file that knows TRL's internals.

TRL samples the rollouts, rewards them and computes the loss. Three seams are used: `_calculate_rewards` sees prompts,
texts and rewards (and gathers the rewards of groups that span processes); `_generate_and_score_completions` returns the
batch, to which the evidence is added; `_compute_loss` is given (B, T) token advantages, which TRL's losses accept.
"""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, get_args

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from trl.models.utils import _ForwardRedirection

from ..acceleration import fast
from ..data.checks import (
    can_be_explained,
    check_dataset,
    check_image_sizes,
    check_method,
    check_size,
    check_solution,
    check_verifier,
    unused_images,
)
from ..data.models import freeze_vision_tower, require_chat_template
from ..data.pixels import with_opaque_images
from ..data.sampling import check_special_tokens, text_of_messages
from ..data.saved import rows_of, save_rows
from ..distillation.losses import student_divergence, teacher_states
from ..methods.stages import Evidence
from ..references.extraction import final_answer, text_of_completion
from ..references.groups import Fallback, Messages
from ..scoring.pipeline import no_evidence, verdicts_of
from ..scoring.prompts import PromptEncoder, tokenizer_of
from ..scoring.requests import Prompt
from ..scoring.shards import head_gathered_with_gradient
from .advantages import assign_credit, evidence_fields, in_loss
from .batches import prompt_of, refuse_mixed_images, rows_with_gradient, trained_tokens
from .cepo_config import CEPOConfig
from .completion_batch import CompletionBatch, judged_rollouts
from .credit_page import NUMBER_OF_GROUPS, CreditPageLogger, write_credit_page
from .distillation import add_teacher_prompts, distillation_batch
from .distributed import Processes
from .health_warnings import HealthWarnings
from .hub import HubTrainer
from .metrics import credit_metrics, credit_sums, verdict_shares
from .model_card import CardTrainer
from .nonfinite_gradients import GuardedTrainer, mask_unscored_rollouts
from .resuming import ResumingTrainer
from .sharding import check_layout, check_processes
from .sharing import NoSharing
from .teachers import FollowPolicy, Teachers
from .validation import check_adapters, check_distillation, check_vllm_weights, check_whole_groups

_logger = logging.getLogger(__name__)


class CEPOTrainer(
    GuardedTrainer,
    HubTrainer,
    CardTrainer,
    ResumingTrainer,
):
    """Trainer for CEPO and its siblings (`CEPOConfig.method`), a drop-in for TRL's [`GRPOTrainer`].

    Same constructor, dataset columns, reward functions, PEFT, callbacks and loggers. For methods with teachers the data
    set needs a `solution` column, and prompts must be conversations.

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

    Metrics, every step: `cepo/coefficient` (lambda), `cepo/rows_scored` (share of rollouts re-read by teachers),
    `cepo/fallback/*` (share of the rollouts with a non-zero advantage that miss the r- their rule asks for),
    `cepo/evidence/*` and `cepo/credit/*` (see `credit_metrics`), `cepo/seconds/generation`, `teachers` and `update`.

    Raises:
        TypeError: If `args` is not a `CEPOConfig`.
        ValueError: For a dataset or options that cannot work, before any training.
    """

    _tag_names = ["trl", "cepo"]
    _name = "CEPO"

    def __init__(self, model, reward_funcs=None, args: CEPOConfig | None = None, train_dataset=None, *rest, **kwargs):
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = CEPOConfig(f"{name.rstrip('/').split('/')[-1]}-CEPO")
        if not isinstance(args, CEPOConfig):
            raise TypeError(f"CEPOTrainer takes a CEPOConfig as `args`, got {type(args).__name__}")
        check_processes(args.world_size)
        self.method = args.method_spec
        # Answers are compared with solutions for the method, or for people who want to see credit.
        needs_solution = self.method.needs_solution or args.credit_page_steps > 0
        self._needs_solution = needs_solution
        # Whether rollouts are saved: those that `cepo explain --from` can read again.
        self._saves = args.log_completions and (needs_solution or can_be_explained(train_dataset))
        self._collects = needs_solution or self.method.changes_advantages or self._saves
        if train_dataset is not None:
            owns_prompts = kwargs.get("environment_factory") is not None  # then the prompts come from the environment
            check_dataset(
                train_dataset,
                needs_solution=needs_solution,
                needs_prompt=not owns_prompts,
                extractor=args.answer_extractor,
            )
            if isinstance(train_dataset, Dataset):
                check_size(train_dataset, args.generation_batch_size, args.num_generations)
            check_method(train_dataset, args.method_options)
            for function in reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]:
                line, unreadable = check_verifier(function, train_dataset, args.answer_extractor)
                if unreadable and args.process_index == 0:
                    _logger.warning(line)
        quick = fast()
        self._sharing: Any = NoSharing() if quick is None else quick.prompt_sharing(self)
        self._batch: CompletionBatch | None = None
        self._kept_step: int | None = None
        # Seconds that this process spent since it started; `update` is the loss, forward and backward.
        self.seconds = {"generation": 0.0, "teachers": 0.0, "update": 0.0}
        self._generation_seconds = self._preparation_seconds = self._update_seconds = 0.0
        self._distilled: list[Tensor] = []
        super().__init__(model, reward_funcs, args, train_dataset, *rest, **kwargs)
        if self._is_vlm and tokenizer_of(self.processing_class).padding_side != "left":
            # TRL pads the tokens on the left, and takes what goes along with them as the processor pads it.
            raise ValueError(
                "processing_class pads on the right, so images would be looked for in the wrong places; load it with "
                "padding_side='left'"
            )
        if self._is_vlm and self.accelerator.is_main_process and (unseen := unused_images(train_dataset)):
            _logger.warning(unseen)
        if self._is_vlm:  # the processor is known from here on
            check_image_sizes(train_dataset, self.processing_class)
        if isinstance(train_dataset, Dataset) and "prompt" in train_dataset.column_names:
            check_special_tokens(train_dataset["prompt"], self.processing_class)
        self._correctness_index = self._find_reward("correctness_reward") or 0
        self._first_error_index = self._find_first_error_reward()
        self._skips = self._decide_skipping()
        if args.freeze_vision_tower:
            freeze_vision_tower(self.model)
        if args.uses_divergence_loss:
            check_distillation(self, args.method)
        check_vllm_weights(self)
        check_whole_groups(args, self.accelerator.num_processes)
        if self.method.needs_teachers or args.uses_divergence_loss:
            check_layout(self)
            check_adapters(self, args.method)
        self._processes = Processes(self.accelerator)
        self._teachers = Teachers(self, args, self._processes)
        self.add_callback(FollowPolicy(self._teachers))
        self.add_callback(HealthWarnings())
        self._page_logger = CreditPageLogger(self.callback_handler)
        self.add_callback(self._page_logger)
        if needs_solution:
            self._encoder = PromptEncoder(self.processing_class, self._is_vlm, self._template_options())

    # Construction -----------------------------------------------------------------------------------------------------

    def _find_reward(self, option: str) -> int | None:
        """Index of the reward function that an option names; None if it names none."""
        wanted = getattr(self.args, option)
        if wanted is None:
            return None
        if wanted not in self.reward_func_names:
            raise ValueError(
                f"{option}={wanted!r} is none of the reward functions: {', '.join(self.reward_func_names)}"
            )
        return self.reward_func_names.index(wanted)

    def _find_first_error_reward(self) -> int | None:
        index = self._find_reward("first_error_reward")
        if index is not None and self.reward_weights[index] != 0:
            raise ValueError(
                f"first_error_reward={self.args.first_error_reward!r} counts tokens, which are no reward: set its "
                "weight in reward_weights to 0"
            )
        if index is not None and index == self._correctness_index:
            raise ValueError(
                "the first reward function decides what is right, unless correctness_reward names another; "
                f"first_error_reward={self.args.first_error_reward!r} cannot be it"
            )
        return index

    def _template_options(self) -> dict[str, Any]:
        """What TRL passes to the chat template besides the conversation; also refuses a model that has no template."""
        if self.rollout_func is not None:
            raise ValueError(
                f"method={self.args.method!r} re-reads rollouts after the prompts of the dataset, and a rollout_func "
                "may have used others. Use method='grpo'."
            )
        if self.environment_factories is not None and any(self._env_tools.values()):
            raise ValueError(
                f"method={self.args.method!r} re-reads rollouts with another prompt, which environments with their own "
                "tools do not support yet. Use method='grpo'."
            )
        if not self.chat_template:
            require_chat_template(self.processing_class)
        return {"tools": self.tools or None, "chat_template": self.chat_template, **self.chat_template_kwargs}

    # TRL's seams ------------------------------------------------------------------------------------------------------

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self.model.training:
            right, missing = verdict_shares(
                rewards_per_func[:, self._correctness_index], self.args.correctness_threshold
            )
            self._log_credit("correct", right)
            self._log_credit("verdicts/missing", missing)
        if self.model.training and self._collects:
            solutions = [
                check_solution(row, f"a row of the training set (prompt {row['prompt']!r})", self.args.answer_extractor)
                if self._needs_solution
                else str(row.get("solution") or "")
                for row in inputs
            ]
            self._batch = self._collect(inputs, prompts, completions, solutions, rewards_per_func)
        return mask_unscored_rollouts(rewards_per_func, self.reward_weights)

    def _generate(self, prompts):
        started = time.perf_counter()
        output = super()._generate(prompts)
        self._generation_seconds += time.perf_counter() - started
        return output

    def _generate_and_score_completions(self, inputs):
        started = time.perf_counter()
        self._generation_seconds = 0.0
        refuse_mixed_images(inputs)
        if not isinstance(self.train_dataset, Dataset):  # rows of a stream are checked as they come
            check_special_tokens([row["prompt"] for row in inputs], self.processing_class, "a batch of the stream")
        if self._is_vlm:
            inputs = [with_opaque_images(row) for row in inputs]
        self._sharing.before_generation()
        output = super()._generate_and_score_completions(inputs)
        self._sharing.generated(output)
        if not self.model.training:
            return output
        teachers_started = time.perf_counter()
        scored = 0.0
        # Evidence rides in TRL's batch, which is shuffled and split along the rollouts; the advantages stay (B,) until
        # the loss, because lambda belongs to the optimiser step and a batch may serve for several.
        if self.args.uses_divergence_loss:
            scored = self._find_teacher_prompts(output)
        elif self._coefficient() > 0:
            scored = self._find_evidence(output)
        teachers_seconds = time.perf_counter() - teachers_started
        self._log_credit("rows_scored", scored)
        self._log_seconds("generation", self._generation_seconds)
        self._log_seconds("teachers", teachers_seconds)
        self._keep_samples(output)
        self._batch = None
        self._preparation_seconds += time.perf_counter() - started
        return output

    def _prepare_inputs(self, generation_batch):
        return self._sharing.regrouped(super()._prepare_inputs(generation_batch))

    def _generate_single_turn(self, *args, **kwargs):
        return self._sharing.generate(super()._generate_single_turn, *args, **kwargs)

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        whole = super()._get_per_token_logps_and_entropies
        with head_gathered_with_gradient() if self.is_fsdp_enabled else nullcontext():
            return self._sharing.log_probs(whole, model, *args, **kwargs)

    def training_step(self, model, inputs, num_items_in_batch):
        started = time.perf_counter()
        self._preparation_seconds = 0.0
        with self._sharing.training_step():
            loss = super().training_step(model, inputs, num_items_in_batch)
        self._update_seconds += time.perf_counter() - started - self._preparation_seconds
        if self.accelerator.sync_gradients:
            self._log_credit("coefficient", self._coefficient())
            self._log_seconds("update", self._update_seconds)
            self._update_seconds = 0.0
            self._log_distillation()
        return loss

    def _compute_loss(self, model, inputs):
        if not self.model.training:
            return super()._compute_loss(model, inputs)
        if self.args.uses_divergence_loss:
            return self._distil(model, inputs)
        inputs = self._place(inputs)
        factor = 1.0
        if self._skips:
            common = self._processes.all_reduce_max if self.accelerator.num_processes > 1 else None
            moving, factor = rows_with_gradient(inputs, self.loss_type, common)
            if moving is None:
                # Zero, and zero gradients, as GRPO gives such a batch: an optimiser with momentum moves on them.
                return sum(p.flatten()[:1].sum() * 0.0 for p in model.parameters() if p.requires_grad)
            inputs = moving
        return super()._compute_loss(model, inputs) * factor

    def _place(self, batch: dict[str, Any]) -> dict[str, Any]:
        return in_loss(batch, self.args.method_options, self.state.global_step, self._processes.sum_tensor)

    # The method -------------------------------------------------------------------------------------------------------

    def _collect(
        self,
        rows: list[dict[str, Any]],
        prompts: list[Messages],
        completions: list[Any],
        solutions: list[str],
        rewards_per_func: Tensor,
    ) -> CompletionBatch:
        """What the verifier said. Groups may span processes, so answers are gathered, as TRL gathers the rewards."""
        texts = [self._thinking + text_of_completion(completion) for completion in completions]
        answers = [final_answer(text, self.args.answer_extractor) for text in texts]
        everyone = gather_object(list(zip(answers, texts, solutions, strict=True)))
        correctness = rewards_per_func[:, self._correctness_index].tolist()
        totals = (rewards_per_func * self.reward_weights.to(rewards_per_func.device)).nansum(dim=1).tolist()
        errors = [float("nan")] * len(everyone)
        if self._first_error_index is not None:
            errors = rewards_per_func[:, self._first_error_index].tolist()
        answers, texts, solutions = (list(column) for column in zip(*everyone, strict=True))
        judged = judged_rollouts(answers, texts, totals, correctness, errors, self.args.correctness_threshold)
        first = self.accelerator.process_index * len(rows)
        return CompletionBatch(rows, prompts, judged, solutions, self.num_generations, first)

    def _find_evidence(self, batch: dict[str, Any]) -> float:
        """Put evidence into a generation batch; the share of its rollouts that teachers read."""
        assert self._batch is not None  # set by `_calculate_rewards`, which TRL calls for every batch
        advantages, mask = batch["advantages"], trained_tokens(batch)
        groups, rows = self._batch.groups(batch)
        verdicts = verdicts_of(groups).to(advantages)
        if not self.method.needs_solution:  # nothing is known of the tokens, and nobody reads them
            self._put_evidence(batch, no_evidence(mask.shape, mask.device), verdicts)
            return 0.0
        wanted = (self.method.rollout_filter(advantages, verdicts, self.args.method_options) & mask.any(dim=1)).tolist()
        pipeline = self._teachers.pipeline(self._encoder, batch)
        with self._teachers.reading():
            (scored,) = pipeline.find_evidence(
                [self.args.method_options],
                groups,
                self._prompts(batch, rows),
                scored=wanted,
                student=self._teachers.student_logps(batch),
                width=mask.shape[1],
                device=mask.device,
            )
        self._put_evidence(batch, scored.evidence, verdicts)
        if not self.method.needs_teachers:
            return 0.0
        self._log_fallbacks([r.fallback for r, kept in zip(scored.references, wanted, strict=True) if kept])
        return self._processes.mean(torch.tensor([bool(c) for c in scored.contexts], device=mask.device).float().mean())

    def _put_evidence(self, batch: dict[str, Any], evidence: Evidence, verdicts: Tensor) -> None:
        """Let evidence ride in TRL's batch, and log what it makes of the advantages."""
        batch |= evidence_fields(evidence, verdicts)
        options, step = self.args.method_options, self.state.global_step
        inputs, placed = assign_credit(batch, options, step, self._processes.sum_tensor)
        sums = credit_sums(inputs, placed)
        totals = dict(zip(sums, self._processes.sum(list(sums.values())), strict=True))
        for name, value in credit_metrics(totals, signed=self.method.evidence_is_signed).items():
            self._log_credit(name, value)

    def _coefficient(self) -> float:
        """lambda."""
        return self.args.coefficient_at(self.state.global_step)

    def _find_teacher_prompts(self, batch: dict[str, Any]) -> float:
        """Put the teachers' prompts into the batch; the share of rollouts that have a teacher."""
        assert self._batch is not None  # set by `_calculate_rewards`, which TRL calls for every batch
        groups, rows = self._batch.groups(batch)
        pipeline, prompts = self._teachers.pipeline(self._encoder, batch), self._prompts(batch, rows)
        wanted = trained_tokens(batch).any(dim=1).tolist()
        references, contexts = pipeline.plan(self.args.method_options, groups, wanted)
        self._log_fallbacks([r.fallback for r, kept in zip(references, wanted, strict=True) if kept])
        ids_of = pipeline.context_ids(groups, prompts)
        owners = [index for index, group in enumerate(groups) for _ in group.local]
        ids = [
            ids_of(owner, own[0]) if own and isinstance(own[0], str) else None
            for owner, own in zip(owners, contexts, strict=True)
        ]
        tokens = add_teacher_prompts(batch, ids)
        batch["teacher_tokens"] = self._processes.sum_tensor(tokens.float())
        has_teacher = torch.tensor([tokens is not None for tokens in ids], device=tokens.device)
        return self._processes.mean(has_teacher.float().mean())

    def _prompts(self, batch: dict[str, Any], rows: Sequence[int]) -> list[Prompt]:
        """The prompts of some rows of a generation batch."""
        return [prompt_of(batch, row, self._image_token()) for row in rows]

    def _image_token(self) -> int | None:
        """The token that stands for a part of an image, if the model has one."""
        config = self.model.config
        return getattr(config, "image_token_id", getattr(config, "image_token_index", None))

    # The update -------------------------------------------------------------------------------------------------------

    def _distil(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Divergence of the policy from its teacher over the vocabulary, a mean over the tokens that have a teacher."""
        args = self.args
        batch = self._sharing.distillation(distillation_batch(inputs, self._image_token()))
        unwrapped = self.accelerator.unwrap_model(self.model)
        inner = self._teachers.inner()
        with self._teachers.reading(), self._teachers.weights.in_place(), self.accelerator.autocast():
            # Through the wrapper's forward, which has to see all passes where weights are sharded.
            teacher = _ForwardRedirection()(
                model, unwrapped, teacher_states, inner, batch, copied=self._teachers.weights.lags
            )
        top_k, beta = (args.divergence_top_k if args.divergence == "top_k" else None), args.divergence_beta
        assert beta is not None  # its methods read it

        def student() -> tuple[Tensor, Tensor, Tensor]:
            with self.accelerator.autocast():  # which is part of the forward that this takes the place of
                return student_divergence(
                    inner,
                    batch,
                    teacher,
                    beta=beta,
                    temperature=self.temperature,
                    top_k=top_k,
                    importance_clip=args.importance_clip,
                )

        # Through the wrapper's forward, which DDP has to see.
        total, plain, entropy = _ForwardRedirection()(model, unwrapped, student)
        count = batch.counted.sum() * (not batch.empty)
        self._distilled.append(torch.stack([plain.float(), entropy.float(), count.to(plain.device).float()]))
        # The tokens are those of the generation batch; TRL scales its token means in the same way.
        normalizer = inputs["teacher_tokens"].clamp(min=1.0) / self.accelerator.num_processes
        return total * args.steps_per_generation / (normalizer * self.current_gradient_accumulation_steps)

    def _decide_skipping(self) -> bool:
        if not self.aux_loss_enabled:
            return self.args.skips
        if self.args.skip_zero_advantage:
            self.args.require_skipping("the router's auxiliary loss has a gradient for every rollout")
        return False

    # What is left for people ------------------------------------------------------------------------------------------

    def _keep_samples(self, batch: dict[str, Any]) -> None:
        """Save the rollouts, and draw the page of their credit, where the options ask for it."""
        step, every, saves = self.state.global_step, self.args.credit_page_steps, self._saves
        draws = every > 0 and step % every == 0
        if self._batch is None or step == self._kept_step or not (draws or saves):
            return
        self._kept_step = step
        groups, rows = self._batch.groups(batch)
        if saves:
            before = self.accelerator.process_index * len(batch["advantages"]) // self.num_generations
            saved = gather_object(rows_of(groups, before))
            if self.accelerator.is_main_process:
                save_rows(self.args.output_dir, step, saved)
        if draws:
            # Those in which there is credit to place, first.
            order = sorted(range(len(groups)), key=lambda i: not any(r.advantage for r in groups[i].local))
            drawn = order[:NUMBER_OF_GROUPS]
            with self._teachers.reading():
                self._page_logger.page = write_credit_page(
                    [groups[i] for i in drawn],
                    self._prompts(batch, [rows[i] for i in drawn]),
                    pipeline=self._teachers.pipeline(self._encoder, batch, own_weights=True),
                    args=self.args,
                    step=step,
                    write=self.accelerator.is_main_process,
                )

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def _save_beside(self, folder):
        self._teachers.weights.save(folder)

    def _load_beside(self, folder):
        self._teachers.weights.load(folder)

    # Metrics ----------------------------------------------------------------------------------------------------------

    def log(self, logs, start_time=None):
        if self._is_vlm and "wandb" in self.args.report_to:
            # W&B refuses TRL's table where the parts of a prompt differ in type, as image and text do.
            prompts = self._logs["prompt"]
            for place, prompt in enumerate(prompts):
                if not isinstance(prompt, str):
                    prompts[place] = [{"role": role, "content": text} for role, text in text_of_messages(prompt)]
        super().log(logs, start_time)

    def _log_credit(self, name: str, value: float) -> None:
        self._metrics["train"][f"cepo/{name}"].append(value)

    def _log_seconds(self, part: str, seconds: float) -> None:
        self.seconds[part] += seconds
        self._log_credit(f"seconds/{part}", seconds)

    def _log_distillation(self) -> None:
        """Mean divergence and entropy [nats] over the tokens that the micro-batches of a step have learned from."""
        if not self.args.uses_divergence_loss:
            return
        plain, entropy, tokens = self._processes.sum(torch.stack(self._distilled).sum(0).tolist())
        self._distilled.clear()
        if tokens:
            self._log_credit("divergence", plain / tokens)
            self._metrics["train"]["entropy"].append(entropy / tokens)

    def _log_fallbacks(self, fallbacks: list[Fallback | None]) -> None:
        counts = Counter(fallbacks)
        reasons = get_args(Fallback)
        sums = self._processes.sum([len(fallbacks), *(counts[reason] for reason in reasons)])
        for reason, number in zip(reasons, sums[1:], strict=True):
            self._log_credit(f"fallback/{reason}", number / sums[0] if sums[0] else 0.0)
