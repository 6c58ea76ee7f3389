"""The folder from which a dataset's image files may be opened, and checks of the images of streams."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets.config
import huggingface_hub.constants
from datasets import Dataset, IterableDataset

from .errors import DatasetError
from .images import as_list, check_header, check_nulls, check_parts, image_columns, undecoded


@dataclass(frozen=True)
class ImageFolder:
    """The folder that contains a dataset's image files.

    Attributes:
        folder: The folder. File names are relative to it.
        caches: Further folders for absolute names: the caches of downloads.
        on_hub: Whether addresses on the Hub are allowed, as datasets of the Hub have them.
    """

    folder: Path
    caches: tuple[Path, ...] = ()
    on_hub: bool = False

    @classmethod
    def of(cls, name: str, image_folder: str | None) -> "ImageFolder":
        """The image folder of a dataset."""
        path = Path(name).expanduser()
        named = (datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE)
        caches = tuple(Path(cache).resolve() for cache in named)
        if image_folder is not None:
            folder = Path(image_folder).expanduser()
            if not folder.is_dir():
                raise DatasetError(f"image_folder: there is no such folder: {image_folder}")
            return cls(folder.resolve(), caches, on_hub=not path.exists())
        if path.is_file():
            return cls(path.parent.resolve())
        return cls(path.resolve(), caches, on_hub=not path.exists())

    def find(self, name: str, place: str) -> str:
        """The absolute path of an image file, which need not exist.

        Raises:
            DatasetError: If the name is an address, or the file lies outside of the folder, also through links.
        """
        if "://" in name:
            if self.on_hub and ("hf://" in name or name.startswith("https://huggingface.co/")):
                return name
            raise DatasetError(f"{place} is an address, {name!r}, which is not downloaded; give the name of a file")
        if "\0" in name:
            raise DatasetError(f"{place} is not a file name: {name!r}")
        path = (self.folder / name).resolve()
        if not any(path.is_relative_to(folder) for folder in (self.folder, *self.caches)):
            raise DatasetError(
                f"{place} is outside of {self.folder}: {name!r}. Set --image_folder to a folder that contains all "
                "images"
            )
        return str(path)


def check_places(dataset: Dataset, folder: ImageFolder, name: str) -> None:
    """Refuse a dataset with image files outside of its folder. No image is opened."""
    for column in image_columns(dataset):
        for number, row in enumerate(undecoded(dataset.select_columns([column]))):
            for image in as_list(row[column]):
                if image["path"] and not image["bytes"]:
                    folder.find(image["path"], f"row {number} of {name}: '{column}'")


def checked_stream(dataset: IterableDataset, folder: ImageFolder, name: str) -> IterableDataset:
    """A stream whose rows are checked when they arrive, before images are decoded."""
    columns = image_columns(dataset)

    def check(row: dict[str, Any], number: int) -> dict[str, Any]:
        check_parts(row.get("prompt"), f"row {number} of {name}")
        for column in columns:
            place = f"row {number} of {name}: '{column}'"
            check_nulls(row[column], place)
            for image in as_list(row[column]):
                if image["path"] and not image["bytes"]:
                    image["path"] = folder.find(image["path"], place)
                check_header(image, place)
        return row

    return undecoded(dataset).map(check, with_indices=True).cast(dataset.features)
