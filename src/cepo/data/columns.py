"""Data sets in their own words, read as TRL's columns: `prompt` (a conversation), `solution`, `images`."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Json, List, Value

from .errors import DatasetError

IMAGE_PLACE = "<image>"
_NUMBERED_PLACE = re.compile(r"<image\s?\d{1,2}>")  # as MathVision and MMMU write it
# What a column of solutions may hold of its choices; of several that are possible the first is taken, if they agree.
CHOICE_KEYS = {
    "letter": "letters",
    "text": "texts of choices",
    "from_0": "places counted from 0",
    "from_1": "places counted from 1",
}
_LETTERED = re.compile(r"^\s*\(?[A-Z]\s?[).:]\s*")
_STREAM_ROWS = 200  # of a stream, those by which keys of choices are told apart
_PLACEHOLDER = re.compile(r"\{([A-Za-z_][\w.]*)\}")


@dataclass(frozen=True)
class Columns:
    """Where the parts of a problem stand in a row.

    Attributes:
        prompt, solution, choices: Columns; dots reach into one. The prompt is text or a conversation, the choices a
            list, or text as it is; a row without choices is a free problem.
        choice_keys: What solutions are among choices, one of `CHOICE_KEYS`; None: decided over the whole column.
        images: Columns with an image or a list of images each.
        template: Text of the user turn.
        templated: Whether the user gave that template.
        system: Text of a system turn.
    """

    prompt: str = "prompt"
    solution: str = "solution"
    images: tuple[str, ...] = ()
    choices: str | None = None
    choice_keys: str | None = None
    template: str = "{prompt}"
    templated: bool = False
    system: str | None = None

    @property
    def needed(self) -> tuple[str, ...]:
        """Columns in which every row must have something."""
        return (self.prompt, self.solution, *self.images[:1])

    def check(self, columns: Sequence[str], name: str) -> None:
        """Refuse a mapping that names columns which are not there, or that would tell the answer.

        Raises:
            DatasetError: Naming the column.
        """
        wanted = {"prompt": (self.prompt,), "solution": (self.solution,), "images": self.images}
        wanted["choices"] = (self.choices,) if self.choices else ()
        for part, paths in wanted.items():
            for path in paths:
                if path.split(".")[0] not in columns:
                    listed = ", ".join(f"'{column}'" for column in columns)
                    raise DatasetError(
                        f"{name} has no column '{path.split('.')[0]}' for the {part}; it has {listed}. Name the column "
                        "in dataset_columns."
                    )
        for found in _PLACEHOLDER.findall(self.template):
            if found.split(".")[0] in {self.solution.split(".")[0], "solution"}:
                raise DatasetError(f"prompt_template: {{{found}}} would tell the policy the solution")
            if found == "choices" and self.choices is None:
                raise DatasetError("prompt_template has {choices}, and dataset_columns names no column for choices")
            if found not in ("prompt", "choices") and found.split(".")[0] not in columns:
                raise DatasetError(f"prompt_template: {name} has no column '{found.split('.')[0]}' for {{{found}}}")


def read_dataset(
    dataset: Dataset | IterableDataset,
    columns: Columns | None,
    name: str,
    *,
    drop_incomplete: bool = False,
    notes: list[str] | None = None,
) -> Dataset | IterableDataset:
    """The data set in TRL's columns; its other columns stay, for rewards that read them.

    Args:
        dataset: As it is written.
        columns: How that is; None: in TRL's columns already.
        name: What to call it in messages.
        drop_incomplete: Leave out rows that lack something, which are refused otherwise.
        notes: Takes a line if rows were left out. Of a stream nobody knows how many.

    Raises:
        DatasetError: Naming the column, the row and the fix; for a stream as its rows arrive.
    """
    if columns is None and not drop_incomplete:
        return _with_text_solutions(dataset, name, notes)
    dataset = with_features(dataset)
    present = dataset.column_names
    if columns is None:
        images = tuple(column for column in ("image", "images") if column in present)
        whole = _without_incomplete(dataset, Columns(images=images), name, notes)
        return _with_text_solutions(whole, name, notes)
    columns.check(present, name)
    if drop_incomplete:
        dataset = _without_incomplete(dataset, columns, name, notes)
    # MathVision's `image` names the file that `decoded_image` holds; TRL would take it for a second image.
    own = {"prompt", "solution", "images", *(["image"] if columns.images else []), *columns.images}
    replaced = [column for column in own if column in present]
    for column in columns.images:  # undecoded, so that no image is opened for this
        dataset = dataset.cast_column(column, _undecoded(dataset.features[column]))
    if columns.choices:
        columns = replace(columns, choice_keys=_choice_keys(dataset, columns, name, notes))
    kept = {column: feature for column, feature in dataset.features.items() if column not in replaced}
    made = {"prompt": _prompt_feature(columns, dataset.features), "solution": Value("string")}
    made |= {"images": List(Image())} if columns.images else {}
    return map_rows(dataset, _reader(columns, name), Features({**kept, **made}), replaced, with_indices=True)


def map_rows(dataset: Any, function: Any, features: Features, removed: Sequence[str] = (), **options: Any) -> Any:
    """`Dataset.map`, after which a stream knows its features and opens images as a data set does."""
    if isinstance(dataset, Dataset):
        return dataset.map(function, remove_columns=list(removed), features=features, **options)
    # Given to `map`, they would be taken for what the rows are in already, and no image would be opened.
    return dataset.map(function, remove_columns=list(removed), **options).cast(features)


def with_features(dataset: Any) -> Any:
    """The data set, its columns known: of a stream they are what its first rows have."""
    return dataset._resolve_features() if dataset.features is None else dataset


def _without_incomplete(dataset: Any, columns: Columns, name: str, notes: list[str] | None) -> Any:
    features = dataset.features
    for column in columns.images:
        dataset = dataset.cast_column(column, _undecoded(features[column]))
    whole = dataset.filter(lambda row: _lacks(row, columns) is None)
    for column in columns.images:
        whole = whole.cast_column(column, features[column])
    if notes is not None and isinstance(dataset, Dataset) and len(whole) < len(dataset):
        notes.append(f"{name}: {len(dataset) - len(whole)} of {len(dataset)} rows left out, which lack something")
    return whole


def _with_text_solutions(dataset: Any, name: str, notes: list[str] | None) -> Any:
    """Solutions that are numbers, or numbers and texts, as people write them; of a stream they stay as they are."""
    if not isinstance(dataset, Dataset):  # its images would be decoded before anyone has looked at them
        return dataset
    feature = dataset.features.get("solution")
    if isinstance(feature, Json):
        known = [solution for solution in dataset["solution"] if solution is not None]
        numbers = all(isinstance(value, (int, float, str)) and not isinstance(value, bool) for value in known)
    else:
        numbers = type(feature) is Value and feature.dtype.startswith(("int", "uint", "float"))
    if not numbers:
        return dataset
    if notes is not None:
        notes.append(f"{name}: solutions that are numbers are read as text")
    texts = [None if value is None or value != value else _text(value) for value in dataset["solution"]]
    place = dataset.column_names.index("solution")
    changed = dataset.remove_columns("solution").add_column("solution", texts, feature=Value("string"))
    return changed.select_columns([*dataset.column_names[:place], "solution", *dataset.column_names[place + 1 :]])


def _prompt_feature(columns: Columns, features: Any) -> Any:
    """Of the conversations that are made."""
    content: Any = Value("string")
    turns = features.get(columns.prompt)
    if columns.images:
        content = List({"type": Value("string"), "text": Value("string")})
    elif isinstance(turns, List):  # conversations already
        content = turns.feature["content"]
    return List({"role": Value("string"), "content": content})


def _undecoded(feature: Any) -> Any:
    return List(Image(decode=False)) if isinstance(feature, (List, list)) else Image(decode=False)


def _reader(columns: Columns, name: str) -> Callable[[dict[str, Any], int], dict[str, Any]]:
    def read(row: dict[str, Any], number: int) -> dict[str, Any]:
        place = f"row {number} of {name}"
        lacking = _lacks(row, columns)
        if lacking is not None:
            raise DatasetError(
                f"{place}: '{lacking}' is empty. Give it a value, or leave such rows out with --drop_incomplete_rows "
                "true."
            )
        for column in columns.images:
            value = row.get(column)
            if isinstance(value, list) and None in value:
                raise DatasetError(
                    f"{place}: '{column}' holds null at position {value.index(None)} of its images. Put the image "
                    "there, or drop the row"
                )
        images = _images(row, columns)
        choices = _get(row, columns.choices) if columns.choices else None
        solution = _get(row, columns.solution)
        made = {
            "prompt": _conversation(row, columns, choices, len(images), place),
            "solution": _letter(solution, choices, columns.choice_keys) or _text(solution),
        }
        return {**made, "images": images} if columns.images else made

    return read


def _lacks(row: dict[str, Any], columns: Columns) -> str | None:
    """The column in which a row lacks something; None if there is none."""
    for path in columns.needed:
        value = _images(row, columns) if path in columns.images else _get(row, path)
        value = value.strip() if isinstance(value, str) else value
        if value is None or value in ("", []) or value != value:  # the last of these is NaN, as tables have it
            return path
    return None


def _get(row: Any, path: str) -> Any:
    for part in path.split("."):
        if not isinstance(row, Mapping):
            return None
        row = row.get(part)
    return row


def _images(row: dict[str, Any], columns: Columns) -> list[Any]:
    found = []
    for column in columns.images:
        value = row.get(column)
        found += [image for image in (value if isinstance(value, list) else [value]) if image is not None]
    return found


def _letters(count: int) -> list[str]:
    return [chr(ord("A") + index) for index in range(count)]


def _letter(solution: Any, choices: Any, keys: str | None) -> str | None:
    """The letter of the correct choice; None for a free problem, and where the solution is none of the choices."""
    if not isinstance(choices, list) or not choices:
        return None
    text = _text(solution).strip()
    if keys == "letter":
        found = re.fullmatch(r"\(?([A-Za-z])\)?[.:]?", text)
        place = ord(found[1].upper()) - ord("A") if found else -1
    elif keys == "text":
        texts = [_LETTERED.sub("", _text(choice)).strip() for choice in choices]
        wanted = [text, _LETTERED.sub("", text).strip()]
        place = next((texts.index(one) for one in wanted if one in texts), -1)
    else:
        place = int(text) - (keys == "from_1") if re.fullmatch(r"\d{1,2}", text) else -1
    return _letters(len(choices))[place] if 0 <= place < len(choices) else None


def _choice_keys(dataset: Any, columns: Columns, name: str, notes: list[str] | None) -> str | None:
    """What the solutions of a column are among their choices, one of `CHOICE_KEYS`; None: no row has a list of choices.

    Raises:
        DatasetError: If the column can be read in two ways.
    """
    assert columns.choices is not None
    wanted = list({columns.solution.split(".")[0], columns.choices.split(".")[0]})
    if isinstance(dataset, Dataset):
        rows: Any = dataset.select_columns(wanted)
    else:
        rows = islice(dataset, _STREAM_ROWS)
    pairs = [(_get(row, columns.solution), _get(row, columns.choices)) for row in rows]
    listed = [(solution, choices) for solution, choices in pairs if isinstance(choices, list) and choices]
    if not any(choices for _, choices in pairs):
        raise DatasetError(f"{name}: no row has choices in '{columns.choices}'; leave it out of dataset_columns")
    if not listed:
        return None
    if isinstance(dataset.features.get(columns.solution), ClassLabel):
        return "from_0"
    read = {keys: [_letter(solution, choices, keys) for solution, choices in listed] for keys in CHOICE_KEYS}
    counts = {keys: sum(letter is not None for letter in letters) for keys, letters in read.items()}
    given = columns.choice_keys
    most = max(counts.values())
    best = [given] if given else [keys for keys, count in counts.items() if count == most]
    for keys in best[1:]:
        for (solution, choices), one, other in zip(listed, read[best[0]], read[keys], strict=True):
            if one != other:
                raise DatasetError(
                    f"{name}: '{columns.solution}' can be read in two ways: {solution!r} among {choices!r} is {one} as "
                    f"{CHOICE_KEYS[best[0]]}, and {other} as {CHOICE_KEYS[keys]}. Say which with --choice_keys "
                    f"{best[0]} or {keys}"
                )
    if notes is not None:
        strays = len(listed) - counts[best[0]]
        kept = f"; {strays} that are none of their choices stay as they are" if strays else ""
        free = f"; {len(pairs) - len(listed)} rows are free problems" if len(pairs) > len(listed) else ""
        notes.append(f"{name}: '{columns.solution}' is read as {CHOICE_KEYS[best[0]]}{kept}{free}")
    return best[0]


def _text(value: Any) -> str:
    """Numbers as people write them."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _listed(choices: Any) -> str:
    if not isinstance(choices, list):
        return _text(choices)
    letters = _letters(len(choices))
    if [_text(choice).strip() for choice in choices] == letters:  # the choices stand in the image
        return f"Choices: {', '.join(letters)}"
    lines = []
    for letter, choice in zip(_letters(len(choices)), choices, strict=True):
        text = _text(choice)
        lines.append(text if re.match(rf"\(?{letter}\s*[).:]", text) else f"{letter}. {text}")
    return "\n".join(lines)


