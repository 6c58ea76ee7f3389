"""Divergence of the student from a teacher over the vocabulary, the loss of OPSD and SDPO.

Both distributions are computed from hidden states in chunks of positions, and again in the backward pass, so that no
(B, T, V) tensor exists. Dimensions: N completion positions, H hidden size, V vocabulary.
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
        student_hidden: (N, H) hidden states before the head.
        student_head: LM head of the student; gets a gradient, as `student_hidden` does.
        teacher_hidden: (N, H) hidden states of the teacher, without gradient.
        teacher_head: LM head of the teacher, without gradient.
        beta: 0: forward KL(T || S); 1: reverse KL(S || T); between: the generalized Jensen-Shannon divergence
            ``beta KL(T || M) + (1 - beta) KL(S || M)`` with ``M = beta T + (1 - beta) S``.
        temperature: Sampling temperature of both distributions.
        top_k: Compare the student's k most likely tokens and the sum of all others (SDPO); None: every token.

    Returns:
        (N,) divergence [nats], and (N,) entropy of the student [nats] without gradient.
    """
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
        log_s = student_head.log_probs(student, temperature)
        with torch.no_grad():
            log_t = teacher_head.log_probs(teacher, temperature)
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
    """Generalized Jensen-Shannon divergence [nats] of (..., V) log-probs over the last axis; see `divergence`."""
    if beta == 0:
        return _kl(log_t, log_s)
    if beta == 1:
        return _kl(log_s, log_t)
    mixture = torch.logaddexp(log_t + math.log(beta), log_s + math.log(1 - beta))
    return beta * _kl(log_t, mixture) + (1 - beta) * _kl(log_s, mixture)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    # The term is 0 where p is 0, for any q.
    return torch.where(log_p > -math.inf, log_p.exp() * (log_p - log_q), 0.0).sum(-1)


def _with_tail(logps: Tensor, kept: Tensor) -> Tensor:
    """(N, k + 1) log-probs of the top k tokens and of all others together."""
    # A sum rather than 1 - top k, which rounding would make 0 for a small tail.
    tail = logps.scatter(-1, kept, -math.inf).logsumexp(-1, keepdim=True)
    return torch.cat([logps.gather(-1, kept), tail], dim=-1)
