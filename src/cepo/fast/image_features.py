"""What a vision tower makes of images, once: where it is frozen, each pass of a step would get the same of it.

transformers' models ask `get_image_features` for all images of a pass. Here only those are run that have not been.

Dimensions: n images of a pass, of which image i has p_i patches and t_i tokens.
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

# What passes hand on to vision towers, and makes no difference there.
_NO_OPTIONS = ("use_cache",)
# Fields of an output, each for one image.
_Pieces = dict[str, Any]


def frozen_tower(model: PreTrainedModel) -> nn.Module | None:
    """The module that makes image features of which none depends on anything that is trained; None if there is none."""
    base = steady_tower(model)
    return None if base is None or any(p.requires_grad for part in _seeing(base) for p in part.parameters()) else base


def steady_tower(model: PreTrainedModel) -> nn.Module | None:
    """The module that makes the same image features again while weights stay; None if there is none."""
    base = model.base_model
    if not hasattr(base, "get_image_features") or getattr(base, "language_model", None) is None:
        return None
    parts = _seeing(base)
    return None if not parts or any(map(has_dropout, parts)) else base


def _seeing(base: nn.Module) -> list[nn.Module]:
    return [child for child in base.children() if child is not base.language_model]


@dataclass
class ImageFeatures:
    """The features of the images that were seen since `forget`.

    Attributes:
        say: Called with the reason, once, where a model's features cannot be kept.
        runs: How many images the tower has run.
    """

    say: Callable[[str], None]
    runs: int = 0
    _works: bool | None = None  # None: not tried yet
    _form: Any = None  # an output, for what its fields are
    _known: dict[Any, list[tuple[list[Tensor], _Pieces]]] = field(default_factory=dict)

    def forget(self) -> None:
        """Keep no features from before."""
        self._known.clear()

    @contextmanager
    def kept(self, model: PreTrainedModel) -> Iterator[None]:
        """What `model` sees here it runs its tower for once, if that is frozen."""
        with self._kept_of(frozen_tower, model):
            yield

    @contextmanager
    def kept_for_now(self, model: PreTrainedModel) -> Iterator[None]:
        """The same where nothing is trained meanwhile, frozen or not, as while it samples. Forgets them afterwards."""
        try:
            with self._kept_of(steady_tower, model):
                yield
        finally:
            self.forget()

    @contextmanager
    def _kept_of(self, tower: Callable[[Any], Any], model: PreTrainedModel) -> Iterator[None]:
        base = tower(model) if self._works is not False else None
        if base is None or "get_image_features" in vars(base):
            yield
            return
        original = base.get_image_features

        @wraps(original)  # `generate` asks for its signature
        def once(*args: Any, **kwargs: Any) -> Any:
            return self._features(original, args, kwargs)

        base.get_image_features = once
        try:
            yield
        finally:
            del base.get_image_features

    def _features(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        images = _images_of(original, args, kwargs) if self._works is not False else None
        if images is None:
            return original(*args, **kwargs)
        keys = images.keys()
        found = [self._find(key, image) for key, image in zip(keys, images.each, strict=True)]
        missing = [index for index, known in enumerate(found) if known is None]
        firsts: list[int] = []
        for index in missing:  # an image may come more than once in a pass
            alike = (other for other in firsts if keys[other] == keys[index])
            if not any(_same(images.each[index], images.each[other]) for other in alike):
                firsts.append(index)
        if firsts:
            with torch.no_grad():
                output = original(**images.of(firsts))
            pieces = _split(output, len(firsts), [images.patches[index] for index in firsts])
            if pieces is None or (self._works is None and not _is(_join(output, pieces), output)):
                self._works = False
                self.say(
                    f"the vision tower runs in each pass: what {type(output).__name__} holds cannot be told apart by "
                    "images. This is slower and gives the same numbers."
                )
                return original(*args, **kwargs)
            self._works, self._form = True, output
            self.runs += len(firsts)
            for index, piece in zip(firsts, pieces, strict=True):
                self._known.setdefault(keys[index], []).append((images.each[index], piece))
        for index in missing:
            found[index] = self._find(keys[index], images.each[index])
        return _join(self._form, [piece for piece in found if piece is not None])

    def _find(self, key: Any, image: list[Tensor]) -> _Pieces | None:
        return next((piece for other, piece in self._known.get(key, ()) if _same(image, other)), None)


@dataclass(frozen=True)
class _Images:
    """The arguments of a call, by images: `each` has the pixels first."""

    each: list[list[Tensor]]
    names: list[str]
    rest: dict[str, Any]
    patches: list[int]

    def of(self, places: Sequence[int]) -> dict[str, Any]:
        """Arguments for some of them."""
        columns = zip(*(self.each[place] for place in places), strict=True)
        return {**{name: torch.cat(column) for name, column in zip(self.names, columns, strict=True)}, **self.rest}

    def keys(self) -> list[Any]:
        """Of each image what equal ones have in common; few others do."""
        device = self.each[0][0].device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        sums = torch.stack([pixels.double().sum() for pixels, *_ in self.each]).tolist()
        options = [repr(item) for item in self.rest.items() if item[0] not in _NO_OPTIONS]
        return [(total, precision, *options) for total in sums]


def _images_of(original: Callable[..., Any], args: Any, kwargs: Any) -> _Images | None:
    """The call's images one by one; None where it is not known how."""
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
    return all(a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _split(output: Any, count: int, patches: list[int]) -> list[_Pieces] | None:
    """The fields of an output, image by image; None where a field does not tell which part is of which."""
    if not isinstance(output, dict):
        return None
    pooled = output.get("pooler_output")
    tokens = [len(part) for part in pooled] if isinstance(pooled, tuple | list) and len(pooled) == count else None
    pieces: list[_Pieces] = [{} for _ in range(count)]

    def parts(value: Any) -> Sequence[Any] | None:
        if isinstance(value, tuple | list) and all(isinstance(one, Tensor) for one in value):  # of a layer
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


def _join(form: Any, pieces: Sequence[_Pieces]) -> Any:
    """An output like `form`, of several images."""
    fields: dict[str, Any] = {}
    for name, value in form.items():
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
    return type(form)(**fields)


def _is(one: Any, other: Any) -> bool:
    """Whether two outputs are the same."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_is(one[name], other[name]) for name in one)
    return len(one) == len(other) and all(_is(a, b) for a, b in zip(one, other, strict=True))
