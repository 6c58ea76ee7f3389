"""Load datasets by file, folder, Hub name or task name, in TRL's columns."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from datasets import (
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    IterableDatasetDict,
    List,
    load_dataset,
    load_from_disk,
)

from .columns import map_rows, read_dataset, with_features
from .embedded import EMBEDDED
from .errors import LoadingError
from .formats import FORMATS, DatasetOptions
from .image_folder import ImageFolder, check_places, checked_stream

_BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


def looks_like_path(name: str) -> bool:
    """Whether a name is meant as a file or folder rather than as a repository on the Hub."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).suffix in _BUILDERS


def load_split(
    name: str,
    split: str,
    *,
    config: str | None = None,
    size: int = 0,
    streaming: bool = False,
    options: DatasetOptions | None = None,
    notes: list[str] | None = None,
) -> Dataset | IterableDataset:
    """Load a split of a dataset in TRL's columns.

    Args:
        name: An embedded task (``figures``), a JSON, CSV or parquet file, a folder (of `save_to_disk`, or of data
            files), or a Hub name.
        split: Name of the split. A single file has one split, which serves for any name.
        config: Configuration of the dataset, or variant of the embedded task.
        size: Number of problems of an embedded task.
        streaming: Whether to stream rows instead of downloading the dataset first.
        options: How the dataset's columns map to TRL's. None: by the dataset's name.
        notes: Receives messages for the user.

    Raises:
        LoadingError: If the dataset or the split does not exist.
        DatasetError: If the columns do not fit the options.
    """
    options = options or DatasetOptions()
    if name in EMBEDDED:
        return _embedded(name, split, config, size, options)
    config = config or FORMATS[options.format_of(name)].config
    label, folder = f"the split {split!r} of {name}", ImageFolder.of(name, options.image_folder)
    columns = options.columns_of(name)
    images = columns.images if columns and columns.images else ("image", "images")
    data = _load(name, split, config, streaming)
    if Path(name).expanduser().is_file():
        data = _with_images(data, folder, images, name)
    data = read_dataset(data, columns, label, drop_incomplete=options.drop_incomplete_rows, notes=notes)
    if isinstance(data, IterableDataset):
        return checked_stream(with_features(data), folder, label)
    check_places(data, folder, label)
    return data


def _embedded(name: str, split: str, config: str | None, size: int, options: DatasetOptions) -> Dataset:
    if given := options.given():
        raise LoadingError(f"{', '.join(given)}: the {name} task is in TRL's columns already; leave it out")
    task, variant = EMBEDDED[name], config or "default"
    if variant not in task.variants:
        raise LoadingError(f"dataset_config: {name} has no {variant!r}; choose one of {', '.join(task.variants)}")
    return task.make(split, size, **task.variants[variant])


def _load(name: str, split: str, config: str | None, streaming: bool) -> Dataset | IterableDataset:
    """A split of a file, folder or Hub dataset in its original columns."""
    path = Path(name).expanduser()
    if not path.exists() and looks_like_path(name):
        raise LoadingError(f"dataset_name: there is no such file or folder: {name}")
    if path.is_file():
        if path.suffix not in _BUILDERS:
            raise LoadingError(f"dataset_name: {name} must have one of the suffixes {', '.join(_BUILDERS)}")
        builder = _BUILDERS[path.suffix]
        return _loaded(name, lambda: load_dataset(builder, data_files=str(path), split="train", streaming=streaming))
    if path.is_dir() and ((path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists()):
        data = _loaded(name, lambda: load_from_disk(str(path)))
    else:
        data = _loaded(name, lambda: load_dataset(name, name=config, streaming=streaming))
    if isinstance(data, (DatasetDict, IterableDatasetDict)):
        if split not in data:
            raise LoadingError(f"dataset {name} has no split {split!r}; it has {', '.join(map(str, data))}")
        data = data[split]
    return data


def _loaded(name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:  # `datasets` has no common type for files and names that it cannot read
        cause = error.__cause__ or error
        raise LoadingError(f"dataset_name: cannot load {name}: {str(cause) or type(cause).__name__}") from error


def _with_images(data: Any, folder: ImageFolder, columns: Iterable[str], name: str) -> Any:
    """Turn columns of image file names, relative to the dataset's file, into images."""
    data = with_features(data)
    single = [column for column in columns if _is_text(data.features.get(column))]
    lists = [column for column in columns if _is_text(getattr(data.features.get(column), "feature", None))]
    if not single and not lists:
        return data

    def image(path: str | None, place: str) -> dict[str, Any] | None:
        return {"bytes": None, "path": folder.find(path, place)} if path else None

    def read(row: dict[str, Any], number: int) -> dict[str, Any]:
        places = {column: f"row {number} of {name}: '{column}'" for column in (*single, *lists)}
        return {column: image(row[column], places[column]) for column in single} | {
            column: [image(path, places[column]) for path in row[column] or []] for column in lists
        }

    features = {**dict.fromkeys(single, Image()), **dict.fromkeys(lists, List(Image()))}
    return map_rows(data, read, Features({**data.features, **features}), with_indices=True)


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) == "string"
