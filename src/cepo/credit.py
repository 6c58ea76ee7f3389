"""CEPO's equations (arXiv 2605.19436): from teacher log-probs to token advantages.

In GRPO a rollout y of a prompt x has one advantage A. CEPO scores each rollout twice: once with the correct answer r+
in the prompt, once with an incorrect answer r- taken from a rejected rollout.

    delta_t = log P(y_t | x, r+, y_<t) - log P(y_t | x, r-, y_<t)        evidence, in nats
    w_t     = clip(exp(sign(A) delta_t), 1 - eps_w, 1 + eps_w)           weight
    A_t     = A [(1 - lambda) + lambda w_t]                              token advantage

On a correct rollout (A > 0), a token that is likelier under r+ than under r- gets a larger share of A. On an incorrect
one (A < 0), a token that is likelier under r- gets a larger share of the negative advantage. The sign of A is kept, and
|A_t - A| <= lambda eps_w |A|. With P(y_t | x) in place of the negative teacher this is RLSD; with lambda = 0 or r+ = r-
it is GRPO.

All functions are pure. Evidence is a constant at the sampled tokens, so the loss has no gradient through r+ or r-. A
divergence over the vocabulary, as in self-distillation, would pull the policy towards the teacher's distribution, in
which the answer is known.

Dimensions: B rollouts, T completion tokens, K negative references.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

Schedule = Literal["linear", "cosine", "constant"]


def mean_probability(logps: Tensor, present: Tensor) -> Tensor:
    """Log of the mean probability of several teachers: one negative teacher from several r-.

    Args:
        logps: (K, B, T) log-probs [nats]; any value, NaN included, where a teacher is not `present`.
        present: (K, B) bool, the teachers of each rollout.

    Returns:
        (B, T) ``logsumexp over k - log(number present)`` [nats]; NaN for a rollout without teachers.
    """
    _require_shape("present", present, logps.shape[:2])
    count = present.sum(0)
    total = logps.masked_fill(~present.unsqueeze(-1), -math.inf).logsumexp(0)
    return torch.where(count.unsqueeze(-1) > 0, total - count.clamp(min=1).log().unsqueeze(-1), math.nan)


def unscorable(logp_positive: Tensor, logp_negative: Tensor) -> Tensor:
    """(B, T) bool, tokens to which a teacher gives no finite log-prob; their evidence is 0."""
    return ~(logp_positive.isfinite() & logp_negative.isfinite())


def evidence(logp_positive: Tensor, logp_negative: Tensor) -> Tensor:
    """Contrastive evidence: how much more likely a token is under r+ than under r- (paper, algorithm step 3).

    Args:
        logp_positive: (B, T) log P_T+ of the sampled tokens [nats].
        logp_negative: (B, T) log P_T- of the same tokens [nats]; log P_S instead gives RLSD's evidence.

    Returns:
        (B, T) evidence [nats], detached; 0 where either log-prob is NaN or infinite (see `unscorable`).

    Raises:
        ValueError: If the shapes differ.
    """
    _require_shape("logp_negative", logp_negative, logp_positive.shape)
    difference = logp_positive.detach() - logp_negative.detach()
    return difference.masked_fill(unscorable(logp_positive, logp_negative), 0.0)


def evidence_weights(evidence: Tensor, advantages: Tensor, *, clip: float) -> Tensor:
    """Evidence weights: clip(exp(sign(A) delta), 1 - clip, 1 + clip) (paper, algorithm steps 4 and 5).

    Args:
        evidence: (B, T) evidence [nats].
        advantages: (B,) advantages of the rollouts; where one is 0, the weights are 1.
        clip: eps_w, in (0, 1), so that no weight changes the sign of an advantage.

    Returns:
        (B, T) weights in [1 - clip, 1 + clip].

    Raises:
        ValueError: If `clip` is outside (0, 1) or the shapes do not fit.
    """
    _require_clip(clip)
    _require_rows(advantages, evidence)
    # Clamp the exponent so that the exponential cannot overflow; the second clamp makes the interval exact.
    exponent = signed_evidence(evidence, advantages).clamp(math.log(1 - clip) - 1.0, math.log(1 + clip) + 1.0)
    return exponent.exp().clamp(1 - clip, 1 + clip)


def signed_evidence(evidence: Tensor, advantages: Tensor) -> Tensor:
    """(B, T) sign(A) * delta [nats]: above 0 where evidence raises the weight of a token."""
    return advantages.detach().sign().to(evidence.dtype).unsqueeze(-1) * evidence.detach()


def token_advantages(advantages: Tensor, evidence: Tensor, mask: Tensor, *, coefficient: float, clip: float) -> Tensor:
    """Token advantages: A [(1 - lambda) + lambda w_t] (paper, algorithm step 5).

    Args:
        advantages: (B,) advantages of the rollouts.
        evidence: (B, T) evidence [nats]; any value outside `mask`.
        mask: (B, T) bool, the completion tokens that are trained on.
        coefficient: lambda, in [0, 1].
        clip: eps_w, in (0, 1).

    Returns:
        (B, T) token advantages in the dtype of `advantages`: same sign as A, within lambda * eps_w * |A| of it, exactly
        A where the evidence or lambda is 0, and 0 outside `mask`.

    Raises:
        ValueError: If a value is out of range or the shapes do not fit.
    """
    if not 0 <= coefficient <= 1:
        raise ValueError(f"the evidence coefficient (lambda) must lie in [0, 1], got {coefficient}")
    _require_shape("mask", mask, evidence.shape)
    mask = mask.bool()
    weights = evidence_weights(evidence.masked_fill(~mask, 0.0), advantages, clip=clip)
    # 1 + lambda (w - 1) rather than (1 - lambda) + lambda w: the same number, and exactly 1 where w is 1.
    factor = (1 + coefficient * (weights - 1)).to(advantages.dtype)
    return (advantages.detach().unsqueeze(-1) * factor).masked_fill(~mask, 0.0)


def evidence_coefficient(step: int, *, initial: float, steps: int, schedule: str = "linear") -> float:
    """lambda at an optimizer step (paper, algorithm step 7); without state, so that resuming needs none.

    Args:
        step: Optimizer steps done so far, from 0.
        initial: lambda_0, in [0, 1]: the value at step 0.
        steps: T_warm, in optimizer steps: from then on lambda is 0 and training is GRPO.
        schedule: ``linear`` (the paper), ``cosine``, or ``constant`` until `steps`.

    Raises:
        ValueError: If a value is out of range or the schedule is unknown.
    """
    if not 0 <= initial <= 1:
        raise ValueError(f"the initial evidence coefficient (lambda_0) must lie in [0, 1], got {initial}")
    if step < 0 or steps < 0:
        raise ValueError(f"step and steps must not be negative, got step={step}, steps={steps}")
    if schedule not in get_args(Schedule):
        raise ValueError(f"unknown evidence schedule {schedule!r}; choose one of {', '.join(get_args(Schedule))}")
    if step >= steps:
        return 0.0
    if schedule == "constant":
        return initial
    if schedule == "cosine":
        return initial * 0.5 * (1 + math.cos(math.pi * step / steps))
    return initial * (1 - step / steps)


def _require_clip(clip: float) -> None:
    if not 0 < clip < 1:
        raise ValueError(f"the evidence clip (eps_w) must lie strictly between 0 and 1, got {clip}")


def _require_rows(advantages: Tensor, evidence: Tensor) -> None:
    if evidence.dim() != 2 or advantages.shape != evidence.shape[:1]:
        raise ValueError(
            f"advantages must be (B,) and evidence (B, T), got {tuple(advantages.shape)} and {tuple(evidence.shape)}"
        )


def _require_shape(name: str, tensor: Tensor, shape: torch.Size) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")
