"""TRL's batch: its rows, their prompts and images. What each of its fields means is TRL's, and known here alone.

Dimensions: B rollouts, T completion tokens, P prompt tokens.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import split_pixel_values_by_grid, unsplit_pixel_values_by_grid

from ..data.checks import DatasetError
from ..scoring.requests import TOKEN_TYPES, Prompt, end_of_images

Batch = dict[str, Any]

# Fields with one entry per image, or tile, or patch; TRL brings them along the rollouts where `num_images` tells how.
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
    """(B, T) bool: the completion tokens that the loss counts; what a tool returned is not among them."""
    mask = batch["completion_mask"].bool()
    return mask & batch["tool_mask"].bool() if "tool_mask" in batch else mask


def select_rows(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some rollouts of a batch, with their images; numbers that belong to the whole batch stay."""
    picked: Batch = {}
    for name, values in split_pixel_values_by_grid(batch).items():
        if isinstance(values, Tensor) and values.ndim > 0:
            picked[name] = values[list(rows)]
        elif isinstance(values, list):
            picked[name] = [values[row] for row in rows]
        else:
            picked[name] = values
    if not any(picked.get("num_images", [1])):
        # A model that is given no image must not be given an empty one.
        picked = {name: values for name, values in picked.items() if name not in (*_IMAGES, *_IMAGE_COUNTS)}
    return unsplit_pixel_values_by_grid(picked)


@dataclass(frozen=True)
class RowImages:
    """The images of the rows of a batch."""

    batch: Batch
    split: Batch

    def same(self, one: int, other: int) -> bool:
        """Whether two rows show the same."""
        return all(
            torch.equal(torch.as_tensor(values[one]), torch.as_tensor(values[other]))
            for name, values in self.split.items()
            if name in (*_IMAGES, *_IMAGE_COUNTS, *TOKEN_TYPES)
        )

    def of(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """The images of some rows, as the model takes them."""
        picked = select_rows(self.batch, rows)
        return {name: picked[name] for name in _IMAGES if name in picked}


def known_images(fields: Iterable[str]) -> bool:
    """Whether of what a processor returns beside token ids nothing is unknown here."""
    return set(fields) <= {*_IMAGES, *_IMAGE_COUNTS, *TOKEN_TYPES}


def images_of_rows(batch: Batch) -> RowImages:
    """Of a batch of TRL's."""
    return RowImages(batch, split_pixel_values_by_grid(batch))


def refuse_mixed_images(rows: Sequence[dict[str, Any]]) -> None:
    """Refuse rows of which some have images and some have none: TRL lays their images together, and loses count.

    Raises:
        DatasetError: With one of the rows that has none.
    """
    without = [row for row in rows if not row.get("image") and not row.get("images")]
    if without and len(without) < len(rows):
        raise DatasetError(
            f"a batch has rows with and without images; this one has none: {str(without[0].get('prompt'))[:200]}. Give "
            "every row an image, or drop those without (--drop_incomplete_rows true)"
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
            # What there is once per rollout, not per token, is (B, 1) and stays as it is.
            trimmed[name] = values[:, :kept] if values.shape[1] == width else values
    return trimmed


def rows_with_gradient(batch: Batch, loss_type: str, common: Callable[[int], int] | None) -> tuple[Batch | None, float]:
    """The rows of a micro-batch that can move the policy.

    Args:
        batch: The micro-batch, its advantages (B,) or (B, T).
        loss_type: TRL's, which decides what the loss is a mean of.
        common: The most of a number over the processes; None for a single process.

    Returns:
        The rows, None if there is none and no need to run any; and the factor that undoes what their number does to
        the loss's mean.
    """
    tokens, advantages = trained_tokens(batch), batch["advantages"]
    moves = (advantages != 0) & tokens.any(dim=1) if advantages.dim() == 1 else ((advantages != 0) & tokens).any(dim=1)
    rows = moves.nonzero().flatten().tolist()
    if not rows and common is None:
        return None, 0.0
    if common is not None:
        # Processes make one forward pass together, and TRL gathers a number per row: all take as many rows. The
        # shortest that do not move cost least.
        still = [row for row in tokens.sum(dim=1).argsort().tolist() if not moves[row]]
        rows = sorted(rows + still[: common(max(1, len(rows))) - len(rows)])
    kept = select_rows(batch, rows)
    if loss_type in ("cispo", "dapo", "vespo"):  # divided by the tokens of the whole batch already
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
        image_token: The token that stands for a part of an image, if the model has one.

    Raises:
        ValueError: If images came with the completion, from a tool.
    """
    one = select_rows(batch, [row])
    mask = one["prompt_mask"][0].bool()
    ids = one["prompt_ids"][0][mask]
    width = len(mask)
    token_types = {}
    for name in TOKEN_TYPES:
        if name in one:
            token_types[name] = one[name][0, :width][mask]
            if one[name][0, width:].any():
                raise ValueError(
                    "a tool returned an image, which teachers cannot read yet; use method='grpo', or tools that "
                    "return text"
                )
    images = {name: one[name] for name in _IMAGES if name in one}
    if not images:
        return Prompt(tuple(ids.tolist()), token_types=token_types)
    tokens = tuple(ids.tolist())
    return Prompt(tokens, images, token_types, end_of_images(tokens, token_types.values(), image_token))
