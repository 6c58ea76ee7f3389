"""`CEPOTrainer`: TRL's GRPOTrainer with credit placed token by token. The only file that knows TRL's internals.

TRL samples the rollouts, rewards them and computes the loss. Three seams are used: `_calculate_rewards` sees prompts,
texts and rewards (and gathers the rewards of groups that span processes); `_generate_and_score_completions` returns the
batch, to which the evidence is added; `_compute_loss` is given (B, T) token advantages, which TRL's losses accept.
"""

import itertools
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, get_args

import torch
from accelerate.utils import gather_object, is_peft_model
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback
from trl import GRPOTrainer
from trl.models.utils import _ForwardRedirection, disable_gradient_checkpointing

from ..credit import token_advantages
from ..data.checks import check_dataset, check_labels, check_size, check_solution, has_solutions
from ..data.loading import freeze_vision_tower, require_chat_template
from ..data.sampling import token_texts
from ..data.saved import rows_of, save_rows
from ..distillation.batches import Lesson, add_teacher_prompts, learn, taught
from ..methods.registry import METHODS, STUDENT, Context, Evidence, label_evidence
from ..references.answers import final_answer, reference_answer, text_of_completion
from ..references.choosing import Attempt, Fallback, References, choose_references
from ..references.contents import HintContent, Part, with_contents
from ..references.hints import Messages, add_hint
from ..scoring.passes import Policy, Reader
from ..scoring.requests import Ids, Prompt
from ..scoring.scoring import PromptEncoder, Read, Rollouts, evaluating, has_dropout, score_contexts
from ..scoring.teacher_weights import TeacherWeights
from .batches import moving_rows, prompt_of, trained_tokens
from .cepo_config import CEPOConfig
from .completion_batch import Graded
from .credit_page import NUMBER_OF_GROUPS, write_credit_page
from .metrics import credit_metrics, credit_sums


class _FollowPolicy(TrainerCallback):
    """Lets the teacher's weights follow the policy's after each optimiser step."""

    def __init__(self, teacher: TeacherWeights):
        self.teacher = teacher

    def on_step_end(self, args, state, control, **kwargs):  # noqa: ARG002
        self.teacher.after_step(state.global_step)


