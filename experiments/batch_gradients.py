"""Policy gradients of every arm on the same rollouts.

Dimensions: N rollouts, T completion tokens, D parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cepo.distillation.losses import DistillationBatch, student_divergence, teacher_states
from cepo.inspection.view_model import Variant
from cepo.methods.token_labels import KINDS, token_labels_of
from cepo.references.groups import Group
from cepo.scoring.forward import evaluating, hidden_states
from cepo.scoring.head import Head, sampled_log_probs
from cepo.scoring.pipeline import Pipeline, ScoredBatch, advantages_of, assign_credit, verdicts_of
from cepo.scoring.prompts import token_texts
from cepo.scoring.requests import Prompt, Request, batches_of, length_of

VERDICTS = {"correct": 1.0, "incorrect": -1.0}


@dataclass(frozen=True)
class BatchGradients:
    """The gradients of one batch of rollouts.

    Attributes:
        truth: (D,) REINFORCE with a leave-one-out baseline: its mean is the gradient of the expected reward.
        arms: (D,) gradient of minus each variant's loss.
        parts: (D,) parts of GRPO's gradient, one for each verdict and kind of token.
        tokens: Number of tokens of each part.
    """

    truth: Tensor
    arms: list[Tensor]
    parts: list[Tensor]
    tokens: list[int]


def part_names() -> list[tuple[str, str]]:
    """(verdict, kind of token) of each part."""
    return [(verdict, kind) for verdict in VERDICTS for kind in KINDS]


def batch_gradients(
    model: PreTrainedModel,
    pipeline: Pipeline,
    groups: Sequence[Group],
    variants: Sequence[Variant],
    parameters: Sequence[nn.Parameter],
    *,
    max_tokens: int,
) -> BatchGradients:
    """The gradients of one batch at the policy that sampled it, at temperature 1, where PPO's ratios are 1.

    An arm's gradient is divided by the tokens of the batch, as in TRL's default loss; a divergence loss by the
    tokens with a teacher, as in training. The true gradient is a mean over rollouts: the number of tokens is random,
    and dividing by it would bias the mean.

    Args:
        model: The policy.
        pipeline: Scores the rollouts with the same model.
        groups: The batch.
        variants: The arms, at optimizer step 0.
        parameters: D elements in all.
        max_tokens: Most tokens of a forward pass, padding included.
    """
    prompts = [pipeline.encoder.prompt(group.messages) for group in groups]
    weighted = [variant for variant in variants if not variant.options.uses_divergence_loss]
    options = [variant.options for variant in weighted]
    advantages, verdicts = advantages_of(groups), verdicts_of(groups)
    wanted = torch.stack([o.method_spec.rollout_filter(advantages, verdicts, o) for o in options])
    with evaluating(model):
        found = pipeline.find_evidence(options, groups, prompts, scored=wanted.any(0).tolist())
    # A method has evidence only for the rollouts that it scores.
    found = [_only_scored(one, scored) for one, scored in zip(found, wanted, strict=True)]
    credit = [assign_credit(one.evidence, own, groups, 0) for one, own in zip(found, options, strict=True)]
    mask, placed = credit[0].mask, [one.in_loss for one in credit]
    parts = _parts(_kinds(pipeline, groups, mask), verdicts, advantages, mask)
    weights = [leave_one_out(groups).unsqueeze(-1) * mask, *placed, *parts]
    sums = _gradients(model, prompts, groups, torch.stack(weights), parameters, max_tokens)
    of_weighted = iter(sums[1 : 1 + len(weighted)])
    tokens = int(mask.sum())
    of_variants = [
        _divergence_gradient(model, pipeline, groups, prompts, v, parameters, max_tokens)
        if v.options.uses_divergence_loss
        else next(of_weighted) / tokens
        for v in variants
    ]
    counts = [int((part != 0).sum()) for part in parts]
    return BatchGradients(
        sums[0] / len(advantages),
        of_variants,
        [gradient / tokens for gradient in sums[1 + len(weighted) :]],
        counts,
    )


def _only_scored(found: ScoredBatch, scored: Tensor) -> ScoredBatch:
    """Zero the evidence of rollouts that a method does not score; `scored`: (N,) bool."""
    if not any(found.contexts):
        return found
    values = found.evidence.values.masked_fill(~scored.unsqueeze(-1), 0.0)
    return replace(found, evidence=replace(found.evidence, values=values, scored=found.evidence.scored & scored))


def leave_one_out(groups: Sequence[Group]) -> Tensor:
    """(N,) reward minus the mean reward of the group's other rollouts; 0 for a rollout without a verdict."""
    values = []
    for group in groups:
        known = [rollout.reward for rollout in group.rollouts if rollout.correct is not None]
        others = max(1, len(known) - 1)
        values += [
            0.0 if rollout.correct is None else rollout.reward - (sum(known) - rollout.reward) / others
            for rollout in group.rollouts
        ]
    return torch.tensor(values)


