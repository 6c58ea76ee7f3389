"""Map a dataset's columns to TRL's: `prompt` (a conversation), `solution` and `images`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, List, Value

from .choices import as_text, choice_letter, find_choice_keys, list_choices
from .errors import DatasetError
from .images import check_nulls

IMAGE_PLACE = "<image>"
_NUMBERED_PLACE = re.compile(r"<image\s?\d{1,2}>")  # in MathVision and MMMU
_STREAM_ROWS = 200  # rows of a stream from which the form of choices is found
_PLACEHOLDER = re.compile(r"\{([A-Za-z_][\w.]*)\}")


@dataclass(frozen=True)
class Columns:
    """Columns of a dataset for the parts of a problem.

    Attributes:
        prompt, solution, choices: Columns, or paths into nested columns with dots. The prompt is text or a
            conversation; choices are a list or text, and may be missing in a row.
        choice_keys: Form of solutions among choices, one of `CHOICE_KEYS`. None: found from the whole column.
        images: Columns with an image or a list of images.
        template: Text of the user turn.
        custom_template: Whether the user gave the template.
        system: Text of a system turn.
    """

    prompt: str = "prompt"
    solution: str = "solution"
    images: tuple[str, ...] = ()
    choices: str | None = None
    choice_keys: str | None = None
    template: str = "{prompt}"
    custom_template: bool = False
    system: str | None = None

    def check(self, columns: Sequence[str], name: str) -> None:
        """Refuse columns that do not exist, and templates that contain the solution."""
        parts = {"prompt": (self.prompt,), "solution": (self.solution,), "images": self.images}
        parts["choices"] = (self.choices,) if self.choices else ()
        for part, paths in parts.items():
            for column in (path.split(".")[0] for path in paths):
                if column not in columns:
                    listed = ", ".join(f"'{one}'" for one in columns)
                    raise DatasetError(
                        f"{name} has no column '{column}' for the {part}; it has {listed}. Name the column in "
                        "dataset_columns."
                    )
        for found in _PLACEHOLDER.findall(self.template):
            column = found.split(".")[0]
            if column in {self.solution.split(".")[0], "solution"}:
                raise DatasetError(f"prompt_template: {{{found}}} would show the policy the solution")
            if found == "choices" and self.choices is None:
                raise DatasetError("prompt_template has {choices}, and dataset_columns names no column for choices")
            if found not in ("prompt", "choices") and column not in columns:
                raise DatasetError(f"prompt_template: {name} has no column '{column}' for {{{found}}}")


def read_dataset(
    dataset: Dataset | IterableDataset,
    columns: Columns | None,
    name: str,
    *,
    drop_incomplete: bool = False,
    notes: list[str] | None = None,
) -> Dataset | IterableDataset:
    """Map a dataset to TRL's columns. Other columns are kept, for reward functions.

    Args:
        dataset: With its original columns.
        columns: The mapping. None: the dataset has TRL's columns.
        name: The dataset's name in messages.
        drop_incomplete: Whether to drop rows without prompt, solution or image instead of refusing them.
        notes: Receives messages, such as the number of dropped rows. Dropped rows of a stream are not counted.
    """
    if columns is None and not drop_incomplete:
        return _with_text_solutions(dataset, name, notes)
    dataset = with_features(dataset)
    present = dataset.column_names
    if columns is None:
        images = tuple(column for column in ("image", "images") if column in present)
        return _with_text_solutions(_without_incomplete(dataset, Columns(images=images), name, notes), name, notes)
    columns.check(present, name)
    if drop_incomplete:
        dataset = _without_incomplete(dataset, columns, name, notes)
    # MathVision's `image` is the file name of `decoded_image`; TRL would treat it as a second image.
    made = {"prompt", "solution", "images", *(["image"] if columns.images else []), *columns.images}
    replaced = [column for column in made if column in present]
    dataset = _undecoded(dataset, columns)
    if columns.choices:
        columns = replace(columns, choice_keys=_choice_keys(dataset, columns, name, notes))

    def read(row: dict[str, Any], number: int) -> dict[str, Any]:
        return _problem(row, columns, f"row {number} of {name}")

    features = {column: feature for column, feature in dataset.features.items() if column not in replaced}
    features |= {"prompt": _prompt_feature(columns, dataset.features), "solution": Value("string")}
    features |= {"images": List(Image())} if columns.images else {}
    return map_rows(dataset, read, Features(features), replaced, with_indices=True)


def map_rows(dataset: Any, function: Any, features: Features, removed: Sequence[str] = (), **options: Any) -> Any:
    """`map` to new features, for datasets and streams."""
    if isinstance(dataset, Dataset):
        return dataset.map(function, remove_columns=list(removed), features=features, **options)
    # A stream's `map` would take `features` for those of its input, and decode no image.
    return dataset.map(function, remove_columns=list(removed), **options).cast(features)


def with_features(dataset: Any) -> Any:
    """The dataset with known features; those of a stream come from its first rows."""
    return dataset._resolve_features() if dataset.features is None else dataset


def _undecoded(dataset: Any, columns: Columns) -> Any:
    """Keep the images' bytes and paths, so that no image is opened."""
    for column in columns.images:
        several = isinstance(dataset.features[column], (List, list))
        dataset = dataset.cast_column(column, List(Image(decode=False)) if several else Image(decode=False))
    return dataset


