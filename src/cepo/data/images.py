"""Images that a data set names or holds: where their files may lie, and what they say of themselves before one is
decoded.

Nothing here trusts a name or a header.
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
import pyarrow.compute
from datasets import Dataset, Image, IterableDataset, List
from PIL import Image as Pictures

from .errors import DatasetError

# Pixels: 8,000 x 8,000, 192 MB as RGB. No model reads more, and a few kilobytes can claim a thousand times that.
LARGEST_IMAGE = 64_000_000
# Formats that hold a picture, and run nothing; JPEG stands for MPO too.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
# Those whose further frames are a film; the second one of an MPO is the same picture for the other eye, or smaller.
_FILMS = ("PNG", "WEBP", "GIF")
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
            for image in _listed(row[column]):
                if image["path"] and not image["bytes"]:
                    image["path"] = folder.find(image["path"], place)
                check_header(image, place)
        return row

    features = dataset.features
    return undecoded(dataset).map(look, with_indices=True).cast(features)


def _listed(value: Any) -> list[dict[str, Any]]:
    return [image for image in (value if isinstance(value, list) else [value]) if image]


def check_header(image: dict[str, Any], place: str) -> None:
    """Refuse an image by what its first bytes say; its pixels are not decoded.

    Args:
        image: `bytes`, or the `path` of a file; an address is not looked at.
        place: Row and column, for errors.

    Raises:
        DatasetError: If it is none of the formats that are known, too large, or a film.
    """
    path = image["path"] or ""
    if not image["bytes"] and "://" in path:
        return
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
