"""`CEPOTrainer`: TRL's GRPOTrainer with credit placed token by token. The only file that knows TRL's internals.

TRL samples the rollouts, rewards them and computes the loss. Three seams are used: `_calculate_rewards` sees prompts,
texts and rewards (and gathers the rewards of groups that span processes); `_generate_and_score_completions` returns the
batch, to which the evidence is added; `_compute_loss` is given (B, T) token advantages, which TRL's losses accept.
"""

import itertools
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, get_args

import torch
from accelerate.utils import gather_object, is_peft_model
from datasets import Dataset
from torch import Tensor
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from .answers import final_answer
from .batches import prompt_of, select_rows, trained_tokens, without_padding
from .checks import check_dataset, check_solution
from .config import CEPOConfig
from .credit import token_advantages
from .hints import Messages, add_hint
from .inspection import Group, Rollout
from .loading import require_chat_template
from .methods import METHODS, Context, Evidence
from .metrics import credit_metrics, credit_sums
from .passes import Ids, Policy, Reader
from .references import Attempt, Fallback, References, choose_references
from .saved import rows_of, save_rows
from .teachers import PromptEncoder, Read, Rollouts, evaluating, score_contexts
from .views.training import NUMBER_OF_GROUPS, write_credit_page

_T = TypeVar("_T")


