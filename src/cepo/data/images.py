"""Images that a data set names or holds: where their files may lie, what their headers say before one is decoded, and
the pixels that a model's processor gets.

No name and no header is trusted.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets.config
import huggingface_hub.constants
import numpy as np
import pyarrow.compute
from datasets import Dataset, Image, IterableDataset, List
from PIL import ExifTags, ImageOps, TiffImagePlugin
from PIL import Image as Pictures

from .errors import DatasetError

# Pixels: 8,000 x 8,000, 192 MB as RGB. No model reads more, and a few kilobytes can claim a thousand times that.
LARGEST_IMAGE = 64_000_000
# Formats that hold a picture, and run nothing; JPEG stands for MPO too.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
# Those whose further frames are a film; the second one of an MPO is the same picture for the other eye, or smaller.
_FILMS = ("PNG", "WEBP", "GIF")
# Those whose 16-bit grey Pillow holds in mode I, white being 65535.
_GREY_16 = ("PNG", "PPM")
# What transformers' chat templates load from, in a part of a turn.
_NAMING = ("image", "url", "path", "base64", "image_url", "video", "audio")


@dataclass(frozen=True)
class ImageFolder:
    """Where the image files of a data set may lie.

    Attributes:
        folder: What names are relative to; they may not lead out of it.
        others: Further folders for absolute names: the caches of what was downloaded.
        asked: Whether the user named it.
        hub: Whether a name may be an address on the Hub, whose data sets have such.
    """

    folder: Path
    others: tuple[Path, ...] = ()
    asked: bool = False
    hub: bool = False

    @classmethod
    def of(cls, name: str, asked: str | None) -> "ImageFolder":
        """Of a data set by its name, or as the option `image_folder` says.

        Raises:
            DatasetError: If the option names no folder.
        """
        path = Path(name).expanduser()
        caches = (Path(datasets.config.HF_DATASETS_CACHE), Path(huggingface_hub.constants.HF_HUB_CACHE))
        if asked is not None:
            folder = Path(asked).expanduser()
            if not folder.is_dir():
                raise DatasetError(f"image_folder: there is no such folder: {asked}")
            return cls(folder.resolve(), caches, asked=True, hub=not path.exists())
        if path.is_file():
            return cls(path.parent.resolve())
        return cls(path.resolve(), caches, hub=not path.exists())

    def find(self, name: str, place: str) -> str:
        """The absolute path of an image file; whether it exists is not asked.

        Args:
            name: As the data set has it.
            place: Row and column, for errors.

        Raises:
            DatasetError: If it is an address, or leads out of the folder, by its name or by links.
        """
        if "://" in name:
            if self.hub and ("hf://" in name or name.startswith("https://huggingface.co/")):
                return name
            raise DatasetError(f"{place} names an address: {name!r}. Nothing is fetched from there; name a file")
        if "\0" in name:
            raise DatasetError(f"{place} names no file: {name!r}")
        path = (self.folder / name).resolve()
        if not any(path.is_relative_to(folder) for folder in (self.folder, *(one.resolve() for one in self.others))):
            known = "image_folder" if self.asked else "the data set's folder"
            raise DatasetError(
                f"{place} leads out of {known}, {self.folder}: {name!r}. If it should, name the folder that all images "
                "lie in with --image_folder"
            )
        return str(path)


def image_columns(dataset: Any) -> dict[str, bool]:
    """Columns of images, and whether a row has a list of them."""
    found = {}
    for column, feature in (dataset.features or {}).items():
        if isinstance(feature, Image):
            found[column] = False
        elif isinstance(getattr(feature, "feature", None), Image):
            found[column] = True
    return found


def undecoded(dataset: Any, columns: Iterable[str] | None = None) -> Any:
    """A data set whose images are bytes and names; none is opened."""
    for column, several in image_columns(dataset).items():
        if columns is None or column in columns:
            plain = Image(decode=False)
            dataset = dataset.cast_column(column, List(plain) if several else plain)
    return dataset


def check_places(dataset: Dataset, folder: ImageFolder, name: str) -> None:
    """Refuse a data set that names image files outside of its folder. No image is read.

    Raises:
        DatasetError: Naming the row and the column.
    """
    for column, several in image_columns(dataset).items():
        first = 0
        for batch in undecoded(dataset.select_columns([column])).with_format("arrow").iter(1000):
            values = batch.column(0).combine_chunks()
            rows = range(len(values))
            if several:
                rows = pyarrow.compute.list_parent_indices(values).to_pylist()
                values = pyarrow.compute.list_flatten(values)
            missing = pyarrow.compute.is_null(pyarrow.compute.struct_field(values, "bytes")).to_pylist()
            paths = pyarrow.compute.struct_field(values, "path").to_pylist()
            for row, path, unread in zip(rows, paths, missing, strict=True):
                if path and unread:
                    folder.find(path, f"row {first + row} of {name}: '{column}'")
            first += len(batch)


def checked_stream(dataset: IterableDataset, folder: ImageFolder, name: str) -> IterableDataset:
    """A stream whose images are looked at as they come, before they are decoded.

    Raises:
        DatasetError: As rows arrive, naming the row and the column.
    """
    columns = image_columns(dataset)

    def look(row: dict[str, Any], number: int) -> dict[str, Any]:
        check_parts(row.get("prompt"), f"row {number} of {name}")
        for column in columns:
            place = f"row {number} of {name}: '{column}'"
            check_nulls(row[column], place)
            for image in _listed(row[column]):
                if image["path"] and not image["bytes"]:
                    image["path"] = folder.find(image["path"], place)
                check_header(image, place)
        return row

    features = dataset.features
    return undecoded(dataset).map(look, with_indices=True).cast(features)


def _listed(value: Any) -> list[dict[str, Any]]:
    return [image for image in (value if isinstance(value, list) else [value]) if image]


def check_nulls(value: Any, place: str) -> None:
    """Refuse a list of images that holds null: models have no place for an image that is missing.

    Args:
        value: Of a column of images: an image, a list of images, or None.
        place: Row and column, for errors.

    Raises:
        DatasetError: With the position of the null in the list.
    """
    for position, image in enumerate(value if isinstance(value, list) else []):
        if image is None or (isinstance(image, dict) and not image.get("bytes") and not image.get("path")):
            raise DatasetError(
                f"{place} holds null at position {position} of its list. Put an image there, take the null out of the "
                "list, or drop the row"
            )


def check_header(image: dict[str, Any], place: str) -> tuple[int, int] | None:
    """Refuse an image by what its first bytes say; its pixels are not decoded.

    Args:
        image: `bytes`, or the `path` of a file; an address is not looked at.
        place: Row and column, for errors.

    Returns:
        Width and height [pixels]; None for an address.

    Raises:
        DatasetError: If it is none of the formats that are known, too large, a film, or of values that do not say
            which of them is white.
    """
    path = image["path"] or ""
    if not image["bytes"] and "://" in path:
        return None
    if not image["bytes"] and not Path(path).is_file():
        raise DatasetError(
            f"{place} names a file that does not exist: {path!r}. Put it there, drop the row, or name "
            "the folder that all images lie in with --image_folder"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own of large images
            with Pictures.open(BytesIO(image["bytes"]) if image["bytes"] else path, formats=_FORMATS) as picture:
                width, height = picture.size
                film = picture.format in _FILMS and getattr(picture, "is_animated", False)
                unscaled = _unknown_scale(picture)
    except Pictures.DecompressionBombError:
        raise DatasetError(f"{place} is an image of more pixels than the {LARGEST_IMAGE:,} that are decoded") from None
    except Exception as error:  # what decoders raise at bytes that anybody wrote has no one kind
        raise DatasetError(f"{place} is no image of a known kind ({', '.join(_FORMATS)})") from error
    if width * height > LARGEST_IMAGE:
        raise DatasetError(
            f"{place} is an image of {width} x {height} pixels, and at most {LARGEST_IMAGE:,} are decoded; make it "
            "smaller, or drop the row"
        )
    if film:
        raise DatasetError(
            f"{place} is a film, of which one frame alone would be seen; give the frame, or drop the row"
        )
    if unscaled:
        raise DatasetError(f"{place} {unscaled}")
    return width, height


def _unknown_scale(picture: Pictures.Image) -> str | None:
    """Why the scale of a picture's values is not known, and the fix; None if it is."""
    held = None
    if picture.mode == "F":
        held = "floating-point values"
    elif picture.mode == "I" and picture.format not in _GREY_16:
        held = "signed or 32-bit grey values"
    elif picture.mode.startswith("I;16"):
        # Pillow neither scales 12-bit values to 16 bits, nor inverts 16-bit values of which 0 is white.
        tags = getattr(picture, "tag_v2", {})
        if tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,)) != (16,):
            held = "grey values of fewer than 16 bits in 16"
        elif tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 1) == 0:
            held = "16-bit grey values that are 0 at white"
    return held and f"has {held}, whose scale is not known here; save it with 8 bits a channel, or drop the row"