def _conversation(row: dict[str, Any], columns: Columns, choices: Any, images: int, place: str) -> list[dict[str, Any]]:
    prompt = _get(row, columns.prompt)
    system = [] if columns.system is None else [{"role": "system", "content": columns.system}]
    if isinstance(prompt, list):
        if columns.templated or choices is not None:
            raise DatasetError(
                f"{place}: '{columns.prompt}' is a conversation, in which prompt_template and choices would do "
                "nothing; leave them out"
            )
        messages = [*system, *({"role": turn["role"], "content": turn["content"]} for turn in prompt)]
    else:
        template = columns.template
        if choices and "{choices}" not in template:
            template = template.replace("{prompt}", "{prompt}\n{choices}")

        def fill(found: re.Match[str]) -> str:
            if found[1] == "prompt":
                return _text(prompt)
            return _listed(choices or []) if found[1] == "choices" else _text(_get(row, found[1]))

        content = _PLACEHOLDER.sub(fill, template)
        if columns.images and (numbered := len(_NUMBERED_PLACE.findall(content))):
            # One image may hold all that the numbers name.
            content = _NUMBERED_PLACE.sub(IMAGE_PLACE if numbered == images else "", content).strip()
        messages = [*system, {"role": "user", "content": content}]
    places = sum(turn["content"].count(IMAGE_PLACE) for turn in messages if isinstance(turn["content"], str))
    if places and places != images:
        source = f"in {', '.join(columns.images)}" if columns.images else "for no column of images is named"
        raise DatasetError(
            f"{place}: the prompt has {places} times {IMAGE_PLACE}, and there are {images} images {source}"
        )
    if not columns.images:
        return messages
    return _in_parts(messages, 0 if places else images)


def _in_parts(messages: list[dict[str, Any]], leading: int) -> list[dict[str, Any]]:
    """Typed parts, images at their places, and `leading` ones before the text of the first user turn."""
    typed = []
    for turn in messages:
        content = turn["content"]
        if isinstance(content, str):
            parts: list[dict[str, Any]] = []
            for index, piece in enumerate(content.split(IMAGE_PLACE)):
                if index:
                    parts.append({"type": "image", "text": None})
                if piece.strip():
                    parts.append({"type": "text", "text": piece})
            if turn["role"] == "user" and leading:
                parts = [*({"type": "image", "text": None} for _ in range(leading)), *parts]
                leading = 0
            content = parts
        typed.append({"role": turn["role"], "content": content})
    return typed