def _without_incomplete(dataset: Any, columns: Columns, name: str, notes: list[str] | None) -> Any:
    kept = _undecoded(dataset, columns).filter(lambda row: _missing(row, columns) is None)
    for column in columns.images:
        kept = kept.cast_column(column, dataset.features[column])
    if notes is not None and isinstance(dataset, Dataset) and len(kept) < len(dataset):
        notes.append(f"{name}: {len(dataset) - len(kept)} of {len(dataset)} rows are incomplete and were dropped")
    return kept


def _with_text_solutions(dataset: Any, name: str, notes: list[str] | None) -> Any:
    """Turn solutions that are numbers into text. A stream is returned as it is: its images would be decoded."""
    if not isinstance(dataset, Dataset):
        return dataset
    feature = dataset.features.get("solution")
    if feature is None or isinstance(feature, ClassLabel) or "string" in str(getattr(feature, "dtype", "")):
        return dataset
    known = [solution for solution in dataset["solution"] if solution is not None]
    if not all(isinstance(value, (int, float, str)) and not isinstance(value, bool) for value in known):
        return dataset
    if notes is not None:
        notes.append(f"{name}: solutions that are numbers are converted to text")
    texts = [None if value is None or value != value else as_text(value) for value in dataset["solution"]]
    changed = dataset.remove_columns("solution").add_column("solution", texts, feature=Value("string"))
    return changed.select_columns(dataset.column_names)


def _prompt_feature(columns: Columns, features: Any) -> Any:
    content: Any = Value("string")
    turns = features.get(columns.prompt)
    if columns.images:
        content = List({"type": Value("string"), "text": Value("string")})
    elif isinstance(turns, List):
        content = turns.feature["content"]
    return List({"role": Value("string"), "content": content})


def _problem(row: dict[str, Any], columns: Columns, place: str) -> dict[str, Any]:
    """TRL's columns of a row."""
    missing = _missing(row, columns)
    if missing is not None:
        raise DatasetError(
            f"{place}: '{missing}' is empty. Give it a value, or drop such rows with --drop_incomplete_rows true."
        )
    for column in columns.images:
        check_nulls(row.get(column), f"{place}: '{column}'")
    images = _images(row, columns)
    choices = _get(row, columns.choices) if columns.choices else None
    solution = _get(row, columns.solution)
    problem = {
        "prompt": _conversation(row, columns, choices, len(images), place),
        "solution": choice_letter(solution, choices, columns.choice_keys) or as_text(solution),
    }
    return {**problem, "images": images} if columns.images else problem


