"""The teachers of a run: the policy, a lagging copy of its weights, or another model."""

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
from .distributed import Distributed
from .nonfinite_gradients import NonfiniteGradients
from .sharding import inner_model, layout_of

_SHARES = {"auto": None, "always": True, "never": False}


class Teachers:
    """Scores rollouts of a run under hinted prompts.

    Args:
        trainer: Trainer of the policy.
        args: Options of the run.
        distributed: Reductions over processes, whose numbers of forward passes have to agree.

    Raises:
        ValueError: If `teacher_model_name_or_path` cannot be loaded.
    """

    def __init__(self, trainer: GRPOTrainer, args: CEPOConfig, distributed: Distributed):
        self._trainer, self._args, self._distributed = trainer, args, distributed
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
            # Not sharded: numbers of passes may differ between processes.
            self._other = Scorer(model, shares=_SHARES[args.shared_prompt], warns=self._warns)

    @cached_property
    def weights(self) -> TeacherWeights:
        """The teachers' weights, a copy of the policy's at the first access.

        `FollowPolicy` accesses them before the first optimizer step, when weights are sharded already.
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

    def inner(self) -> PreTrainedModel:
        """The transformers model inside the policy's wrappers and adapters."""
        return inner_model(self._trainer, self._trainer.model)

    @contextmanager
    def scoring_mode(self) -> Iterator[None]:
        """The policy in eval mode, without gradient and gradient checkpointing."""
        with (
            evaluating(self._trainer.model),
            disable_gradient_checkpointing(self._trainer.model, self._args.gradient_checkpointing_kwargs),
        ):
            yield

    def student_logps(self, batch: Batch) -> Tensor | None:
        """(B, T) log P_S [nats] if TRL has computed them for its ratio, as with vLLM; otherwise None.

        With dropout, TRL's differ from those of eval mode, in which teachers score.
        """
        return None if has_dropout(self._trainer.model) else batch.get("old_per_token_logps")

    def pipeline(self, encoder: PromptEncoder, batch: Batch, *, own_weights: bool = False) -> Pipeline:
        """The pipeline from groups to evidence.

        Args:
            encoder: Makes hinted prompts.
            batch: TRL's generation batch.
            own_weights: Whether the policy's current weights score, whatever the teacher of the run is.
        """
        width = batch["prompt_ids"].shape[1] + batch["completion_ids"].shape[1]
        max_tokens = self._args.teacher_batch_tokens or self._args.per_device_train_batch_size * width
        log_probs = partial(self._policy_scorer().log_probs, max_tokens=max_tokens)
        seed = f"{self._args.seed}:{self._trainer.state.global_step}"
        pipeline = Pipeline(encoder, log_probs, seed=seed)
        if self._other is not None:
            pipeline = replace(pipeline, other_log_probs=partial(self._other.log_probs, max_tokens=max_tokens))
        if own_weights or not self.weights.lags:
            return pipeline
        return replace(pipeline, teacher_log_probs=self._with_teacher_weights(log_probs))

    def _with_teacher_weights(self, log_probs: LogProbs) -> LogProbs:
        def score(prompts: Sequence[Prompt], requests: Sequence[Request]) -> list[Tensor]:
            with self.weights.in_place():
                return log_probs(prompts, requests)

        return score

    def _policy_scorer(self) -> Scorer:
        if self._scorer is None:  # training wraps the model before the first batch
            trainer: Any = self._trainer
            self._scorer = Scorer(
                ScoringModel(
                    trainer.model,
                    self.inner(),
                    trainer.accelerator.autocast,
                    temperature=trainer.temperature,
                ),
                reduce_max=self._distributed.max_numbers,
                shares=_SHARES[self._args.shared_prompt],
                warns=self._warns,
            )
        return self._scorer


class FollowPolicy(TrainerCallback):
    """Copies the policy's weights for the teachers, and updates the copy after each optimizer step.

    Args:
        teachers: Teachers of the run.
        gradients: Knows whether the last optimizer step was skipped.
    """

    def __init__(self, teachers: Teachers, gradients: NonfiniteGradients):
        self._teachers, self._gradients = teachers, gradients

    def on_train_begin(self, args, state, control, **kwargs):  # noqa: ARG002
        self._teachers.weights  # noqa: B018  # makes the copy

    def on_step_end(self, args, state, control, **kwargs):  # noqa: ARG002
        self._teachers.weights.after_step(state.global_step, made=self._gradients.in_a_row == 0)
