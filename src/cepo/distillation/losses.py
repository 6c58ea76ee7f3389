"""The loss of OPSD and SDPO: divergence of the policy from its teacher on the policy's rollouts.

Dimensions: N tokens in the loss, H hidden size.
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
    """The rollouts of a micro-batch that have a teacher.

    Attributes:
        prompts: Prompts of the student, one per rollout.
        student, teacher: Prompt and completion of each rollout, as student and teacher condition on them.
        counted: Bool mask over all completion tokens, True for the N tokens in the loss.
        tokens: (N,) token ids.
        old: (N,) log-probs at sampling time [nats]; None if unknown.
        sampler_ratio: (N,) TRL's importance sampling ratio of the policy to vLLM, clipped; None without vLLM.
        empty: Whether no rollout has a teacher. One rollout is kept for the passes of the other processes.
        states: Computes hidden states of requests: `hidden_states` or `branched_states`.
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
    """(N, H) hidden states of the teacher, and its LM head."""

    hidden: Tensor
    head: Head


def teacher_states(model: PreTrainedModel, batch: DistillationBatch, *, copied: bool = False) -> TeacherStates:
    """The teacher's pass; the caller sets weights, mode and gradient. For `copied` see `Head.detached`."""
    # The head after the pass: with sharded weights the pass prepares gathering it.
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
    """The student's pass and the loss, as sums over tokens.

    Args:
        model: The policy.
        batch: Rollouts with a teacher.
        teacher: Result of `teacher_states`.
        beta, temperature, top_k: See `divergence`.
        importance_clip: Upper bound of the importance ratio that weights a token's divergence; None: no weight.

    Returns:
        () loss [nats], () unweighted divergence [nats] and () entropy [nats], the latter two without gradient.
    """
    hidden, head = batch.states(model, batch.prompts, batch.student)[batch.counted], Head.of(model)
    values, entropies = divergence(
        hidden, head, teacher.hidden, teacher.head, beta=beta, temperature=temperature, top_k=top_k
    )
    weights = torch.ones_like(values)
    if batch.old is not None and importance_clip is not None:
        with torch.no_grad():
            now = sampled_log_probs(hidden, head, batch.tokens, temperature, rounded=True)
        weights = (now - batch.old).exp().clamp(max=importance_clip)
    if batch.sampler_ratio is not None:
        weights = weights * batch.sampler_ratio
    factor = 0.0 if batch.empty else 1.0
    return factor * (values * weights).sum(), factor * values.detach().sum(), factor * entropies.sum()
