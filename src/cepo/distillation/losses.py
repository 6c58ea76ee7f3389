"""OPSD and SDPO: the policy is drawn towards its teacher's distributions, on its own rollouts, without advantages.

Dimensions: T completion tokens, N counted tokens, H hidden width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..scoring.forward import hidden_states
from ..scoring.head import Head, sampled_log_probs
from ..scoring.requests import Prompt, Request
from .divergence import divergence


@dataclass(frozen=True)
class DistillationBatch:
    """The rollouts of a micro-batch that have a teacher, as student and teacher read them.

    Attributes:
        prompts: The student's prompts, one for each row.
        student, teacher: What each reads.
        counted: Which of all completion tokens the loss counts; N of them.
        tokens: (N,) their ids.
        old: (N,) their log-probs when they were sampled [nats], where known.
        sampler_ratio: (N,) how much likelier the policy finds them than the engine that sampled them did, within TRL's
            bounds; None where the policy itself sampled them.
        empty: There is no such row; one row is here all the same, for the passes that all processes make together.
        states: Makes the hidden states of requests: `hidden_states`, or `branched_states`.
    """

    prompts: list[Prompt]
    student: list[Request]
    teacher: list[Request]
    counted: Tensor
    tokens: Tensor
    old: Tensor | None
    sampler_ratio: Tensor | None
    empty: bool
    states: Callable[[PreTrainedModel, Sequence[Prompt], Sequence[Request]], Tensor] = hidden_states


@dataclass(frozen=True)
class TeacherStates:
    """What a teacher says: its (N, H) hidden states and the head that makes distributions of them."""

    hidden: Tensor
    head: Head


def teacher_states(model: PreTrainedModel, batch: DistillationBatch, *, copied: bool = False) -> TeacherStates:
    """The teacher's part; the model's weights, mode and gradient are the caller's; `copied` as for `Head.detached`."""
    # The head after the pass: engines that shard weights make ready for gathering them in a forward pass.
    hidden = batch.states(model, batch.prompts, batch.teacher)[batch.counted]
    return TeacherStates(hidden, Head.of(model).detached(copied=copied))


def student_divergence(
    model: PreTrainedModel,
    batch: DistillationBatch,
    teacher: TeacherStates,
    *,
    beta: float,
    temperature: float,
    top_k: int | None,
    importance_clip: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The student's part: sums over the counted tokens.

    Args:
        model: The policy.
        batch: What to learn from.
        teacher: What the teacher said.
        beta, temperature, top_k: See `divergence`.
        importance_clip: The most that new over old probability of a token weighs its divergence; None: not weighed.

    Returns:
        The loss [nats], the plain divergence [nats] and the entropy [nats], each (), the latter two without gradient.
    """
    hidden, head = batch.states(model, batch.prompts, batch.student)[batch.counted], Head.of(model)
    values, entropies = divergence(
        hidden, head, teacher.hidden, teacher.head, beta=beta, temperature=temperature, top_k=top_k
    )
    weights = torch.ones_like(values)
    if batch.old is not None and importance_clip is not None:
        with torch.no_grad():
            now = sampled_log_probs(hidden, head, batch.tokens, temperature)
        weights = (now - batch.old).exp().clamp(max=importance_clip)
    if batch.sampler_ratio is not None:
        weights = weights * batch.sampler_ratio
    factor = 0.0 if batch.empty else 1.0
    return factor * (values * weights).sum(), factor * values.detach().sum(), factor * entropies.sum()
