"""The divergence loss of OPSD and SDPO in TRL's batch.

Dimensions: B rollouts, T completion tokens, P' tokens of a teacher's prompt.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from trl.models.utils import _ForwardRedirection
from trl.trainer.utils import pad

from ..distillation.losses import DistillationBatch, student_divergence, teacher_states
from ..references.groups import Ids
from ..scoring.requests import Request
from .batches import Batch, completions_of, prompts_of, tokens_of, trained_tokens


def add_teacher_prompts(batch: Batch, prompts: Sequence[Ids | None]) -> Tensor:
    """Add the teachers' prompts to a generation batch.

    Args:
        batch: TRL's generation batch; gets `teacher_ids` and `teacher_mask`, (B, P'), padded on the left.
        prompts: Token ids of each rollout's prompt for the teacher; None for a rollout without a teacher.

    Returns:
        () number of tokens with a teacher.
    """
    trained = trained_tokens(batch)
    ids = [torch.tensor(tokens or (), dtype=torch.long) for tokens in prompts]
    masks = [torch.ones_like(row) for row in ids]
    for name, rows in (("teacher_ids", ids), ("teacher_mask", masks)):
        batch[name] = pad(rows, padding_value=0, padding_side="left").to(trained.device, non_blocking=True)
    return (trained & batch["teacher_mask"].any(dim=1, keepdim=True)).sum()


def find_teacher_prompts(trainer: Any, batch: Batch) -> float:
    """Add the teachers' prompts of OPSD and SDPO to a generation batch.

    Args:
        trainer: A `CEPOTrainer`.
        batch: TRL's generation batch; gets `teacher_tokens` too, the number of tokens with a teacher on all processes.

    Returns:
        Share of rollouts with a teacher.
    """
    groups, prompts = trainer._groups(batch)
    pipeline = trainer._teachers.pipeline(trainer._encoder, batch)
    wanted = trained_tokens(batch).any(dim=1).tolist()
    references, contexts = pipeline.plan(trainer.args.method_options, groups, wanted)
    trainer._log_fallbacks(references, wanted)
    ids_of = pipeline.context_ids(groups, prompts)
    owners = [index for index, group in enumerate(groups) for _ in group.local]
    ids = [
        ids_of(owner, of_rollout[0]) if of_rollout and isinstance(of_rollout[0], str) else None
        for owner, of_rollout in zip(owners, contexts, strict=True)
    ]
    tokens = add_teacher_prompts(batch, ids)
    batch["teacher_tokens"] = trainer._distributed.sum(tokens.float())
    return trainer._distributed.share([one is not None for one in ids])


def distillation_batch(batch: Batch, image_token: int | None) -> DistillationBatch:
    """The rollouts of a micro-batch that have a teacher.

    Args:
        batch: Micro-batch with teachers' prompts.
        image_token: See `prompts_of`.
    """
    trained = trained_tokens(batch)
    every, hinted = completions_of(batch), tokens_of(batch["teacher_ids"], batch["teacher_mask"])
    rows = [row for row, (_, counts) in enumerate(every) if any(counts) and hinted[row]]
    empty, rows = not rows, rows or [0]
    prompts = prompts_of(batch, rows, image_token)
    completions = [every[row][0] for row in rows]
    student, teacher = [], []
    for index, row in enumerate(rows):
        student.append(Request(index, prompts[index].ids, completions[index]))
        teacher.append(Request(index, hinted[row] or prompts[index].ids, completions[index]))

    def flat(values: Tensor) -> Tensor:
        return torch.cat([values[row, : len(ids)] for row, ids in zip(rows, completions, strict=True)])

    counted = flat(trained)
    old, ratio = batch.get("old_per_token_logps"), batch.get("importance_sampling_ratio")
    return DistillationBatch(
        prompts,
        student,
        teacher,
        counted,
        flat(batch["completion_ids"])[counted],
        None if old is None else flat(old)[counted],
        None if ratio is None else flat(ratio.expand(trained.shape))[counted],  # (B, T), or (B, 1) per sequence
        empty,
    )


def divergence_loss(trainer: Any, model: Any, inputs: Batch) -> tuple[Tensor, Tensor]:
    """Divergence of the policy from its teacher over the vocabulary, a mean over the tokens with a teacher.

    Args:
        trainer: A `CEPOTrainer`.
        model: The wrapped policy.
        inputs: Micro-batch with teachers' prompts.

    Returns:
        () the loss [nats], and (3,) sums for the log: divergence [nats], entropy [nats], number of tokens.
    """
    args, teachers = trainer.args, trainer._teachers
    batch = trainer._distillation_batch(inputs)
    unwrapped, inner = trainer.accelerator.unwrap_model(trainer.model), teachers.inner()
    # Both passes go through the wrapper's forward, which DDP and sharding hook into.
    with teachers.scoring_mode(), teachers.weights.in_place(), trainer.accelerator.autocast():
        teacher = _ForwardRedirection()(model, unwrapped, teacher_states, inner, batch, copied=teachers.weights.lags)

    def student() -> tuple[Tensor, Tensor, Tensor]:
        with trainer.accelerator.autocast():  # the redirected call replaces the forward that has it
            return student_divergence(
                inner,
                batch,
                teacher,
                beta=args.divergence_beta,
                temperature=trainer.temperature,
                top_k=args.divergence_top_k if args.divergence == "top_k" else None,
                importance_clip=args.importance_clip,
            )

    total, plain, entropy = _ForwardRedirection()(model, unwrapped, student)
    count = batch.counted.sum() * (not batch.empty)
    sums = torch.stack([plain.float(), entropy.float(), count.to(plain.device).float()])
    # Tokens of the whole generation batch, as TRL scales its token means.
    normalizer = inputs["teacher_tokens"].clamp(min=1.0) / trainer.accelerator.num_processes
    return total * args.steps_per_generation / (normalizer * trainer.current_gradient_accumulation_steps), sums
