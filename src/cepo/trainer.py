"""`CEPOTrainer`: TRL's GRPOTrainer with credit placed token by token. The only file that knows TRL's internals.

TRL samples the rollouts, rewards them and computes the loss. Three seams are used: `_calculate_rewards` sees prompts,
texts and rewards (and gathers the rewards of groups that span processes); `_generate_and_score_completions` returns the
batch, to which the evidence is added; `_compute_loss` is given (B, T) token advantages, which TRL's losses accept.
"""

import inspect
import textwrap
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, get_args

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from .answers import final_answer
from .checks import check_dataset, check_solution
from .config import CEPOConfig
from .credit import token_advantages
from .hints import Messages, add_hint
from .loading import require_chat_template
from .methods import METHODS, STUDENT, Context, Evidence
from .metrics import credit_metrics, credit_sums
from .references import Attempt, Fallback, References, choose_references
from .teachers import PromptEncoder, Rollouts, evaluating, score


@dataclass(frozen=True)
class _Graded:
    """What `_calculate_rewards` saw of one generation batch: this process's rows, and all processes' rewards."""

    prompts: list[Messages]
    completions: list[Any]
    solutions: list[str]
    rewards_per_func: Tensor  # (rows of all processes, reward functions)


class CEPOTrainer(GRPOTrainer):
    """Trainer for CEPO and its siblings RLSD and GRPO (`CEPOConfig.method`), a drop-in for TRL's [`GRPOTrainer`].

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
        if train_dataset is not None:
            owns_prompts = kwargs.get("environment_factory") is not None  # then the prompts come from the environment
            check_dataset(train_dataset, needs_solution=self.method.needs_teachers, needs_prompt=not owns_prompts)
            if isinstance(train_dataset, Dataset):
                _require_a_batch(train_dataset, args)
        self._graded: _Graded | None = None
        # Seconds that this process spent since it started; `update` is the loss, forward and backward.
        self.seconds = {"generation": 0.0, "teachers": 0.0, "update": 0.0}
        self._generation_seconds = self._preparation_seconds = self._update_seconds = 0.0
        super().__init__(model, reward_funcs, args, train_dataset, *rest, **kwargs)
        self._correctness_index = self._find_correctness_reward()
        if args.freeze_vision_tower:
            _freeze_vision_tower(self.model)
        if self.method.needs_teachers:
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

    # TRL's seams ------------------------------------------------------------------------------------------------------

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self.model.training and self.method.needs_teachers:
            solutions = [check_solution(row, f"a row of the training set (prompt {row['prompt']!r})") for row in inputs]
            self._graded = _Graded(prompts, completions, solutions, rewards_per_func)
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
        if self.method.needs_teachers and self.args.coefficient_at(self.state.global_step) > 0:
            output["evidence"], scored = self._find_evidence(output)
        finished = time.perf_counter()
        self._log_credit("rows_scored", scored)
        self._log_seconds("generation", self._generation_seconds)
        self._log_seconds("teachers", finished - teachers_started)
        self._graded = None
        self._preparation_seconds += finished - started
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
        return loss

    def _compute_loss(self, model, inputs):
        coefficient = self._coefficient()
        if coefficient > 0 and "evidence" in inputs and self.model.training:
            token_level = token_advantages(
                inputs["advantages"],
                inputs["evidence"],
                _trained_tokens(inputs),
                coefficient=coefficient,
                clip=self.args.evidence_clip,
            )
            inputs = {**inputs, "advantages": token_level}
        return super()._compute_loss(model, inputs)

    # The method -------------------------------------------------------------------------------------------------------

    def _coefficient(self) -> float:
        return self.args.coefficient_at(self.state.global_step) if self.method.needs_teachers else 0.0

    def _find_evidence(self, batch: dict[str, Any]) -> tuple[Tensor, float]:
        """(B, T) evidence [nats] of a generation batch, and the share of its rollouts that teachers re-read."""
        advantages, mask = batch["advantages"], _trained_tokens(batch)
        # A rollout that moves nothing is not re-read.
        matters = ((advantages != 0) & mask.any(dim=1)).tolist()

        attempts, references = self._references()
        student_fallback = self.args.no_negative == "student"
        contexts_of = self.method.contexts
        assert contexts_of is not None  # a method with teachers has contexts
        contexts: list[list[Context]] = [
            contexts_of(reference, student_fallback) if wanted else []
            for reference, wanted in zip(references, matters, strict=True)
        ]
        self._log_fallbacks([r.fallback for r, wanted in zip(references, matters, strict=True) if wanted])

        logps, present = self._teacher_logps(batch, contexts)
        evidence = self.method.evidence(logps, present)
        rows = present.any(0)
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

    def _references(self) -> tuple[list[Attempt], list[References]]:
        """Attempts and references of this process's rollouts; groups may span processes, so answers are gathered."""
        graded = self._graded
        assert graded is not None  # set by `_calculate_rewards`, which TRL calls for every batch
        local = [
            (final_answer(_text(completion)), solution)
            for completion, solution in zip(graded.completions, graded.solutions, strict=True)
        ]
        everyone = gather_object(local)
        correctness = graded.rewards_per_func[:, self._correctness_index].tolist()
        weights = self.reward_weights.to(graded.rewards_per_func.device)
        totals = (graded.rewards_per_func * weights).nansum(dim=1).tolist()
        threshold = self.args.correctness_threshold
        attempts = [
            # NaN: the function gave no verdict.
            Attempt(answer, total, None if verdict != verdict else verdict >= threshold)
            for (answer, _), total, verdict in zip(everyone, totals, correctness, strict=True)
        ]
        references: list[References] = []
        size = self.num_generations
        for start in range(0, len(attempts), size):
            references += choose_references(
                attempts[start : start + size],
                everyone[start][1],
                rule=self.args.negative_reference,
                max_negatives=self.args.max_negatives,
            )
        first = self.accelerator.process_index * len(local)
        own = slice(first, first + len(local))
        return attempts[own], references[own]

    def _teacher_logps(self, batch: dict[str, Any], contexts: list[list[Context]]) -> tuple[Tensor, Tensor]:
        """(C, B, T) log-probs [nats] of every rollout under its contexts, and (C, B) which there are."""
        assert self._graded is not None
        prompts = self._graded.prompts
        template = self.args.hint_template

        def prompt_for(row: int, position: int) -> Messages | None:
            if position >= len(contexts[row]):
                return None
            answer = contexts[row][position]
            return prompts[row] if answer is STUDENT else add_hint(prompts[row], answer, template)

        # At least two contexts, so that the stages after this one need no special case for an empty batch.
        count = max(2, *(len(row) for row in contexts))
        table = [[prompt_for(row, position) for row in range(len(prompts))] for position in range(count)]

        known = inspect.signature(self._get_per_token_logps_and_entropies).parameters

        def log_probs(input_ids, attention_mask, logits_to_keep, **fields):
            # Processors return more than models read (how many crops an image had, say); TRL passes on what is here.
            fields = {key: value for key, value in fields.items() if key in known}
            logps, _, _ = self._get_per_token_logps_and_entropies(
                self.model, input_ids, attention_mask, logits_to_keep, **fields
            )
            return logps

        with (
            evaluating(self.model),
            disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs),
        ):
            logps = score(
                table,
                Rollouts(batch["completion_ids"], batch["completion_mask"]),
                encoder=self._encoder,
                log_probs=log_probs,
                batch_size=self.args.per_device_train_batch_size,
                equal_calls=self._most_over_processes,
                spare=prompts[0],
            )
        present = torch.tensor([[prompt is not None for prompt in row] for row in table], device=logps.device)
        return logps, present

    # Metrics ----------------------------------------------------------------------------------------------------------

    def _log_credit(self, name: str, value: float) -> None:
        self._metrics["train"][f"cepo/{name}"].append(value)

    def _log_seconds(self, part: str, seconds: float) -> None:
        self.seconds[part] += seconds
        self._log_credit(f"seconds/{part}", seconds)

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

    def _most_over_processes(self, number: int) -> int:
        return int(self.accelerator.gather(torch.tensor([number], device=self.accelerator.device)).max())


