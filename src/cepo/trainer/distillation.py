"""Teachers' prompts in TRL's batch, and the part of a micro-batch that OPSD and SDPO learn from.

Dimensions: B rollouts, T completion tokens, P' tokens of a teacher's prompt.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from trl.trainer.utils import pad

from ..distillation.losses import DistillationBatch
from ..references.groups import Ids
from ..scoring.requests import Request
from .batches import Batch, completions_of, prompt_of, trained_tokens


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


def distillation_batch(batch: Batch, image_token: int | None) -> DistillationBatch:
    """What a micro-batch that carries teachers' prompts has to learn from."""
    trained = trained_tokens(batch)
    rows = (batch["teacher_mask"].any(dim=1) & trained.any(dim=1)).nonzero().flatten().tolist()
    chosen = rows or [0]
    prompts = [prompt_of(batch, row, image_token) for row in chosen]
    completions = [ids for row, ids in enumerate(completions_of(batch)) if row in chosen]
    student, teacher = [], []
    for index, row in enumerate(chosen):
        ids = tuple(batch["teacher_ids"][row][batch["teacher_mask"][row].bool()].tolist())
        student.append(Request(index, prompts[index].ids, completions[index]))
        teacher.append(Request(index, ids or prompts[index].ids, completions[index]))

    def of_all(values: Tensor) -> Tensor:
        return torch.cat([values[row, : len(ids)] for row, ids in zip(chosen, completions, strict=True)])

    counted = of_all(trained)
    old, ratio = batch.get("old_per_token_logps"), batch.get("importance_sampling_ratio")
    return DistillationBatch(
        prompts,
        student,
        teacher,
        counted,
        of_all(batch["completion_ids"])[counted],
        None if old is None else of_all(old)[counted],
        None if ratio is None else of_all(ratio.expand(trained.shape))[counted],  # (B, T), or (B, 1) of sequences
        not rows,
    )
