"""Divergence of the student from a teacher over the whole vocabulary, the loss of OPSD and SDPO.

Both distributions are made from hidden states, a chunk of positions at a time, and made again in the backward pass: no
(B, T, V) tensor exists for either model. Dimensions: N completion positions, H hidden width, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

# Positions whose distributions are held at a time where only the largest entries are compared.
_CHUNK = 512


@dataclass(frozen=True)
class Head:
    """How hidden states become logits.

    Attributes:
        weight: (V, H).
        bias: (V,), or None.
        scale: Multiplies the logits.
        softcap: Squeezes them into (-softcap, softcap), as Gemma does; None: not.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Head":
        """The head of a transformers model."""
        layer, config = model.get_output_embeddings(), model.config.get_text_config()
        scale = next(
            (
                value
                for name in ("logit_scale", "output_multiplier", "lm_head_multiplier")
                if (value := getattr(config, name, None)) is not None
            ),
            None,
        )
        if scale is None and (scaling := getattr(config, "logits_scaling", None)) is not None:
            # Granite and MiniCPM3 divide by it, HyperCLOVA X multiplies.
            scale = scaling if config.model_type == "hyperclovax" else 1 / scaling
        softcap = getattr(config, "final_logit_softcapping", None)
        return cls(layer.weight, layer.bias, 1.0 if scale is None else scale, softcap)

    def detached(self) -> "Head":
        """The same head without gradient, which stays what it is when the model's weights are exchanged."""
        bias = None if self.bias is None else self.bias.detach()
        return Head(self.weight.detach(), bias, self.scale, self.softcap)

    def log_probs(self, hidden: Tensor, temperature: float, *, rounded: bool = True) -> Tensor:
        """(N, V) log-probs [nats] of (N, H) hidden states.

        In half precision the logits are rounded to it, as a model's own are; a logit of 20 then has steps of 1/8. Not
        `rounded`, only what goes into the products is, at the cost of a copy of the head in float32.
        """
        if rounded:
            logits = torch.nn.functional.linear(hidden, self.weight, self.bias).float()
        else:
            device = hidden.device.type
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
            bias = None if self.bias is None else self.bias.float()
            with torch.autocast(device, enabled=False):
                logits = torch.nn.functional.linear(hidden.to(dtype).float(), self.weight.to(dtype).float(), bias)
        logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return (logits / temperature).log_softmax(-1)


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
    teacher_hidden = teacher_hidden.detach()
    if top_k is None or top_k >= len(student_head.weight):
        return ChunkedDivergenceFunction.apply(
            student_hidden,
            student_head.weight,
            student_head.bias,
            teacher_hidden,
            teacher_head.weight.detach(),
            None if teacher_head.bias is None else teacher_head.bias.detach(),
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
        for student, teacher in zip(student_hidden.split(_CHUNK), teacher_hidden.split(_CHUNK), strict=True)
    ]
    values, entropies = zip(*parts, strict=True)
    return torch.cat(values), torch.cat(entropies)


@torch.no_grad()
def sampled_log_probs(hidden: Tensor, head: Head, tokens: Tensor, temperature: float) -> Tensor:
    """(N,) log-probs [nats] of the (N,) tokens, rounded as those are that TRL took when they were sampled."""
    parts = zip(hidden.split(_CHUNK), tokens.split(_CHUNK), strict=True)
    return torch.cat([head.log_probs(h, temperature).gather(-1, t.unsqueeze(-1)).squeeze(-1) for h, t in parts])


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
