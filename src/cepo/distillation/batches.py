"""OPSD and SDPO: the policy is drawn towards its teacher's distributions, on its own rollouts, without advantages.

Dimensions: B rollouts, T completion tokens, P' tokens of a teacher's prompt, N counted tokens, H hidden width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl.trainer.utils import pad

from ..scoring.passes import hidden_states
from ..scoring.requests import Ids, Prompt, Reading
from ..scoring.scoring import Rollouts
from ..trainer.batches import Batch, prompt_of, trained_tokens
from .divergence import Head, divergence, sampled_log_probs


def add_teacher_prompts(batch: Batch, prompts: Sequence[Ids | None]) -> Tensor:
    """Put teachers' prompts into TRL's batch, where they ride along the rollouts to the loss.

    Args:
        batch: TRL's generation batch; gets `teacher_ids` and `teacher_mask`, (B, P'), padded on the left.
        prompts: For each rollout the token ids of its teacher's prompt; None: it has no teacher.

    Returns:
        () how many tokens have a teacher.
    """
    trained = trained_tokens(batch)
    ids = [torch.tensor(tokens or (), dtype=torch.long) for tokens in prompts]
    masks = [torch.ones_like(row) for row in ids]
    batch["teacher_ids"] = pad(ids, padding_value=0, padding_side="left").to(trained.device)
    batch["teacher_mask"] = pad(masks, padding_value=0, padding_side="left").to(trained.device)
    return trained[batch["teacher_mask"].any(dim=1)].sum()


@dataclass(frozen=True)
class Lesson:
    """The rows of a micro-batch that have a teacher, as student and teacher read them.

    Attributes:
        prompts: The student's prompts, one for each row.
        student, teacher: What each reads.
        counted: Which of all completion tokens the loss counts; N of them.
        tokens: (N,) their ids.
        old: (N,) their log-probs when they were sampled [nats], where known.
        sampler_ratio: (N,) how much likelier the policy finds them than the engine that sampled them did, within TRL's
            bounds; None where the policy itself sampled them.
        empty: There is no such row; one row is here all the same, for the passes that all processes make together.
    """

    prompts: list[Prompt]
    student: list[Reading]
    teacher: list[Reading]
    counted: Tensor
    tokens: Tensor
    old: Tensor | None
    sampler_ratio: Tensor | None
    empty: bool

    @classmethod
    def of(cls, batch: Batch, image_token: int | None) -> "Lesson":
        """The lesson of a micro-batch that carries teachers' prompts."""
        trained = trained_tokens(batch)
        rows = (batch["teacher_mask"].any(dim=1) & trained.any(dim=1)).nonzero().flatten().tolist()
        chosen = rows or [0]
        prompts = [prompt_of(batch, row, image_token) for row in chosen]
        exists = batch["completion_mask"][chosen].bool()
        completions = Rollouts(batch["completion_ids"][chosen], exists, []).completions()
        student, teacher = [], []
        for index, row in enumerate(chosen):
            ids = tuple(batch["teacher_ids"][row][batch["teacher_mask"][row].bool()].tolist())
            student.append(Reading(index, prompts[index].ids, completions[index]))
            teacher.append(Reading(index, ids or prompts[index].ids, completions[index]))

        def of_all(values: Tensor) -> Tensor:
            return torch.cat([values[row, : len(ids)] for row, ids in zip(chosen, completions, strict=True)])

        counted = of_all(trained)
        old, ratio = batch.get("old_per_token_logps"), batch.get("importance_sampling_ratio")
        return cls(
            prompts,
            student,
            teacher,
            counted,
            of_all(batch["completion_ids"])[counted],
            None if old is None else of_all(old)[counted],
            None if ratio is None else of_all(ratio.expand(trained.shape))[counted],  # (B, T), or (B, 1) of sequences
            not rows,
        )


@dataclass(frozen=True)
class Taught:
    """What a teacher says: its (N, H) hidden states and the head that makes distributions of them."""

    hidden: Tensor
    head: Head


def taught(model: PreTrainedModel, lesson: Lesson) -> Taught:
    """The teacher's part; the model's weights, mode and gradient are the caller's."""
    head = Head.of(model)
    return Taught(hidden_states(model, lesson.prompts, lesson.teacher)[lesson.counted], head.detached())


def learn(
    model: PreTrainedModel,
    lesson: Lesson,
    teacher: Taught,
    *,
    beta: float,
    temperature: float,
    top_k: int | None,
    importance_clip: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The student's part: sums over the counted tokens.

    Args:
        model: The policy.
        lesson: What to learn.
        teacher: What the teacher said.
        beta, temperature, top_k: See `divergence`.
        importance_clip: The most that new over old probability of a token weighs its divergence; None: not weighed.

    Returns:
        The loss [nats], the plain divergence [nats] and the entropy [nats], each (), the latter two without gradient.
    """
    hidden, head = hidden_states(model, lesson.prompts, lesson.student)[lesson.counted], Head.of(model)
    values, entropies = divergence(
        hidden, head, teacher.hidden, teacher.head, beta=beta, temperature=temperature, top_k=top_k
    )
    weights = torch.ones_like(values)
    if lesson.old is not None and importance_clip is not None:
        now = sampled_log_probs(hidden.detach(), head, lesson.tokens, temperature)
        weights = (now - lesson.old).exp().clamp(max=importance_clip)
    if lesson.sampler_ratio is not None:
        weights = weights * lesson.sampler_ratio
    factor = 0.0 if lesson.empty else 1.0
    return factor * (values * weights).sum(), factor * values.detach().sum(), factor * entropies.sum()