def _kinds(pipeline: Pipeline, groups: Sequence[Group], mask: Tensor) -> Tensor:
    """(N, T) index of each token's kind, from the token labels."""
    known = token_labels_of(groups[0].row)
    assert known is not None
    result = torch.zeros(mask.shape, dtype=torch.long)
    rollouts = [(group, rollout) for group in groups for rollout in group.rollouts]
    for row, (group, rollout) in enumerate(rollouts):
        kinds = known.kinds(group.row, token_texts(pipeline.encoder.processing_class, rollout.ids))
        result[row, : len(kinds)] = torch.tensor([KINDS.index(kind) for kind in kinds])
    return result


def _parts(kinds: Tensor, verdicts: Tensor, advantages: Tensor, mask: Tensor) -> list[Tensor]:
    """GRPO's token advantages, split by verdict and kind."""
    whole = advantages.unsqueeze(-1) * mask
    return [
        whole * (kinds == KINDS.index(kind)) * (verdicts == VERDICTS[verdict]).unsqueeze(-1)
        for verdict, kind in part_names()
    ]


def _flat(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]) -> Tensor:
    """(D,) concatenated gradients; 0 for parameters without one."""
    parts = [
        torch.zeros_like(parameter) if gradient is None else gradient
        for parameter, gradient in zip(parameters, gradients, strict=True)
    ]
    return torch.cat([part.flatten().float() for part in parts])


def _gradients(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    groups: Sequence[Group],
    weights: Tensor,
    parameters: Sequence[nn.Parameter],
    max_tokens: int,
) -> Tensor:
    """(W, D) gradients of sum_t weight_t log P(y_t), for W sets of (N, T) weights."""
    rollouts = [(index, rollout.ids) for index, group in enumerate(groups) for rollout in group.rollouts]
    rows = [row for row, (_, ids) in enumerate(rollouts) if ids and bool(weights[:, row].any())]
    requests = [Request(index, prompts[index].ids, ids) for index, ids in (rollouts[row] for row in rows)]
    sums = torch.zeros(len(weights), sum(parameter.numel() for parameter in parameters))
    order = sorted(range(len(rows)), key=lambda place: length_of(requests[place]))
    for batch in batches_of(order, lambda place: length_of(requests[place]), max_tokens):
        hidden = hidden_states(model, prompts, [requests[place] for place in batch])
        tokens = torch.tensor([token for place in batch for token in requests[place].completion], device=hidden.device)
        logps = sampled_log_probs(hidden, Head.of(model), tokens, 1.0)
        own = torch.cat([weights[:, rows[place], : len(requests[place].completion)] for place in batch], dim=1)
        own = own.to(logps)
        for number, weight in enumerate(own):
            if weight.any():
                found = torch.autograd.grad((weight * logps).sum(), parameters, retain_graph=True, allow_unused=True)
                sums[number] += _flat(parameters, found).cpu()
    return sums


def _divergence_gradient(
    model: PreTrainedModel,
    pipeline: Pipeline,
    groups: Sequence[Group],
    prompts: Sequence[Prompt],
    variant: Variant,
    parameters: Sequence[nn.Parameter],
    max_tokens: int,
) -> Tensor:
    """(D,) gradient of minus the divergence from the teacher, a mean over the tokens with a teacher."""
    options = variant.options
    total = torch.zeros(sum(parameter.numel() for parameter in parameters))
    ids_of = pipeline.context_ids(groups, prompts)
    rollouts = [(index, rollout.ids) for index, group in enumerate(groups) for rollout in group.rollouts]
    _, contexts = pipeline.plan(options, groups)
    requests = {
        row: Request(index, ids_of(index, own[0]), ids)
        for row, ((index, ids), own) in enumerate(zip(rollouts, contexts, strict=True))
        if own and isinstance(own[0], str) and ids
    }
    order = sorted(requests, key=lambda row: length_of(requests[row]))
    for batch in batches_of(order, lambda row: length_of(requests[row]), max_tokens):
        teacher = [requests[row] for row in batch]
        student = [Request(r.prompt, prompts[r.prompt].ids, r.completion) for r in teacher]
        tokens = torch.tensor([token for request in teacher for token in request.completion])
        counted = torch.ones_like(tokens, dtype=torch.bool)
        of_batch = DistillationBatch(list(prompts), student, teacher, counted, tokens, None, None, False)
        with evaluating(model):
            states = teacher_states(model, of_batch)
        loss, _, _ = student_divergence(
            model,
            of_batch,
            states,
            beta=options.divergence_beta,
            temperature=1.0,
            top_k=options.divergence_top_k if options.divergence == "top_k" else None,
            importance_clip=None,
        )
        gradients = torch.autograd.grad(-loss, parameters, allow_unused=True)
        total += _flat(parameters, gradients).cpu()
    return total / max(1, sum(len(request.completion) for request in requests.values()))
