"""TRL's batch: its rows, prompts and images. The only module that knows the meaning of its fields.

Dimensions: B rollouts, T completion tokens, P prompt tokens.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import split_pixel_values_by_grid, unsplit_pixel_values_by_grid

from ..data.checks import DatasetError
from ..references.groups import Ids
from ..scoring.requests import TOKEN_TYPES, Prompt, end_of_images

Batch = dict[str, Any]

# Fields with one entry per image, tile or patch; `num_images` maps them to rollouts.
_IMAGES = (
    "pixel_values",
    "image_grid_thw",
    "pixel_attention_mask",
    "spatial_shapes",
    "image_sizes",
    "image_position_ids",
)
_IMAGE_COUNTS = ("num_images", "num_tiles")


def trained_tokens(batch: Batch) -> Tensor:
    """(B, T) bool: the completion tokens that the loss counts, without tool outputs."""
    mask = batch["completion_mask"].bool()
    return mask & batch["tool_mask"].bool() if "tool_mask" in batch else mask


def completions_of(batch: Batch) -> list[Ids]:
    """Token ids of each completion, up to its last token in the completion mask."""
    mask = batch["completion_mask"].bool()
    lengths = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(dim=1).tolist()
    return [tuple(ids[:length]) for ids, length in zip(batch["completion_ids"].tolist(), lengths, strict=True)]


def select_rows(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some rollouts of a batch, with their images. Values of the whole batch are kept."""
    selected: Batch = {}
    for name, values in split_pixel_values_by_grid(batch).items():
        if isinstance(values, Tensor) and values.ndim > 0:
            selected[name] = values[list(rows)]
        elif isinstance(values, list):
            selected[name] = [values[row] for row in rows]
        else:
            selected[name] = values
    if not any(selected.get("num_images", [1])):
        # Models fail on an empty tensor of images.
        selected = {name: values for name, values in selected.items() if name not in (*_IMAGES, *_IMAGE_COUNTS)}
    return unsplit_pixel_values_by_grid(selected)


@dataclass(frozen=True)
class RowImages:
    """The images of the rows of a batch."""

    batch: Batch
    split: Batch

    def same(self, one: int, other: int) -> bool:
        """Whether two rows have equal images."""
        return all(
            torch.equal(torch.as_tensor(values[one]), torch.as_tensor(values[other]))
            for name, values in self.split.items()
            if name in (*_IMAGES, *_IMAGE_COUNTS, *TOKEN_TYPES)
        )

    def of(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """The images of some rows, as the model takes them."""
        return _images_of(select_rows(self.batch, rows))


def _images_of(batch: Batch) -> dict[str, Tensor]:
    return {name: batch[name] for name in _IMAGES if name in batch}


def known_images(fields: Iterable[str]) -> bool:
    """Whether this module knows all fields that a processor returns beside token ids."""
    return set(fields) <= {*_IMAGES, *_IMAGE_COUNTS, *TOKEN_TYPES}


def images_of_rows(batch: Batch) -> RowImages:
    """The images of the rows of TRL's batch."""
    return RowImages(batch, split_pixel_values_by_grid(batch))


def refuse_mixed_images(rows: Sequence[dict[str, Any]]) -> None:
    """Refuse a batch in which only some rows have images: TRL then assigns images to the wrong rows.

    Raises:
        DatasetError: Naming one of the rows without images.
    """
    without = [row for row in rows if not row.get("image") and not row.get("images")]
    if without and len(without) < len(rows):
        raise DatasetError(
            f"a batch has rows with and without images; a row without: {str(without[0].get('prompt'))[:200]}. Give "
            "every row an image, or drop the rows without images (--drop_incomplete_rows true)"
        )


def without_padding(batch: Batch) -> Batch:
    """The batch up to the end of its longest completion."""
    before, width = batch["prompt_ids"].shape[1], batch["completion_ids"].shape[1]
    kept = int((batch["completion_mask"].sum(dim=0) > 0).sum())
    if kept in (0, width):
        return batch
    trimmed = dict(batch)
    for name, values in batch.items():
        if name in TOKEN_TYPES:
            trimmed[name] = values[:, : before + kept]
        elif name not in ("prompt_ids", "prompt_mask", *_IMAGES) and isinstance(values, Tensor) and values.ndim == 2:
            # Values per rollout, (B, 1), are kept.
            trimmed[name] = values[:, :kept] if values.shape[1] == width else values
    return trimmed


def rows_with_gradient(
    batch: Batch, loss_type: str, reduce_max: Callable[[int], int] | None
) -> tuple[Batch | None, float]:
    """The rows of a micro-batch with a non-zero gradient.

    Args:
        batch: The micro-batch, its advantages (B,) or (B, T).
        loss_type: TRL's `loss_type`, which decides the denominator of the loss.
        reduce_max: Maximum of a number over the processes; None for a single process.

    Returns:
        The rows, or None if there are none and no other process runs any; and the factor that makes up for the smaller
        denominator of the loss.
    """
    tokens, advantages = trained_tokens(batch), batch["advantages"]
    moves = (advantages != 0) & tokens.any(dim=1) if advantages.dim() == 1 else ((advantages != 0) & tokens).any(dim=1)
    rows = moves.nonzero().flatten().tolist()
    if not rows and reduce_max is None:
        return None, 0.0
    if reduce_max is not None:
        # Processes run forward passes together, and TRL gathers a number per row, so all take the same number of rows.
        # The shortest rows without a gradient fill up.
        still = [row for row in tokens.sum(dim=1).argsort().tolist() if not moves[row]]
        rows = sorted(rows + still[: reduce_max(max(1, len(rows))) - len(rows)])
    kept = select_rows(batch, rows)
    if loss_type in ("cispo", "dapo", "vespo"):  # divided by the tokens of the whole batch
        factor = 1.0
    elif loss_type == "bnpo":
        factor = float(trained_tokens(kept).sum().clamp(min=1) / tokens.sum().clamp(min=1))
    else:
        factor = len(rows) / len(moves)
    return without_padding(kept), factor


def prompt_of(batch: Batch, row: int, image_token: int | None) -> Prompt:
    """The prompt of one rollout.

    Args:
        batch: TRL's generation batch.
        row: The rollout.
        image_token: Id of the image token, if the model has one.

    Raises:
        ValueError: If the completion contains images, returned by a tool.
    """
    one = select_rows(batch, [row])
    mask = one["prompt_mask"][0].bool()
    ids, width = tuple(one["prompt_ids"][0][mask].tolist()), len(mask)
    token_types = {name: one[name][0, :width][mask] for name in TOKEN_TYPES if name in one}
    if any(one[name][0, width:].any() for name in token_types):
        raise ValueError(
            "a tool returned an image; teachers support tools that return text. Use such tools, or method='grpo'"
        )
    images = _images_of(one)
    end = end_of_images(ids, token_types.values(), image_token) if images else 0
    return Prompt(ids, images, token_types, end)