def opaque_image(image: Pictures.Image, place: str) -> Pictures.Image:
    """An image composited on white, upright, and with 8 bits a channel, as viewers show it.

    Processors only convert images to RGB. That drops the alpha channel, and a transparent background mostly has black
    pixels; it clips 16-bit grey at 255; and it does not apply the EXIF orientation.

    Args:
        image: As Pillow decoded it.
        place: What to call the image in errors.

    Returns:
        The same object if it is opaque, upright and has 8 bits or fewer; else an image in RGB or 8-bit grey.

    Raises:
        DatasetError: If its values do not say which of them is white.
    """
    if unscaled := _unknown_scale(image):
        raise DatasetError(f"{place} {unscaled}")
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # `datasets` applies it to the files that it decodes
        image = ImageOps.exif_transpose(image)
    transparent = image.info.get("transparency")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        # The high byte, which Pillow takes of 16-bit colours too.
        return Pictures.fromarray(np.where(values == transparent, 255, values >> 8).astype(np.uint8))
    if not image.has_transparency_data:
        return image
    front = image.convert("RGBA")
    return Pictures.alpha_composite(Pictures.new("RGBA", front.size, "white"), front).convert("RGB")


def with_opaque_images(row: dict[str, Any]) -> dict[str, Any]:
    """A row in TRL's columns whose images, in `image`, `images` and the turns of `prompt`, are `opaque_image`s.

    It is called where rows become conversations, because all rows pass there: rows of data sets loaded by name or given
    as objects, of streams, and of data loader workers. A transform on the data set is lost by `map`, `cast_column` and
    `save_to_disk`, and `map` encodes transformed images again.

    Raises:
        DatasetError: If a list of images holds null, or an image's values do not say which of them is white.
    """
    prompt = row.get("prompt")
    place = f"of the row with the prompt {str(prompt)[:200]}"
    for column in ("image", "images"):
        check_nulls(row.get(column), f"'{column}' {place}")

    def opaque(value: Any) -> Any:
        if isinstance(value, Pictures.Image):
            return opaque_image(value, f"an image {place}")
        return [opaque(one) for one in value] if isinstance(value, list) else value

    made: dict[str, Any] = {column: opaque(row[column]) for column in ("image", "images") if column in row}
    if isinstance(prompt, list):
        made["prompt"] = [
            turn | {"content": [part | {"image": opaque(part["image"])} if "image" in part else part for part in parts]}
            if isinstance(parts := turn.get("content"), list)
            else turn
            for turn in prompt
        ]
    return row | made