@dataclass(frozen=True)
class _Graded:
    """What `_calculate_rewards` saw of one generation batch: this process's prompts, and everyone's rollouts."""

    prompts: list[Messages]
    attempts: list[Attempt]
    solutions: list[str]


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
        # Answers are compared with solutions for the method, or for people who want to see credit.
        needs_solution = self.method.needs_teachers or args.credit_samples_every > 0
        self._grades = needs_solution or (args.log_completions and _has_solutions(train_dataset))
        if train_dataset is not None:
            owns_prompts = kwargs.get("environment_factory") is not None  # then the prompts come from the environment
            check_dataset(train_dataset, needs_solution=needs_solution, needs_prompt=not owns_prompts)
            if isinstance(train_dataset, Dataset):
                _require_a_batch(train_dataset, args)
        self._graded: _Graded | None = None
        self._kept_step: int | None = None
        # Seconds that this process spent since it started; `update` is the loss, forward and backward.
        self.seconds = {"generation": 0.0, "teachers": 0.0, "update": 0.0}
        self._generation_seconds = self._preparation_seconds = self._update_seconds = 0.0
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
            _freeze_vision_tower(self.model)
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

    # TRL's seams ------------------------------------------------------------------------------------------------------

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self.model.training and self._grades:
            solutions = [check_solution(row, f"a row of the training set (prompt {row['prompt']!r})") for row in inputs]
            self._graded = self._grade(prompts, completions, solutions, rewards_per_func)
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
        return loss

    def _compute_loss(self, model, inputs):
        if not self.model.training:
            return super()._compute_loss(model, inputs)
        factor = 1.0
        if self._skips:
            moving, factor = self._moving_rows(inputs)
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
        return self.args.coefficient_at(self.state.global_step) if self.method.needs_teachers else 0.0

    def _find_evidence(self, batch: dict[str, Any]) -> tuple[Tensor, float]:
        """(B, T) evidence [nats] of a generation batch, and the share of its rollouts that teachers re-read."""
        advantages, mask = batch["advantages"], trained_tokens(batch)
        # A rollout that moves nothing is not re-read.
        matters = ((advantages != 0) & mask.any(dim=1)).tolist()

        references = self._references()
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
        assert self._graded is not None
        attempts = self._own(self._graded.attempts)
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

    def _grade(
        self, prompts: list[Messages], completions: list[Any], solutions: list[str], rewards_per_func: Tensor
    ) -> _Graded:
        """Groups may span processes, so answers are gathered, as TRL gathers the rewards."""
        everyone = gather_object([(final_answer(_text(c)), s) for c, s in zip(completions, solutions, strict=True)])
        correctness = rewards_per_func[:, self._correctness_index].tolist()
        totals = (rewards_per_func * self.reward_weights.to(rewards_per_func.device)).nansum(dim=1).tolist()
        threshold = self.args.correctness_threshold
        attempts = [
            # NaN: the function gave no verdict.
            Attempt(answer, total, None if verdict != verdict else verdict >= threshold)
            for (answer, _), total, verdict in zip(everyone, totals, correctness, strict=True)
        ]
        return _Graded(prompts, attempts, [solution for _, solution in everyone])

    def _own(self, everyone: list[_T]) -> list[_T]:
        """This process's part of a list that has one entry for each rollout of all processes."""
        size = len(everyone) // self.accelerator.num_processes
        return everyone[self.accelerator.process_index * size :][:size]

    def _references(self) -> list[References]:
        """References of this process's rollouts."""
        graded, size = self._graded, self.num_generations
        assert graded is not None  # set by `_calculate_rewards`, which TRL calls for every batch
        references: list[References] = []
        for start in range(0, len(graded.attempts), size):
            references += choose_references(
                graded.attempts[start : start + size],
                graded.solutions[start],
                rule=self.args.negative_reference,
                max_negatives=self.args.max_negatives,
            )
        return self._own(references)

    def _teacher_logps(self, batch: dict[str, Any], contexts: list[list[Context]]) -> tuple[Tensor, Tensor]:
        """(C, B, T) log-probs [nats] of every rollout under its contexts, and (C, B) which there are."""
        rows, prompt_of_row = self._prompt_rows([bool(answers) for answers in contexts])
        prompts = [prompt_of(batch, row, self._image_token()) for row in rows]
        assert self._graded is not None
        plain = [self._graded.prompts[row] for row in rows]

        def hinted(index: int, answer: str) -> Ids:
            messages = add_hint(plain[index], answer, self.args.hint_template)
            return self._encoder.with_hint(prompts[index], plain[index], messages)

        rollouts = Rollouts(batch["completion_ids"], trained_tokens(batch), prompt_of_row)
        with self._reading():
            return score_contexts(
                contexts,
                rollouts,
                prompts,
                hinted=hinted,
                read=self._read(batch),
                student=self._student_logps(batch),
            )

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
        return None if _has_dropout(self.model) else batch.get("old_per_token_logps")

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

    def _why_no_skipping(self) -> str | None:
        """What gives rollouts with zero advantage a gradient, or a part in that of others; None if nothing does."""
        if self.beta != 0:
            return f"beta={self.beta}: the KL term has a gradient for every rollout"
        if self.aux_loss_enabled:
            return "the router's auxiliary loss has a gradient for every rollout"
        if self._entropy_bonus_enabled:
            return "the entropy bonus has a gradient for every rollout"
        if self.top_entropy_quantile < 1:
            return f"top_entropy_quantile={self.top_entropy_quantile} ranks the tokens of all rollouts"
        return None

    def _decide_skipping(self) -> bool:
        reason = self._why_no_skipping()
        if self.args.skip_zero_advantage and reason is not None:
            raise ValueError(
                f"skip_zero_advantage would change the gradient: {reason}. Leave it out, or set it to False"
            )
        if self.args.skip_zero_advantage is None:
            return reason is None and self.args.method != "grpo"
        return self.args.skip_zero_advantage

    def _moving_rows(self, inputs: dict[str, Any]) -> tuple[dict[str, Any] | None, float]:
        """The rows of a micro-batch that can move the policy, and the factor that undoes what their number does to
        the loss's mean; None if there is none, and no need to run any."""
        tokens = trained_tokens(inputs)
        moves = (inputs["advantages"] != 0) & tokens.any(dim=1)
        rows = moves.nonzero().flatten().tolist()
        if not rows and self.accelerator.num_processes == 1:
            return None, 0.0
        # Processes make one forward pass together, and TRL gathers a number per row: all take as many rows. The
        # shortest that do not move cost least.
        (count,) = self._most_over_processes([max(1, len(rows))])
        still = [row for row in tokens.sum(dim=1).argsort().tolist() if not moves[row]]
        rows = sorted(rows + still[: count - len(rows)])
        kept = select_rows(inputs, rows)
        if self.loss_type in ("cispo", "dapo", "vespo"):  # divided by the tokens of the whole batch already
            factor = 1.0
        elif self.loss_type == "bnpo":
            factor = float(trained_tokens(kept).sum().clamp(min=1) / tokens.sum().clamp(min=1))
        else:
            factor = len(rows) / len(moves)
        return without_padding(kept), factor

    # What is left for people ------------------------------------------------------------------------------------------

    def _keep_samples(self, batch: dict[str, Any]) -> None:
        """Save the rollouts, and draw the page of their credit, where the options ask for it."""
        step, every, saves = self.state.global_step, self.args.credit_samples_every, self.args.log_completions
        draws = every > 0 and step % every == 0
        if self._graded is None or step == self._kept_step or not (draws or saves):
            return
        self._kept_step = step
        groups, rows = self._groups(batch)
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
                    processing_class=self.processing_class,
                    args=self.args,
                    step=step,
                    write=self.accelerator.is_main_process,
                )

    def _groups(self, batch: dict[str, Any]) -> tuple[list[Group], list[int]]:
        """This process's part of each group, and the row of the batch with which each part begins."""
        graded, size = self._graded, self.num_generations
        assert graded is not None
        trained = trained_tokens(batch).tolist()
        completions = Rollouts(batch["completion_ids"], batch["completion_mask"].bool(), []).completions()
        rollouts = [
            Rollout(ids, advantage, tuple(mask[: len(ids)]))
            for ids, advantage, mask in zip(completions, batch["advantages"].tolist(), trained, strict=True)
        ]
        before = self.accelerator.process_index * len(rollouts)
        groups, rows = [], []
        for index in range(before // size, -(-(before + len(rollouts)) // size)):
            first = index * size
            row = max(0, first - before)
            own = rollouts[row : first + size - before]
            attempts = graded.attempts[first : first + size]
            groups.append(Group(graded.prompts[row], graded.solutions[first], attempts, own, before + row - first))
            rows.append(row)
        return groups, rows

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

    def _most_over_processes(self, numbers: Sequence[int]) -> list[int]:
        """The most of each number over the processes; shorter lists count as if they went on with zeros."""
        if self.accelerator.num_processes == 1:
            return list(numbers)
        everyone = gather_object([list(numbers)])
        return [max(column) for column in itertools.zip_longest(*everyone, fillvalue=0)]


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


def _has_solutions(dataset: Any) -> bool:
    """Whether every row has a solution. Of a stream nobody knows."""
    if not isinstance(dataset, Dataset) or "solution" not in dataset.column_names:
        return False
    return all(isinstance(solution, str) and solution.strip() for solution in dataset["solution"])


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


def _has_dropout(model: torch.nn.Module) -> bool:
    """Whether a forward pass in train mode is another than in eval mode."""
    rates = (getattr(module, name, 0.0) for module in model.modules() for name in ("p", "attention_dropout"))
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


def _text(completion: str | list[dict[str, Any]]) -> str:
    """The text of a completion: of its last assistant message, where it is a conversation."""
    if isinstance(completion, str):
        return completion
    message = next((m for m in reversed(completion) if m["role"] == "assistant"), {"content": ""})
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)