def _freeze_vision_tower(model: torch.nn.Module) -> None:
    frozen = [p for name, p in model.named_parameters() if _VISION_TOWERS & set(name.split("."))]
    if not frozen:
        raise ValueError(
            f"freeze_vision_tower: {type(model).__name__} has no part named {' or '.join(sorted(_VISION_TOWERS))}"
        )
    for parameter in frozen:
        parameter.requires_grad_(False)


# What transformers' vision-language models call their vision tower.
_VISION_TOWERS = {"visual", "vision_model", "vision_tower"}


def _require_a_batch(dataset: Dataset, args: CEPOConfig) -> None:
    """TRL drops a generation batch that cannot be filled; with too few rows nothing at all would be trained."""
    prompts = args.generation_batch_size // args.num_generations
    if len(dataset) < prompts:
        raise ValueError(
            f"the training set has {len(dataset)} rows, and one generation batch takes {prompts} prompts "
            f"({args.generation_batch_size} rollouts, {args.num_generations} each). Add rows, or lower "
            "per_device_train_batch_size or gradient_accumulation_steps."
        )


_VERDICTS = {True: 1.0, False: -1.0, None: 0.0}


def _trained_tokens(batch: dict[str, Any]) -> Tensor:
    """(B, T) bool: the completion tokens that the loss counts; what a tool returned is not among them."""
    mask = batch["completion_mask"].bool()
    return mask & batch["tool_mask"].bool() if "tool_mask" in batch else mask


def _text(completion: str | list[dict[str, Any]]) -> str:
    """The text of a completion: of its last assistant message, where it is a conversation."""
    if isinstance(completion, str):
        return completion
    message = next((m for m in reversed(completion) if m["role"] == "assistant"), {"content": ""})
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)
