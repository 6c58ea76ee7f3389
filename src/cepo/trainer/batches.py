"""TRL's batch: its rows, prompts and images. The only module that knows the meaning of its fields.

Dimensions: B rollouts, T completion tokens, P prompt tokens.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
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


def completions_of(batch: Batch) -> list[tuple[Ids, tuple[bool, ...]]]:
    """Of each completion, up to its last token in the completion mask: token ids, and whether the loss counts them."""
    found = []
    fields = (batch["completion_ids"], batch["completion_mask"], trained_tokens(batch))
    for ids, mask, trained in zip(*_on_host(*fields), strict=True):
        length = max((end for end, kept in enumerate(mask, 1) if kept), default=0)
        found.append((tuple(ids[:length]), tuple(map(bool, trained[:length]))))
    return found


def tokens_of(ids: Tensor, mask: Tensor) -> list[Ids]:
    """The token ids of each row of (B, S) `ids` that are in the mask."""
    return [tuple(itertools.compress(*row)) for row in zip(*_on_host(ids, mask), strict=True)]


def _on_host(*fields: Tensor) -> list[Any]:
    """Integer tensors of one shape as nested lists. The host waits for the device once."""
    return torch.stack([values.long() for values in fields]).tolist()


def select_rows(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some rollouts of a batch, with their images. Values of the whole batch are kept."""
    return _select(split_pixel_values_by_grid(batch), rows)


def _select(split: Batch, rows: Sequence[int]) -> Batch:
    selected: Batch = {}
    index = torch.tensor(rows, dtype=torch.long)
    for name, values in split.items():
        if isinstance(values, Tensor) and values.ndim > 0:
            index = index.to(values.device, non_blocking=True)
            selected[name] = values.index_select(0, index)
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
    """The images of the rows of a batch, split by rows."""

    split: Batch

    def same(self, one: int, other: int) -> bool:
        """Whether two rows have equal images."""
        if not self._fields or all(self._repeats[one:other]):
            return True
        return all(torch.equal(torch.as_tensor(v[one]), torch.as_tensor(v[other])) for v in self._fields)

    @property
    def _fields(self) -> list[Any]:
        return [v for name, v in self.split.items() if name in (*_IMAGES, *_IMAGE_COUNTS, *TOKEN_TYPES)]

    @cached_property
    def _repeats(self) -> list[bool]:
        """Whether each row but the first has the images of the row before. The host waits for the device once."""
        equal: list[Tensor] = []
        for values in self._fields:
            rows = [torch.as_tensor(value) for value in values]
            if any(row.shape != rows[0].shape for row in rows):
                return [False] * (len(rows) - 1)
            column = torch.stack(rows).unsqueeze(1).flatten(1)
            equal.append((column[1:] == column[:-1]).all(dim=1))
        equal.sort(key=lambda flags: flags.device.type == "cpu")
        return torch.stack([flags.to(equal[0].device, non_blocking=True) for flags in equal]).all(0).tolist()

    def of(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """The images of some rows, as the model takes them."""
        return _images_of(_select(self.split, rows))


def _images_of(batch: Batch) -> dict[str, Tensor]:
    return {name: batch[name] for name in _IMAGES if name in batch}


def known_images(fields: Iterable[str]) -> bool:
    """Whether this module knows all fields that a processor returns beside token ids."""
    return set(fields) <= {*_IMAGES, *_IMAGE_COUNTS, *TOKEN_TYPES}


def images_of_rows(batch: Batch) -> RowImages:
    """The images of the rows of TRL's batch."""
    return RowImages(split_pixel_values_by_grid(batch))


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


def without_padding(batch: Batch, kept: int) -> Batch:
    """The batch up to completion token `kept`, where its longest completion ends."""
    before, width = batch["prompt_ids"].shape[1], batch["completion_ids"].shape[1]
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
    moving, lengths, counts = _on_host(moves, batch["completion_mask"].sum(dim=1), tokens.sum(dim=1))
    rows = [row for row, moves_row in enumerate(moving) if moves_row]
    if not rows and reduce_max is None:
        return None, 0.0
    if reduce_max is not None:
        # Processes run forward passes together, and TRL gathers a number per row, so all take the same number of rows.
        # The shortest rows without a gradient fill up.
        still = [row for row in sorted(range(len(counts)), key=counts.__getitem__) if not moving[row]]
        rows = sorted(rows + still[: reduce_max(max(1, len(rows))) - len(rows)])
    kept = batch if len(rows) == len(moving) else select_rows(batch, rows)
    if loss_type in ("cispo", "dapo", "vespo"):  # divided by the tokens of the whole batch
        factor = 1.0
    elif loss_type == "bnpo":
        factor = max(1, sum(counts[row] for row in rows)) / max(1, sum(counts))
    else:
        factor = len(rows) / len(moving)
    return without_padding(kept, max(lengths[row] for row in rows)), factor


def prompts_of(batch: Batch, rows: Sequence[int], image_token: int | None) -> list[Prompt]:
    """The prompts of some rollouts.

    Args:
        batch: TRL's generation batch.
        rows: The rollouts.
        image_token: Id of the image token, if the model has one.

    Raises:
        ValueError: If a completion contains images, returned by a tool.
    """
    width, shown = batch["prompt_ids"].shape[1], images_of_rows(batch)
    ids_of = tokens_of(batch["prompt_ids"], batch["prompt_mask"])
    types_of = {name: batch[name].cpu() for name in TOKEN_TYPES if name in batch}
    mask = batch["prompt_mask"].bool().cpu() if types_of else None
    if any(types[list(rows), width:].any() for types in types_of.values()):
        raise ValueError(
            "a tool returned an image; teachers support tools that return text. Use such tools, or method='grpo'"
        )
    prompts = []
    for row in rows:
        images = shown.of([row])
        token_types = {} if mask is None else {name: types[row, :width][mask[row]] for name, types in types_of.items()}
        end = end_of_images(ids_of[row], token_types.values(), image_token) if images else 0
        prompts.append(Prompt(ids_of[row], images, token_types, end))
    return prompts
