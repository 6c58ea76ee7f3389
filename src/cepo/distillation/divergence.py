"""Divergence of the student from a teacher over the whole vocabulary, the loss of OPSD and SDPO.

Both distributions are made from hidden states, a chunk of positions at a time, and made again in the backward pass: no
(B, T, V) tensor exists for either model. Dimensions: N completion positions, H hidden width, V vocabulary.
"""

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from ..scoring.head import CHUNK, Head


def divergence(
    student_hidden: Tensor,
    student_head: Head,
    teacher_hidden: Tensor,
    teacher_head: Head,
    *,
    beta: float,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Divergence of the student from the teacher at each position, and the student's entropy.

    Args:
        student_hidden: (N, H) hidden states before the head; the gradient goes through these and the student's head.
        student_head: The student's head.
        teacher_hidden: (N, H) of the teacher, which gets no gradient.
        teacher_head: The teacher's head.
        beta: 0: forward KL(T || S); 1: reverse KL(S || T); between: the Jensen-Shannon divergence
            ``beta KL(T || M) + (1 - beta) KL(S || M)`` with ``M = beta T + (1 - beta) S``.
        temperature: Of both distributions.
        top_k: Compare the student's k most likely tokens, and all others together as one (SDPO); None: every token.

    Returns:
        (N,) divergence [nats], and (N,) entropy of the student [nats], which has no gradient.

    Raises:
        ValueError: If a value is out of range.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must lie in [0, 1], got {beta}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    teacher_hidden, teacher_head = teacher_hidden.detach(), teacher_head.detached()
    if top_k is None or top_k >= len(student_head.weight):
        return ChunkedDivergenceFunction.apply(
            student_hidden,
            student_head.weight,
            student_head.bias,
            teacher_hidden,
            teacher_head.weight,
            teacher_head.bias,
            beta,
            temperature,
            student_head.scale,
            student_head.softcap,
            teacher_head.scale,
            teacher_head.softcap,
        )

    def of_chunk(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        # Rounding would drown the small differences that there are at most positions.
        log_s = student_head.log_probs(student, temperature, rounded=False)
        with torch.no_grad():
            log_t = teacher_head.log_probs(teacher, temperature, rounded=False)
        kept = log_s.detach().topk(top_k, dim=-1).indices
        values = jensen_shannon(_with_tail(log_s, kept), _with_tail(log_t, kept), beta)
        return values, -(log_s.detach().exp() * log_s.detach()).nan_to_num().sum(-1)

    parts = [
        checkpoint(of_chunk, student, teacher, use_reentrant=False)
        for student, teacher in zip(student_hidden.split(CHUNK), teacher_hidden.split(CHUNK), strict=True)
    ]
    values, entropies = zip(*parts, strict=True)
    return torch.cat(values), torch.cat(entropies)


def jensen_shannon(log_s: Tensor, log_t: Tensor, beta: float) -> Tensor:
    """The generalised Jensen-Shannon divergence of `divergence`, of (..., V) log-probs [nats], over the last axis."""
    if beta == 0:
        return _kl(log_t, log_s)
    if beta == 1:
        return _kl(log_s, log_t)
    mixture = torch.logaddexp(log_t + math.log(beta), log_s + math.log(1 - beta))
    return beta * _kl(log_t, mixture) + (1 - beta) * _kl(log_s, mixture)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    # Where p is 0 the term is 0, whatever q is.
    return torch.where(log_p > -math.inf, log_p.exp() * (log_p - log_q), 0.0).sum(-1)


def _with_tail(logps: Tensor, kept: Tensor) -> Tensor:
    """(N, k + 1) of (N, V) log-probs: those that are kept, and the log of what all others have together."""
    # Summed, not taken from 1, of which rounding would leave nothing where the kept ones have nearly all.
    tail = logps.scatter(-1, kept, -math.inf).logsumexp(-1, keepdim=True)
    return torch.cat([logps.gather(-1, kept), tail], dim=-1)