class CEPOTrainer(GRPOTrainer):
    """Trainer for CEPO and its siblings (`CEPOConfig.method`), a drop-in for TRL's [`GRPOTrainer`].

    Same constructor, dataset columns, reward functions, PEFT, callbacks and loggers. For `cepo` and `rlsd` the dataset
    needs a `solution` column, and prompts must be conversations.

    Example:

    ```python
    from cepo import CEPOConfig, CEPOTrainer, load_figures, policy_path
    from trl.rewards import accuracy_reward

    trainer = CEPOTrainer(
        model=policy_path(),
        reward_funcs=accuracy_reward,
        args=CEPOConfig(output_dir="out", max_steps=1),
        train_dataset=load_figures("train", 100),
    )
    trainer.train()
    ```

    Metrics, every step: `cepo/coefficient` (lambda), `cepo/rows_scored` (share of rollouts re-read by teachers),
    `cepo/fallback/*` (share of the rollouts with a non-zero advantage that miss the r- their rule asks for),
    `cepo/evidence/*` and `cepo/weights/*` (see `credit_metrics`), `cepo/seconds/generation`, `teachers` and `update`.

    Raises:
        TypeError: If `args` is not a `CEPOConfig`.
        ValueError: For a dataset or options that cannot work, before any training.
    """

    _tag_names = ["trl", "cepo"]
    _name = "CEPO"
    _paper = {
        "title": "CEPO: Contrastive Evidence Policy Optimization",
        "id": "2605.19436",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @article{cepo2026,
                title        = {{CEPO: Contrastive Evidence Policy Optimization}},
                year         = 2026,
                eprint       = {arXiv:2605.19436},
            }"""),
    }

    def __init__(self, model, reward_funcs=None, args: CEPOConfig | None = None, train_dataset=None, *rest, **kwargs):
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = CEPOConfig(f"{name.rstrip('/').split('/')[-1]}-CEPO")
        if not isinstance(args, CEPOConfig):
            raise TypeError(f"CEPOTrainer takes a CEPOConfig as `args`, got {type(args).__name__}")
        self.method = METHODS[args.method]
        # Answers are compared with solutions for the method, or for people who want to see credit.
        knows = self.method.needs_teachers or self.method.labels is not None
        needs_solution = knows or args.credit_samples_every > 0
        self._grades = needs_solution or (args.log_completions and has_solutions(train_dataset))
        if train_dataset is not None:
            owns_prompts = kwargs.get("environment_factory") is not None  # then the prompts come from the environment
            check_dataset(train_dataset, needs_solution=needs_solution, needs_prompt=not owns_prompts)
            if isinstance(train_dataset, Dataset):
                check_size(train_dataset, args.generation_batch_size, args.num_generations)
            if self.method.labels is not None:
                check_labels(train_dataset, args.method)
        self._graded: Graded | None = None
        self._kept_step: int | None = None
        # Seconds that this process spent since it started; `update` is the loss, forward and backward.
        self.seconds = {"generation": 0.0, "teachers": 0.0, "update": 0.0}
        self._generation_seconds = self._preparation_seconds = self._update_seconds = 0.0
        self._lessons: list[Tensor] = []
        super().__init__(model, reward_funcs, args, train_dataset, *rest, **kwargs)
        tokenizer: Any = getattr(self.processing_class, "tokenizer", self.processing_class)
        if self._is_vlm and tokenizer.padding_side != "left":
            # TRL pads the tokens on the left, and takes what goes along with them as the processor pads it.
            raise ValueError(
                "processing_class pads on the right, so images would be looked for in the wrong places; load it with "
                "padding_side='left'"
            )
        self._correctness_index = self._find_correctness_reward()
        self._skips = self._decide_skipping()
        self._reader: Reader | None = None
        if args.freeze_vision_tower:
            freeze_vision_tower(self.model)
        if self._distils_whole():
            self._check_distillation()
        if args.teacher != "policy" and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError(
                f"teacher={args.teacher!r} keeps a copy of the weights, which sharded ones do not allow yet"
            )
        self._teacher = TeacherWeights(
            self.model, args.teacher, sync_steps=args.teacher_sync_steps, decay=args.teacher_ema_decay
        )
        self.add_callback(_FollowPolicy(self._teacher))
        content = HintContent(
            args.positive_content, args.negative_content, args.positive_part, args.negative_part, args.content_tokens
        )
        self._tell = partial(with_contents, content=content, cut=self._cut)
        if needs_solution:
            self._encoder = PromptEncoder(self.processing_class, self._is_vlm, self._template_options())

    # Construction -----------------------------------------------------------------------------------------------------

    def _find_correctness_reward(self) -> int:
        wanted = self.args.correctness_reward
        if wanted is None:
            return 0
        if wanted not in self.reward_func_names:
            raise ValueError(
                f"correctness_reward={wanted!r} is none of the reward functions: {', '.join(self.reward_func_names)}"
            )
        return self.reward_func_names.index(wanted)

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

    def _check_distillation(self) -> None:
        """Refuse models with which a divergence over the vocabulary does not work."""
        if self.aux_loss_enabled:
            raise ValueError(
                f"method={self.args.method!r} has a loss of its own, in which router_aux_loss_coef would do nothing; "
                "set it to 0"
            )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                f"method={self.args.method!r} reads the head's weights, which sharding does not allow yet; use "
                "divergence='sampled'"
            )

    # TRL's seams ------------------------------------------------------------------------------------------------------

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self.model.training and self._grades:
            solutions = [check_solution(row, f"a row of the training set (prompt {row['prompt']!r})") for row in inputs]
            self._graded = self._grade(inputs, prompts, completions, solutions, rewards_per_func)
        return rewards_per_func

    def _generate(self, prompts):
        started = time.perf_counter()
        output = super()._generate(prompts)
        self._generation_seconds += time.perf_counter() - started
        return output

    def _generate_and_score_completions(self, inputs):
        started = time.perf_counter()
        self._generation_seconds = 0.0
        output = super()._generate_and_score_completions(inputs)
        if not self.model.training:
            return output
        teachers_started = time.perf_counter()
        scored = 0.0
        # `evidence` rides in TRL's batch, which is shuffled and split along the rollouts; the advantages stay (B,)
        # until the loss, because lambda belongs to the optimiser step and a batch may serve for several.
        if self._distils_whole():
            scored = self._find_teacher_prompts(output)
        elif self._coefficient() > 0 and self.method.labels is not None:
            output["evidence"] = self._label_evidence(output)
        elif self._coefficient() > 0:
            output["evidence"], scored = self._find_evidence(output)
        teachers_seconds = time.perf_counter() - teachers_started
        self._log_credit("rows_scored", scored)
        self._log_seconds("generation", self._generation_seconds)
        self._log_seconds("teachers", teachers_seconds)
        self._keep_samples(output)
        self._graded = None
        self._preparation_seconds += time.perf_counter() - started
        return output

    def training_step(self, model, inputs, num_items_in_batch):
        started = time.perf_counter()
        self._preparation_seconds = 0.0
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._update_seconds += time.perf_counter() - started - self._preparation_seconds
        if self.accelerator.sync_gradients:
            self._log_credit("coefficient", self._coefficient())
            self._log_seconds("update", self._update_seconds)
            self._update_seconds = 0.0
            self._log_lessons()
        return loss

    def _compute_loss(self, model, inputs):
        if not self.model.training:
            return super()._compute_loss(model, inputs)
        if self._distils_whole():
            return self._distil(model, inputs)
        if self.method.distils:  # of sampled tokens: a policy gradient with the evidence in place of the advantages
            token_level = inputs["evidence"].masked_fill(~trained_tokens(inputs), 0.0)
            return super()._compute_loss(model, {**inputs, "advantages": token_level})
        factor = 1.0
        if self._skips:
            common = self._most_of if self.accelerator.num_processes > 1 else None
            moving, factor = moving_rows(inputs, self.loss_type, common)
            if moving is None:
                # Zero, and zero gradients, as GRPO gives such a batch: an optimiser with momentum moves on them.
                return sum(p.flatten()[:1].sum() * 0.0 for p in model.parameters() if p.requires_grad)
            inputs = moving
        coefficient = self._coefficient()
        if coefficient > 0 and "evidence" in inputs:
            token_level = token_advantages(
                inputs["advantages"],
                inputs["evidence"],
                trained_tokens(inputs),
                coefficient=coefficient,
                clip=self.args.evidence_clip,
            )
            inputs = {**inputs, "advantages": token_level}
        return super()._compute_loss(model, inputs) * factor

    # The method -------------------------------------------------------------------------------------------------------

    def _coefficient(self) -> float:
        """lambda; 1 for a method that has no other signal than its teacher's."""
        if self.method.distils:
            return 1.0
        places_credit = self.method.needs_teachers or self.method.labels is not None
        return self.args.coefficient_at(self.state.global_step) if places_credit else 0.0

    def _distils_whole(self) -> bool:
        """Whether the loss is a divergence over the vocabulary, rather than TRL's with other advantages."""
        return self.method.distils and self.args.divergence != "sampled"

    def _find_evidence(self, batch: dict[str, Any]) -> tuple[Tensor, float]:
        """(B, T) evidence [nats] of a generation batch, and the share of its rollouts that teachers re-read."""
        advantages, mask = batch["advantages"], trained_tokens(batch)
        # A rollout that moves nothing is not re-read.
        matters = mask.any(dim=1) if self.method.distils else (advantages != 0) & mask.any(dim=1)
        contexts = self._contexts(matters.tolist())
        if self.method.distils:  # of sampled tokens: against the policy itself
            contexts = [[*answers, STUDENT] if answers else [] for answers in contexts]
        logps, present = self._teacher_logps(batch, contexts)
        evidence = self.method.evidence(logps, present)
        rows = present.any(0)
        assert self._graded is not None
        attempts = self._graded.own(self._graded.attempts)
        verdicts = torch.tensor([_VERDICTS[attempt.correct] for attempt in attempts], device=rows.device)
        sums = credit_sums(
            Evidence(evidence.values[rows], evidence.unscorable[rows]),
            advantages[rows],
            verdicts[rows],
            mask[rows],
            clip=self.args.evidence_clip,
        )
        self._log_metrics_of(sums)
        return evidence.values, self._mean_over_processes(rows.float().mean())

    def _label_evidence(self, batch: dict[str, Any]) -> Tensor:
        """(B, T) evidence [nats] by what the task knows of the tokens."""
        assert self.method.labels is not None
        assert self._graded is not None
        labels = torch.zeros_like(batch["completion_mask"], dtype=torch.float32)
        groups, rows = self._graded.groups(batch)
        for group, row in zip(groups, rows, strict=True):
            if len(group.rollouts) < len(group.attempts):
                raise ValueError(
                    f"method={self.args.method!r} needs whole groups on each process; make the batch of a process a "
                    "multiple of num_generations"
                )
            tokens = [token_texts(self.processing_class, rollout.ids) for rollout in group.rollouts]
            correct = [attempt.correct for attempt in group.attempts]
            for place, found in enumerate(self.method.labels(self._graded.rows[row], tokens, correct)):
                labels[row + place, : len(found)] = torch.tensor(found, dtype=torch.float32)
        return label_evidence(labels, batch["advantages"])

    def _contexts(self, wanted: list[bool]) -> list[list[Context]]:
        """The contexts of this process's rollouts; none of those that are not wanted."""
        contexts_of, references = self.method.contexts, self._references()
        assert contexts_of is not None  # a method with teachers has contexts
        self._log_fallbacks([r.fallback for r, kept in zip(references, wanted, strict=True) if kept])
        student_fallback = self.args.no_negative == "student"
        return [
            contexts_of(reference, student_fallback) if kept else []
            for reference, kept in zip(references, wanted, strict=True)
        ]

    def _grade(
        self,
        rows: list[dict[str, Any]],
        prompts: list[Messages],
        completions: list[Any],
        solutions: list[str],
        rewards_per_func: Tensor,
    ) -> Graded:
        """Groups may span processes, so answers are gathered, as TRL gathers the rewards."""
        texts = [text_of_completion(completion) for completion in completions]
        everyone = gather_object([(final_answer(t), t, s) for t, s in zip(texts, solutions, strict=True)])
        correctness = rewards_per_func[:, self._correctness_index].tolist()
        totals = (rewards_per_func * self.reward_weights.to(rewards_per_func.device)).nansum(dim=1).tolist()
        threshold = self.args.correctness_threshold
        attempts = [
            # NaN: the function gave no verdict.
            Attempt(answer, total, None if verdict != verdict else verdict >= threshold, text)
            for (answer, text, _), total, verdict in zip(everyone, totals, correctness, strict=True)
        ]
        solutions = [solution for *_, solution in everyone]
        first = self.accelerator.process_index * len(rows)
        return Graded(rows, prompts, attempts, solutions, self.num_generations, first)

    def _references(self) -> list[References]:
        """References of this process's rollouts."""
        graded, size = self._graded, self.num_generations
        assert graded is not None  # set by `_calculate_rewards`, which TRL calls for every batch
        references: list[References] = []
        for start in range(0, len(graded.attempts), size):
            attempts, solution = graded.attempts[start : start + size], graded.solutions[start]
            chosen = [References(reference_answer(solution), ())] * size
            if self.method.needs_negatives:
                chosen = choose_references(
                    attempts, solution, rule=self.args.negative_reference, max_negatives=self.args.max_negatives
                )
            references += self._tell(chosen, attempts, solution)
        return graded.own(references)

    def _cut(self, text: str, part: Part, tokens: int) -> str:
        """The first or the last tokens of a text."""
        tokenizer: Any = getattr(self.processing_class, "tokenizer", self.processing_class)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokenizer.decode(ids[:tokens] if part == "prefix" else ids[-tokens:])

    def _teacher_logps(self, batch: dict[str, Any], contexts: list[list[Context]]) -> tuple[Tensor, Tensor]:
        """(C, B, T) log-probs [nats] of every rollout under its contexts, and (C, B) which there are."""
        rows, prompt_of_row = self._prompt_rows([bool(answers) for answers in contexts])
        prompts = [prompt_of(batch, row, self._image_token()) for row in rows]
        rollouts = Rollouts(batch["completion_ids"], trained_tokens(batch), prompt_of_row)
        way: dict[str, Any] = {"hinted": self._hinted(prompts, rows), "read": self._read(batch)}
        with self._reading():
            student = self._student_logps(batch)
            if student is None and self._teacher.lags:  # P_S is the policy's, whoever teaches
                plain: list[list[Context]] = [[STUDENT] if STUDENT in answers else [] for answers in contexts]
                student = score_contexts(plain, rollouts, prompts, **way)[0][0]
            with self._teacher.in_place():
                return score_contexts(contexts, rollouts, prompts, **way, student=student)

    def _hinted(self, prompts: list[Prompt], rows: list[int]) -> Callable[[int, str], Ids]:
        """Makes the token ids of a prompt with a hint; `rows` are rollouts of these prompts."""
        assert self._graded is not None
        plain = [self._graded.prompts[row] for row in rows]

        def hinted(index: int, answer: str) -> Ids:
            messages = add_hint(plain[index], answer, self.args.hint_template)
            return self._encoder.with_hint(prompts[index], plain[index], messages)

        return hinted

    def _find_teacher_prompts(self, batch: dict[str, Any]) -> float:
        """Put the teachers' prompts into the batch; the share of rollouts that have a teacher."""
        contexts = self._contexts(trained_tokens(batch).any(dim=1).tolist())
        rows, prompt_of_row = self._prompt_rows([bool(answers) for answers in contexts])
        prompts = [prompt_of(batch, row, self._image_token()) for row in rows]
        hinted = cache(self._hinted(prompts, rows))
        ids = [
            hinted(prompt_of_row[row], answers[0]) if answers and answers[0] is not STUDENT else None
            for row, answers in enumerate(contexts)
        ]
        tokens = add_teacher_prompts(batch, ids)
        batch["teacher_tokens"] = self.accelerator.reduce(tokens.float(), reduction="sum")
        taught_rows = torch.tensor([tokens is not None for tokens in ids], device=tokens.device)
        return self._mean_over_processes(taught_rows.float().mean())

    def _prompt_rows(self, wanted: list[bool]) -> tuple[list[int], list[int]]:
        """One row of each group with a wanted rollout, and for each rollout the index of its prompt among these.

        There is always one: processes without a wanted rollout need it for the passes that they make for the others.
        """
        first = self.accelerator.process_index * len(wanted)
        groups = [(first + row) // self.num_generations for row in range(len(wanted))]
        rows = {group: row for row, group in reversed(list(enumerate(groups))) if wanted[row]} or {groups[0]: 0}
        indices = {group: index for index, group in enumerate(rows)}
        return list(rows.values()), [indices.get(group, 0) for group in groups]

    def _image_token(self) -> int | None:
        """The token that stands for a part of an image, if the model has one."""
        config = self.model.config
        return getattr(config, "image_token_id", getattr(config, "image_token_index", None))

    def _student_logps(self, batch: dict[str, Any]) -> Tensor | None:
        """(B, T) log P_S [nats] where TRL has computed it for its ratio, and computed it as a teacher would."""
        return None if has_dropout(self.model) else batch.get("old_per_token_logps")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """The model as a teacher: eval mode, no gradient, no checkpoints for one."""
        with (
            evaluating(self.model),
            disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs),
        ):
            yield

    def _read(self, batch: dict[str, Any]) -> Read:
        """How teachers make their passes."""
        if self._reader is None:  # not earlier: training wraps the model
            unwrapped = self.accelerator.unwrap_model(self.model)
            policy = Policy(
                self.model,
                unwrapped.get_base_model() if is_peft_model(unwrapped) else unwrapped,
                self.accelerator.autocast,
            )
            self._reader = Reader(
                policy,
                agree=self._most_over_processes,
                shares={"auto": None, "always": True, "never": False}[self.args.shared_prompt],
                speaks=self.accelerator.is_main_process,
            )
        width = batch["prompt_ids"].shape[1] + batch["completion_ids"].shape[1]
        max_tokens = self.args.teacher_batch_tokens or self.args.per_device_train_batch_size * width
        return partial(self._reader.read, max_tokens=max_tokens)

    # The update -------------------------------------------------------------------------------------------------------

    def _distil(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Divergence of the policy from its teacher over the vocabulary, a mean over the tokens that have a teacher."""
        args = self.args
        lesson = Lesson.of(inputs, self._image_token())
        unwrapped = self.accelerator.unwrap_model(self.model)
        inner = unwrapped.get_base_model() if is_peft_model(unwrapped) else unwrapped
        with self._reading(), self._teacher.in_place(), self.accelerator.autocast():
            teacher = taught(inner, lesson)
        top_k = args.divergence_top_k if args.divergence == "top_k" else None

        def student() -> tuple[Tensor, Tensor, Tensor]:
            with self.accelerator.autocast():  # which is part of the forward that this takes the place of
                return learn(
                    inner,
                    lesson,
                    teacher,
                    beta=args.divergence_beta,
                    temperature=self.temperature,
                    top_k=top_k,
                    importance_clip=args.importance_clip,
                )

        # Through the wrapper's forward, which DDP has to see.
        total, plain, entropy = _ForwardRedirection()(model, unwrapped, student)
        count = lesson.counted.sum() * (not lesson.empty)
        self._lessons.append(torch.stack([plain.float(), entropy.float(), count.to(plain.device).float()]))
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
        step, every, saves = self.state.global_step, self.args.credit_samples_every, self.args.log_completions
        draws = every > 0 and step % every == 0
        if self._graded is None or step == self._kept_step or not (draws or saves):
            return
        self._kept_step = step
        groups, rows = self._graded.groups(batch)
        if saves:
            before = self.accelerator.process_index * len(batch["advantages"]) // self.num_generations
            saved = gather_object(rows_of(groups, before))
            if self.accelerator.is_main_process:
                save_rows(self.args.output_dir, step, saved)
        if draws:
            # Those in which there is credit to place, first.
            order = sorted(range(len(groups)), key=lambda i: not any(r.advantage for r in groups[i].rollouts))
            drawn = order[:NUMBER_OF_GROUPS]
            with self._reading():
                write_credit_page(
                    [groups[i] for i in drawn],
                    [prompt_of(batch, rows[i], self._image_token()) for i in drawn],
                    read=self._read(batch),
                    encoder=self._encoder,
                    tell=self._tell,
                    processing_class=self.processing_class,
                    args=self.args,
                    step=step,
                    write=self.accelerator.is_main_process,
                )

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            self._teacher.save(f"{self._get_output_dir(trial=trial)}/checkpoint-{self.state.global_step}")

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._teacher.load(resume_from_checkpoint)

    # Metrics ----------------------------------------------------------------------------------------------------------

    def _log_credit(self, name: str, value: float) -> None:
        self._metrics["train"][f"cepo/{name}"].append(value)

    def _log_seconds(self, part: str, seconds: float) -> None:
        self.seconds[part] += seconds
        self._log_credit(f"seconds/{part}", seconds)

    def _log_lessons(self) -> None:
        """Mean divergence and entropy [nats] over the tokens that the micro-batches of a step have learned from."""
        if not self._distils_whole():
            return
        plain, entropy, tokens = self._sum_over_processes(torch.stack(self._lessons).sum(0).tolist())
        self._lessons.clear()
        if tokens:
            self._log_credit("divergence", plain / tokens)
            self._metrics["train"]["entropy"].append(entropy / tokens)

    def _log_fallbacks(self, fallbacks: list[Fallback | None]) -> None:
        if not self.method.needs_negatives:
            return
        counts = Counter(fallbacks)
        reasons = get_args(Fallback)
        sums = self._sum_over_processes([len(fallbacks), *(counts[reason] for reason in reasons)])
        for reason, number in zip(reasons, sums[1:], strict=True):
            self._log_credit(f"fallback/{reason}", number / sums[0] if sums[0] else 0.0)

    def _log_metrics_of(self, sums: dict[str, float]) -> None:
        totals = dict(zip(sums, self._sum_over_processes(list(sums.values())), strict=True))
        for name, value in credit_metrics(totals).items():
            self._log_credit(name, value)

    def _sum_over_processes(self, values: list[float]) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float32, device=self.accelerator.device)
        return self.accelerator.reduce(tensor, reduction="sum").tolist()

    def _mean_over_processes(self, value: Tensor) -> float:
        return self.accelerator.reduce(value, reduction="mean").item()

    def _most_of(self, number: int) -> int:
        return self._most_over_processes([number])[0]

    def _most_over_processes(self, numbers: Sequence[int]) -> list[int]:
        """The most of each number over the processes; shorter lists count as if they went on with zeros."""
        if self.accelerator.num_processes == 1:
            return list(numbers)
        everyone = gather_object([list(numbers)])
        return [max(column) for column in itertools.zip_longest(*everyone, fillvalue=0)]


_VERDICTS = {True: 1.0, False: -1.0, None: 0.0}