def refused_size(processing_class: Any, sizes: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], str] | None:
    """Find an image size that the processor refuses, as Qwen's refuses an aspect ratio above 200.

    The processor is tried on blank images of the three most extreme sizes: highest aspect ratio, shortest side, fewest
    pixels. A processor that takes those takes the sizes between them.

    Args:
        processing_class: The model's processor. A tokenizer refuses no size.
        sizes: Widths and heights [pixels].

    Returns:
        The first refused size and the processor's message; None if no size is refused.
    """
    image_processor = getattr(processing_class, "image_processor", None)
    known = list(dict.fromkeys(sizes))
    if image_processor is None or not known:
        return None

    def refusal(size: tuple[int, int]) -> str | None:
        try:
            image_processor(images=[Pictures.new("RGB", size, "white")], return_tensors="pt")
        except Exception as error:  # its type differs by processor, and by the library that resizes
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            return f"{type(image_processor).__name__} refuses: {reason}"
        return None

    extremes = {
        max(known, key=lambda size: max(size) / min(size)),
        min(known, key=min),
        min(known, key=lambda size: size[0] * size[1]),
    }
    found = [(size, reason) for size in known if size in extremes and (reason := refusal(size))]
    # A processor that refuses an ordinary square too cannot be tried like this; the reason is not the size.
    return found[0] if found and refusal((256, 256)) is None else None


def check_parts(prompt: Any, place: str) -> None:
    """Refuse a conversation that names images itself: processors would read any file, and fetch from any address.

    Args:
        prompt: A conversation, or text.
        place: The row, for errors.

    Raises:
        DatasetError: If it does.
    """
    for turn in prompt if isinstance(prompt, list) else []:
        content = turn.get("content")
        for part in content if isinstance(content, list) else []:
            named = [key for key in _NAMING if isinstance(part.get(key), str)]
            if named:
                raise DatasetError(
                    f"{place}: 'prompt' names an {named[0]} within a turn, {part[named[0]][:80]!r}, which nobody has "
                    'looked at. Put images into the column \'images\', and {"type": "image"} in their places'
                )


@contextmanager
def broken_images_named(dataset: Any, name: str, rows: Sequence[int] | None = None) -> Iterator[None]:
    """Rows are read here: an image that cannot be decoded, which no header tells, is named by its row.

    Args:
        dataset: From which they are read.
        name: What to call it.
        rows: Which rows; None: any.

    Raises:
        DatasetError: Naming the row.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, DatasetError) or not _of_decoding(error):
            raise
        reason = f"{error}".strip().splitlines()[-1] if f"{error}".strip() else type(error).__name__
        row = _first_broken(dataset, rows) if isinstance(dataset, Dataset) else None
        place = f"an image of {name}" if row is None else f"row {row} of {name}: an image"
        raise DatasetError(f"{place} cannot be decoded: {reason}. Mend it, or drop the row") from error


def _of_decoding(error: BaseException) -> bool:
    """Whether Pillow raised it, here or in a worker of a data loader, which sends its traceback as text."""
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
        except Exception:  # whatever it is, this is the row
            return row
    return None
