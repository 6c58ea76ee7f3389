"""Run a frozen vision tower once per image instead of once per pass.

Vision-language models of transformers call `get_image_features` for all images of a pass. `ImageFeatures` runs the
tower for new images only, and joins the features of each pass.

Dimensions: n images of a pass; image i has p_i patches and t_i tokens.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..scoring.forward import has_dropout
from ..scoring.shards import is_shard

# Arguments without an effect on image features.
_IGNORED = ("use_cache",)
# The fields of a vision tower's output for one image.
_Pieces = dict[str, Any]


def cacheable_tower(model: PreTrainedModel, *, frozen: bool = True) -> nn.Module | None:
    """The module that computes image features; None without one, with dropout, with sharded or with changing weights.

    All processes together gather shards, so each has to run the tower as often as the others.

    Args:
        model: The model.
        frozen: Whether weights have to be frozen.
    """
    base = model.base_model
    if not hasattr(base, "get_image_features") or getattr(base, "language_model", None) is None:
        return None
    parts = [child for child in base.children() if child is not base.language_model]
    weights = [weight for part in parts for weight in part.parameters()]
    if (
        any(map(has_dropout, parts))
        or any(map(is_shard, weights))
        or (frozen and any(w.requires_grad for w in weights))
    ):
        return None
    return base


@dataclass
class ImageFeatures:
    """A cache of image features, until `forget`.

    Attributes:
        warn: Called once with the reason if the features of a model cannot be cached.
    """

    warn: Callable[[str], None]
    _works: bool | None = None  # None before the first images
    _template: Any = None  # an output, for its fields
    _known: dict[Any, list[tuple[list[Tensor], _Pieces]]] = field(default_factory=dict)

    def forget(self) -> None:
        """Clear the cache."""
        self._known.clear()

    @contextmanager
    def kept(self, model: PreTrainedModel, *, only_here: bool = False) -> Iterator[None]:
        """Context in which `model` runs its vision tower once per image.

        Args:
            model: A model with a frozen tower; others run as ever.
            only_here: Whether weights stay the same in this context only: the tower need not be frozen, and the cache
                is cleared afterwards.
        """
        base: Any = cacheable_tower(model, frozen=not only_here) if self._works is not False else None
        if base is None or "get_image_features" in vars(base):
            yield
            return
        original = base.get_image_features

        @wraps(original)  # `generate` inspects the signature
        def once(*args: Any, **kwargs: Any) -> Any:
            return self._features(original, args, kwargs)

        base.get_image_features = once
        try:
            yield
        finally:
            del base.get_image_features
            if only_here:
                self.forget()

    def _features(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        images = _images_of(original, args, kwargs) if self._works is not False else None
        if images is None:
            return original(*args, **kwargs)
        found: list[_Pieces] = []
        new: dict[int, _Pieces] = {}  # filled by the pass below
        for index, (key, image) in enumerate(zip(images.keys(), images.each, strict=True)):
            known = self._known.setdefault(key, [])
            piece = next((piece for other, piece in known if _same(image, other)), None)
            if piece is None:
                piece = new[index] = {}
                known.append((image, piece))
            found.append(piece)
        if new:
            with torch.no_grad():
                output = original(**images.of(list(new)))
            pieces = _split(output, len(new), [images.patches[index] for index in new])
            if pieces is None or (self._works is None and not _equal(_join(output, pieces), output)):
                self._works = False
                self.forget()
                self.warn(
                    f"the vision tower runs in each pass: the fields of {type(output).__name__} cannot be split by "
                    "images. This is slower and gives the same numbers."
                )
                return original(*args, **kwargs)
            self._works, self._template = True, output
            for piece, fields in zip(new.values(), pieces, strict=True):
                piece.update(fields)
        return _join(self._template, found)


@dataclass(frozen=True)
class _Images:
    """The arguments of a call, split by images; `each` has the tensors of an image, pixels first."""

    each: list[list[Tensor]]
    names: list[str]
    rest: dict[str, Any]
    patches: list[int]

    def of(self, places: Sequence[int]) -> dict[str, Any]:
        """Arguments for some of the images."""
        columns = zip(*(self.each[place] for place in places), strict=True)
        return {**{name: torch.cat(column) for name, column in zip(self.names, columns, strict=True)}, **self.rest}

    def keys(self) -> list[Any]:
        """A hash key of each image."""
        device = self.each[0][0].device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        sums = torch.stack([pixels.double().sum() for pixels, *_ in self.each]).tolist()
        options = [repr(item) for item in self.rest.items() if item[0] not in _IGNORED]
        return [(total, precision, *options) for total in sums]


def _images_of(original: Callable[..., Any], args: Any, kwargs: Any) -> _Images | None:
    """The images of a call one by one; None if they cannot be split."""
    bound = inspect.signature(original).bind(*args, **kwargs)
    named = {**bound.arguments, **bound.arguments.get("kwargs", {})}
    named.pop("kwargs", None)
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    pixels, grid = tensors.pop("pixel_values", None), tensors.get("image_grid_thw")
    if pixels is None or pixels.dim() < 2:
        return None
    if grid is not None:
        patches = grid.prod(-1).tolist()
        if sum(patches) != len(pixels):
            return None
    elif pixels.dim() >= 4:
        patches = [1] * len(pixels)
    else:
        return None
    if any(len(value) != len(patches) for value in tensors.values()):
        return None
    columns = [pixels.split(patches), *(value.split(1) for value in tensors.values())]
    rest = {name: value for name, value in named.items() if not isinstance(value, Tensor)}
    each = [list(image) for image in zip(*columns, strict=True)]
    return _Images(each, ["pixel_values", *tensors], rest, patches)


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b.to(a.device)) for a, b in pairs)


def _split(output: Any, count: int, patches: list[int]) -> list[_Pieces] | None:
    """The fields of an output for each image; None if a field cannot be split by images."""
    if not isinstance(output, dict):
        return None
    pooled = output.get("pooler_output")
    tokens = [len(part) for part in pooled] if isinstance(pooled, tuple | list) and len(pooled) == count else None
    pieces: list[_Pieces] = [{} for _ in range(count)]

    def parts(value: Any) -> Sequence[Any] | None:
        if isinstance(value, tuple | list) and all(isinstance(one, Tensor) for one in value):  # a layer, per image
            return value if [len(one) for one in value] in (tokens, patches) else None
        if not isinstance(value, Tensor) or value.dim() == 0:
            return None
        for lengths in ([1] * count, tokens, patches):
            if lengths is not None and len(value) == sum(lengths):
                return value.split(lengths)
        return None

    for name, value in output.items():
        if name == "pooler_output" and tokens is not None:
            of_images: Sequence[Any] | None = value
        elif isinstance(value, tuple | list):
            columns = [parts(one) for one in value]
            if any(column is None for column in columns):
                return None
            of_images = list(zip(*columns, strict=True))
        else:
            of_images = parts(value)
        if of_images is None:
            return None
        for piece, part in zip(pieces, of_images, strict=True):
            piece[name] = part
    return pieces


def _join(template: Any, pieces: Sequence[_Pieces]) -> Any:
    """An output with the fields of `template`, for several images."""
    fields: dict[str, Any] = {}
    for name, value in template.items():
        parts = [piece[name] for piece in pieces]
        if isinstance(value, Tensor):
            fields[name] = torch.cat(parts)
        elif isinstance(parts[0], tuple):
            columns = zip(value, zip(*parts, strict=True), strict=True)
            fields[name] = type(value)(
                torch.cat(column) if isinstance(one, Tensor) else type(one)(column) for one, column in columns
            )
        else:
            fields[name] = type(value)(parts)
    return type(template)(**fields)


def _equal(one: Any, other: Any) -> bool:
    """Whether two outputs are equal, field by field."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)
    return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
