"""Who reads rollouts in training: the policy, a copy of it that lags behind, another model; and how passes are made."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from ..data.models import load_teacher_model
from ..scoring.forward import Scorer, ScoringModel, evaluating, has_dropout
from ..scoring.pipeline import LogProbs, Pipeline
from ..scoring.prompts import PromptEncoder
from ..scoring.requests import Prompt, Request
from ..scoring.teacher_weights import TeacherWeights
from .batches import Batch
from .cepo_config import CEPOConfig
from .distributed import Processes
from .sharding import inner_model, layout_of

_SHARES = {"auto": None, "always": True, "never": False}


class Teachers:
    """The readers of a run.

    Args:
        trainer: Whose policy it is.
        args: Its options.
        processes: Its processes, which make their passes together.

    Raises:
        ValueError: If there is no such teacher model.
    """

    def __init__(self, trainer: GRPOTrainer, args: CEPOConfig, processes: Processes):
        self._trainer, self._args, self._processes = trainer, args, processes
        self._warns = trainer.accelerator.is_main_process
        self._scorer: Scorer | None = None
        self._other: Scorer | None = None
        if args.teacher_model_name_or_path is not None:
            other = load_teacher_model(
                args.teacher_model_name_or_path,
                trainer.processing_class,
                trainer.model.dtype,
                trust_remote_code=args.trust_remote_code,
            ).to(trainer.accelerator.device)
            model = ScoringModel(other, other, trainer.accelerator.autocast, temperature=trainer.temperature)
            # A model of its own on each process: their numbers of passes need not agree.
            self._other = Scorer(model, shares=_SHARES[args.shared_prompt], warns=self._warns)

    @cached_property
    def weights(self) -> TeacherWeights:
        """The teachers' weights. They begin as the policy's are when this is first asked for.

        That is before the first optimiser step, and, where weights are sharded, once they are.
        """
        trainer, args = self._trainer, self._args
        return TeacherWeights(
            trainer.model,
            args.teacher or "policy",
            sync_steps=args.teacher_sync_steps or 1,
            decay=args.teacher_ema_decay or 0.0,
            layout=layout_of(trainer),
            writes=trainer.accelerator.is_main_process,
        )

    def follow(self, step: int) -> None:
        """Let the teachers' weights follow the policy's after an optimiser step, if it was made."""
        self.weights.after_step(step, made=not self._trainer.step_was_skipped)

    def inner(self) -> PreTrainedModel:
        """The transformers model inside the policy's wrappers."""
        return inner_model(self._trainer, self._trainer.model)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """The policy as a teacher: eval mode, no gradient, no checkpoints for one."""
        with (
            evaluating(self._trainer.model),
            disable_gradient_checkpointing(self._trainer.model, self._args.gradient_checkpointing_kwargs),
        ):
            yield

    def student_logps(self, batch: Batch) -> Tensor | None:
        """(B, T) log P_S [nats] where TRL has computed them for its ratio, as with vLLM; None: a scoring pass does.

        With dropout, TRL's are not those of eval mode, in which teachers score.
        """
        return None if has_dropout(self._trainer.model) else batch.get("old_per_token_logps")

    def pipeline(self, encoder: PromptEncoder, batch: Batch, *, own_weights: bool = False) -> Pipeline:
        """From groups to evidence, with the teachers that the options ask for, or with the policy's own weights."""
        width = batch["prompt_ids"].shape[1] + batch["completion_ids"].shape[1]
        most = self._args.teacher_batch_tokens or self._args.per_device_train_batch_size * width
        log_probs = partial(self._policy_scorer().log_probs, max_tokens=most)
        seed = f"{self._args.seed}:{self._trainer.state.global_step}"
        pipeline = Pipeline(encoder, log_probs, seed=seed)
        if self._other is not None:
            pipeline = replace(pipeline, other_log_probs=partial(self._other.log_probs, max_tokens=most))
        if own_weights or not self.weights.lags:
            return pipeline
        return replace(pipeline, teacher_log_probs=self._with_teacher_weights(log_probs))

    def _with_teacher_weights(self, log_probs: LogProbs) -> LogProbs:
        def read(prompts: Sequence[Prompt], requests: Sequence[Request]) -> list[Tensor]:
            with self.weights.in_place():
                return log_probs(prompts, requests)

        return read

    def _policy_scorer(self) -> Scorer:
        if self._scorer is None:  # not earlier: training wraps the model
            trainer: Any = self._trainer
            self._scorer = Scorer(
                ScoringModel(
                    trainer.model,
                    self.inner(),
                    trainer.accelerator.autocast,
                    fused=True,
                    before_pass=layout_of(trainer).before_pass,
                ),
                reduce_max=self._processes.most,
                shares=_SHARES[self._args.shared_prompt],
                warns=self._warns,
            )
        return self._scorer


class FollowPolicy(TrainerCallback):
    """Lets the teachers' weights begin as the policy's, and follow them after each optimiser step."""

    def __init__(self, teachers: Teachers):
        self.teachers = teachers

    def on_train_begin(self, args, state, control, **kwargs):  # noqa: ARG002
        self.teachers.weights  # noqa: B018  # which makes the copy

    def on_step_end(self, args, state, control, **kwargs):  # noqa: ARG002
        self.teachers.follow(state.global_step)
