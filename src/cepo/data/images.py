"""Checks of a dataset's images before they are decoded: headers, sizes, and file names within prompts."""

import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from datasets import Dataset, Image, List
from PIL import Image as Pictures

from .errors import DatasetError

# Pixels: 8,000 x 8,000, 192 MB as RGB. The header of a file of a few kilobytes can claim far more.
LARGEST_IMAGE = 64_000_000
# Raster formats, which run no code. MPO files are JPEG files.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
# Formats of 16-bit gray that Pillow opens in mode I, with white as 65535.
_GRAY_16 = ("PNG", "PPM")
# Keys of a part from which transformers' chat templates load an image, video or audio file.
_FILE_KEYS = ("image", "url", "path", "base64", "image_url", "video", "audio")
# What Pillow raises for damaged files; UnidentifiedImageError is an OSError.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


def image_columns(dataset: Any) -> dict[str, bool]:
    """Columns of images; True for columns of lists of images."""
    found = {}
    for column, feature in (dataset.features or {}).items():
        if isinstance(feature, Image):
            found[column] = False
        elif isinstance(getattr(feature, "feature", None), Image):
            found[column] = True
    return found


def undecoded(dataset: Any) -> Any:
    """The dataset with images as `bytes` and `path`, so that no image is opened."""
    for column, several in image_columns(dataset).items():
        plain = Image(decode=False)
        dataset = dataset.cast_column(column, List(plain) if several else plain)
    return dataset


def as_list(value: Any) -> list[Any]:
    """The images of a row, from a column of images or of lists of images."""
    return [image for image in (value if isinstance(value, list) else [value]) if image]


def check_nulls(value: Any, place: str) -> None:
    """Refuse a list of images with a null."""
    for position, image in enumerate(value if isinstance(value, list) else []):
        if image is None or (isinstance(image, dict) and not image.get("bytes") and not image.get("path")):
            raise DatasetError(
                f"{place} has null at position {position} of its list. Put an image there, remove the null, or drop "
                "the row"
            )


def check_header(image: dict[str, Any], place: str) -> tuple[int, int] | None:
    """Refuse an image by its header; pixels are not decoded.

    Args:
        image: `bytes`, or the `path` of a file. Addresses are not checked.
        place: Row and column, for errors.

    Returns:
        Width and height [pixels]; None for an address.
    """
    path = image["path"] or ""
    if not image["bytes"] and "://" in path:
        return None
    if not image["bytes"] and not Path(path).is_file():
        raise DatasetError(
            f"{place} is a file that does not exist: {path!r}. Drop the row, or set --image_folder to the folder that "
            "contains all images"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large images
            with Pictures.open(BytesIO(image["bytes"]) if image["bytes"] else path, formats=_FORMATS) as picture:
                width, height = picture.size
                unscaled = unknown_scale(picture)
    except Pictures.DecompressionBombError:
        raise DatasetError(f"{place} is an image of more than {LARGEST_IMAGE:,} pixels; scale it down") from None
    except _DECODING_ERRORS as error:
        raise DatasetError(f"{place} is not an image of a supported format ({', '.join(_FORMATS)})") from error
    if width * height > LARGEST_IMAGE:
        raise DatasetError(
            f"{place} is an image of {width} x {height} pixels, more than {LARGEST_IMAGE:,}; scale it down, or drop "
            "the row"
        )
    if unscaled:
        raise DatasetError(f"{place} {unscaled}")
    return width, height


def unknown_scale(picture: Pictures.Image) -> str | None:
    """Why the scale of a picture's pixel values is unknown, and the fix. None if it is known."""
    if picture.mode == "F":
        values = "floating-point"
    elif picture.mode == "I" and picture.format not in _GRAY_16:
        values = "signed or 32-bit"
    else:
        return None
    return f"has {values} pixel values of unknown scale; save it with 8 bits per channel, or drop the row"


def refused_size(processing_class: Any, sizes: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], str] | None:
    """Find an image size that the processor refuses, such as an aspect ratio above 200 (Qwen's processors).

    The processor is called on blank images of the three most extreme sizes: highest aspect ratio, shortest side,
    fewest pixels.

    Args:
        processing_class: The model's processor. A tokenizer refuses no size.
        sizes: Widths and heights [pixels].

    Returns:
        The refused size and the processor's message; None if no size is refused.
    """
    image_processor = getattr(processing_class, "image_processor", None)
    known = list(dict.fromkeys(sizes))
    if image_processor is None or not known:
        return None
    extremes = {
        max(known, key=lambda size: max(size) / min(size)),
        min(known, key=min),
        min(known, key=lambda size: size[0] * size[1]),
    }
    for size in sorted(extremes, key=known.index):
        try:
            image_processor(images=[Pictures.new("RGB", size, "white")], return_tensors="pt")
        except (ValueError, RuntimeError, ArithmeticError) as error:  # transformers, torchvision, a side of 0 pixels
            return size, f"{type(image_processor).__name__} refuses: {error}"
    return None


def check_parts(prompt: Any, place: str) -> None:
    """Refuse a conversation with file names or addresses of images, which processors would open or download."""
    for turn in prompt if isinstance(prompt, list) else []:
        content = turn.get("content")
        for part in content if isinstance(content, list) else []:
            if found := [key for key in _FILE_KEYS if isinstance(part.get(key), str)]:
                raise DatasetError(
                    f"{place}: 'prompt' has the {found[0]} {part[found[0]][:80]!r} within a turn. Put images into the "
                    'column \'images\', and {"type": "image"} in their places'
                )


@contextmanager
def broken_images_named(dataset: Any, name: str, rows: Sequence[int] | None = None) -> Iterator[None]:
    """Name the row of an image that cannot be decoded, which its header does not show.

    Args:
        dataset: The dataset from which rows are taken within the context.
        name: Name of the dataset.
        rows: The rows that are taken. None: any.
    """
    try:
        yield
    except _DECODING_ERRORS as error:
        if isinstance(error, DatasetError) or not _from_pillow(error):
            raise
        row = _first_broken(dataset, rows) if isinstance(dataset, Dataset) else None
        place = f"an image of {name}" if row is None else f"row {row} of {name}: an image"
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise DatasetError(f"{place} cannot be decoded: {reason[0]}. Replace it, or drop the row") from error


def _from_pillow(error: BaseException) -> bool:
    """Whether Pillow raised the error, here or in a data loader worker, whose traceback is in the message."""
    frame = error.__traceback__
    while frame is not None:
        if str(frame.tb_frame.f_globals.get("__name__")).startswith("PIL."):
            return True
        frame = frame.tb_next
    return "/PIL/" in str(error)


def _first_broken(dataset: Dataset, rows: Sequence[int] | None) -> int | None:
    images = dataset.select_columns(list(image_columns(dataset)))
    for row in range(len(images)) if rows is None else rows:
        try:
            images[row]
        except _DECODING_ERRORS:
            return row
    return None