def _missing(row: dict[str, Any], columns: Columns) -> str | None:
    """The first required column without a value."""
    for path in (columns.prompt, columns.solution, *columns.images[:1]):
        value = _images(row, columns) if path in columns.images else _get(row, path)
        value = value.strip() if isinstance(value, str) else value
        if value is None or value in ("", []) or value != value:  # NaN, in tables
            return path
    return None


def _get(row: Any, path: str) -> Any:
    for part in path.split("."):
        if not isinstance(row, Mapping):
            return None
        row = row.get(part)
    return row


def _images(row: dict[str, Any], columns: Columns) -> list[Any]:
    values = [row.get(column) for column in columns.images]
    lists = [value if isinstance(value, list) else [value] for value in values]
    return [image for images in lists for image in images if image is not None]


def _choice_keys(dataset: Any, columns: Columns, name: str, notes: list[str] | None) -> str | None:
    paths = (columns.solution, str(columns.choices))
    if isinstance(dataset.features.get(columns.solution), ClassLabel):
        return "from_0"
    if isinstance(dataset, Dataset):
        rows: Any = dataset.select_columns(list({path.split(".")[0] for path in paths}))
    else:
        rows = islice(dataset, _STREAM_ROWS)
    problems = [(_get(row, paths[0]), _get(row, paths[1])) for row in rows]
    return find_choice_keys(problems, columns.choice_keys, paths, name, notes)


def _conversation(row: dict[str, Any], columns: Columns, choices: Any, images: int, place: str) -> list[dict[str, Any]]:
    prompt = _get(row, columns.prompt)
    messages = [] if columns.system is None else [{"role": "system", "content": columns.system}]
    if isinstance(prompt, list):
        if columns.custom_template or choices is not None:
            raise DatasetError(
                f"{place}: '{columns.prompt}' is a conversation, to which prompt_template and choices do not apply; "
                "leave them out"
            )
        messages += [{"role": turn["role"], "content": turn["content"]} for turn in prompt]
    else:
        messages.append({"role": "user", "content": _fill_template(row, columns, choices, images)})
    places = sum(turn["content"].count(IMAGE_PLACE) for turn in messages if isinstance(turn["content"], str))
    if places and places != images:
        source = f"in {', '.join(columns.images)}" if columns.images else "(dataset_columns names no images)"
        raise DatasetError(
            f"{place}: the prompt has {places} times {IMAGE_PLACE}, and the row has {images} images {source}"
        )
    return _with_image_parts(messages, 0 if places else images) if columns.images else messages


def _fill_template(row: dict[str, Any], columns: Columns, choices: Any, images: int) -> str:
    template = columns.template
    if choices and "{choices}" not in template:
        template = template.replace("{prompt}", "{prompt}\n{choices}")

    def fill(found: re.Match[str]) -> str:
        if found[1] == "choices":
            return list_choices(choices or [])
        return as_text(_get(row, columns.prompt if found[1] == "prompt" else found[1]))

    content = _PLACEHOLDER.sub(fill, template)
    if columns.images and (numbered := len(_NUMBERED_PLACE.findall(content))):
        # One image may show all figures that the numbers name.
        content = _NUMBERED_PLACE.sub(IMAGE_PLACE if numbered == images else "", content).strip()
    return content


def _with_image_parts(messages: list[dict[str, Any]], leading: int) -> list[dict[str, Any]]:
    """Split texts into typed parts at `<image>`, with `leading` images before the text of the first user turn."""
    image = {"type": "image", "text": None}
    typed = []
    for turn in messages:
        content = turn["content"]
        if isinstance(content, str):
            parts: list[dict[str, Any]] = []
            for index, piece in enumerate(content.split(IMAGE_PLACE)):
                if index:
                    parts.append(image)
                if piece.strip():
                    parts.append({"type": "text", "text": piece})
            if turn["role"] == "user" and leading:
                parts = [image] * leading + parts
                leading = 0
            content = parts
        typed.append({"role": turn["role"], "content": content})
    return typed
