"""Checks of a dataset before training starts: each error names the column and the row, and how to fix it."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pyarrow
from datasets import Dataset, IterableDataset, Value

from ..methods.method import MethodOptions
from ..references.extraction import reference_answer
from .errors import DatasetError
from .images import check_header, check_nulls, check_parts, image_columns, refused_size, undecoded
from .rewards import compares_answers, unreadable_solutions

# How many rows of a stream are looked at; rows further on are checked when they arrive.
_STREAM_ROWS = 8
# A verifier that cannot read more than this share of the solutions is refused.
_MOST_UNREADABLE = 0.1
_VERIFIED_ROWS = 500
_WORDS = frozenset({"prompt", "solution"})
_IMAGE_FILES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
# Arguments of reward functions beside the columns, and of those that are methods.
_TAKEN = frozenset({"prompts", "completions", "trainer_state", "log_extra", "log_metric", "environments", "self"})


def check_dataset(
    dataset: Dataset | IterableDataset,
    *,
    needs_solution: bool,
    needs_prompt: bool = True,
    name: str = "the training set",
    extractor: str = "auto",
) -> None:
    """Refuse a dataset that would fail later, or that would silently train on the wrong thing.

    Args:
        dataset: With TRL's columns: `prompt`, `solution`, and `image` or `images` for vision-language models.
        needs_solution: Whether a teacher will be told the `solution`; it then must be there in every row, and the
            prompts must be conversations, because the hint is put into their last user turn.
        needs_prompt: Whether there must be prompts; an environment may make its own.
        name: What to call the dataset in messages.
        extractor: How the solution's answer is read; see `final_answer`.

    Raises:
        DatasetError: Naming the column, the row and the fix.
    """
    columns = dataset.column_names
    if columns is not None:
        if needs_prompt and "prompt" not in columns:
            raise DatasetError(
                f"{name} has no column 'prompt'; it has {_listed(columns)}. Rename the column with the questions."
            )
        if needs_solution and "solution" not in columns:
            raise DatasetError(
                f"{name} has no column 'solution', from which verifiers and teachers know the right answer; it has "
                f"{_listed(columns)}. Rename the column with the reference answers to 'solution'."
            )
        if taken := [column for column in columns if column in _TAKEN]:
            raise DatasetError(
                f"{name} has a column {_listed(taken)}, and reward functions are given that by TRL; rename it"
            )
    if isinstance(dataset, IterableDataset):
        _check_rows(islice(dataset, _STREAM_ROWS), needs_solution, name, extractor)
        return
    _check_text(dataset, name)
    _check_images(dataset, name)
    if "prompt" in dataset.column_names and not _is_plain(dataset.features["prompt"]):
        for number, prompt in enumerate(dataset.select_columns(["prompt"])):
            check_parts(prompt["prompt"], f"row {number} of {name}")
    if needs_solution:
        # Only the columns that are read, so that no image is decoded here.
        read = [column for column in ("prompt", "solution") if column in dataset.column_names]
        _check_rows(dataset.select_columns(read), needs_solution, name, extractor)


def _check_rows(rows: Iterable[dict[str, Any]], needs_solution: bool, name: str, extractor: str) -> None:
    if not needs_solution:
        return
    for number, row in enumerate(rows):
        check_solution(row, f"row {number} of {name}", extractor)
        prompt = row.get("prompt", [{"role": "user"}])
        if isinstance(prompt, str):
            raise DatasetError(
                f"row {number} of {name}: 'prompt' is plain text. A teacher's hint is put into the last user turn of a "
                'conversation; give the prompt as [{"role": "user", "content": ...}].'
            )
        if not any(message["role"] == "user" for message in prompt):
            raise DatasetError(f"row {number} of {name}: 'prompt' has no user turn for a teacher's hint to stand in.")


def check_solution(row: dict[str, Any], place: str, extractor: str = "auto") -> str:
    """The `solution` of a row.

    Raises:
        DatasetError: If it is missing or empty, or no answer can be read in it.
    """
    solution = row.get("solution")
    if isinstance(solution, str) and solution.strip():
        if not reference_answer(solution, extractor):
            raise DatasetError(
                f"{place}: 'solution' holds no answer, as answer_extractor={extractor!r} reads it: {solution[:80]!r}. "
                "Write the answer into it, or drop the row."
            )
        return solution
    state = "empty" if solution is None or isinstance(solution, str) else f"not text but {solution!r}"
    raise DatasetError(f"{place}: 'solution' is {state}. Give the row its reference answer as text, or drop it.")


def _is_plain(feature: Any) -> bool:
    """Whether prompts are text, or conversations whose turns are text."""
    turns = getattr(feature, "feature", None)
    content = turns.get("content") if isinstance(turns, dict) else None
    return isinstance(feature, Value) or isinstance(content, Value)


def _check_text(dataset: Dataset, name: str) -> None:
    """Bytes that are no text, which files can hold where they should hold some; reading the row would raise."""
    images = image_columns(dataset)
    for column in set(dataset.column_names) - set(images):
        try:
            dataset.data.column(column).validate(full=True)
        except pyarrow.ArrowInvalid:
            for number in range(len(dataset)):
                try:
                    _ = dataset.select_columns([column])[number]
                except UnicodeDecodeError as error:
                    raise DatasetError(
                        f"row {number} of {name}: '{column}' is not UTF-8 ({error.reason}). Mend it, or drop the row"
                    ) from error


# The distinct image sizes of data sets whose headers were read, each with its first row, by column: reading the headers
# of a large set takes minutes, and its processor is known only later.
_Sizes = dict[str, dict[tuple[int, int], int]]
_SIZES: WeakKeyDictionary[Dataset, _Sizes] = WeakKeyDictionary()


def _check_images(dataset: Dataset, name: str) -> _Sizes:
    """Images that are not there, or that no one should decode; both would show in the middle of training."""
    sizes: _Sizes = {}
    for column, several in image_columns(dataset).items():
        if column not in ("image", "images"):
            continue
        if several != (column == "images"):
            holds, other = ("lists of images", "images") if several else ("one image a row", "image")
            raise DatasetError(f"{name}: '{column}' holds {holds}, for which the column is '{other}'. Rename it.")
        first: dict[bool, int] = {}
        sizes[column] = {}
        for number, row in enumerate(undecoded(dataset.select_columns([column]))):
            value = row[column]
            first.setdefault(bool(value), number)
            if len(first) > 1:
                raise DatasetError(
                    f"row {first[False]} of {name} has no image in '{column}', and row {first[True]} has one: a batch "
                    "cannot hold both. Give every row an image, or drop those without (--drop_incomplete_rows true)."
                )
            place = f"row {number} of {name}: '{column}'"
            check_nulls(value, place)
            for image in value if isinstance(value, list) else [value]:
                if image and (size := check_header(image, place)):
                    sizes[column].setdefault(size, number)
    _SIZES[dataset] = sizes
    return sizes


def check_image_sizes(dataset: Any, processing_class: Any, name: str = "the training set") -> None:
    """Refuse images whose sides the processor refuses. Headers are read; no image is decoded.

    Args:
        dataset: With TRL's columns. The rows of a stream are not known before they arrive; they are not checked.
        processing_class: The model's processor. A tokenizer refuses no image.
        name: What to call the dataset in messages.

    Raises:
        DatasetError: Naming the row, the column and the processor's reason.
    """
    if not isinstance(dataset, Dataset):
        return
    sizes = _SIZES[dataset] if dataset in _SIZES else _check_images(dataset, name)
    for column, rows in sizes.items():
        if refused := refused_size(processing_class, rows):
            (width, height), reason = refused
            raise DatasetError(
                f"row {rows[width, height]} of {name}: '{column}' has an image of {width} x {height} pixels, which "
                f"{reason}. Pad or crop it, or drop the row"
            )


def unread_images(dataset: Any) -> str | None:
    """What to say of a data set whose images a vision model does not see, for the name of their column."""
    columns = dataset.column_names if isinstance(dataset, Dataset) else []
    if not columns or {"image", "images"} & set(columns):
        return None
    held = next(iter(image_columns(dataset)), None)
    texts = [c for c, f in dataset.features.items() if type(f) is Value and "string" in f.dtype and c not in _WORDS]
    rows = list(islice(dataset.select_columns(texts), _STREAM_ROWS)) if texts else []
    named = next((column for column in texts if _name_images([row[column] for row in rows])), None)
    column = held or named
    if column is None:
        return None
    return (
        f"The data set has no column 'image' or 'images', so the policy sees text alone; '{column}' "
        f"{'holds' if held else 'names'} images: call it 'image' ('images' if it holds lists) to have them seen."
    )


def _name_images(texts: list[str | None]) -> bool:
    known = [text for text in texts if text]
    return bool(known) and all("://" not in text and Path(text).suffix.lower() in _IMAGE_FILES for text in known)


def _listed(columns: list[str]) -> str:
    return ", ".join(f"'{column}'" for column in columns)


def check_method(dataset: Any, options: MethodOptions) -> None:
    """Refuse a data set that a method says it cannot train on.

    Raises:
        DatasetError: Naming the method and its reason.
    """
    reason = options.dataset_problem(dataset.column_names or [])
    if reason is not None:
        raise DatasetError(f"method={options.method!r} cannot train on this dataset: {reason}")


def check_verifier(
    function: Any, dataset: Any, extractor: str = "auto", name: str = "the training set"
) -> tuple[str, int]:
    """How many of a data set's solutions a verifier can read, measured by their own answers.

    Args:
        function: A reward function.
        dataset: In TRL's columns.
        extractor: See `final_answer`.
        name: What to call the data set in messages.

    Returns:
        One line, and the number of solutions that it cannot read; ("", 0) for a reward function that is not known to
        compare with the `solution` column.

    Raises:
        DatasetError: If it does not accept the answer of more than a tenth of the solutions.
    """
    if not compares_answers(function) or not isinstance(dataset, Dataset) or "solution" not in dataset.column_names:
        return "", 0
    step = max(1, len(dataset) // _VERIFIED_ROWS)
    found = {row: dataset["solution"][row] for row in range(0, len(dataset), step)}
    rows, solutions = zip(*((row, text) for row, text in found.items() if isinstance(text, str)), strict=True)
    unreadable = unreadable_solutions(function, solutions, extractor)
    called = function.__name__
    looked_at = f"{len(rows):,} solutions" if step == 1 else f"{len(rows):,} solutions looked at"
    line = f"{called} reads {len(rows) - len(unreadable):,} of {looked_at}"
    if not unreadable:
        return line, 0
    first = f"row {rows[unreadable[0]]} of {name}: {solutions[unreadable[0]][:60]!r}"
    line += f" ({first} is the first that it does not); answer_reward reads numbers, formulas, units, choices and words"
    if len(unreadable) > _MOST_UNREADABLE * len(rows):
        raise DatasetError(f"reward_funcs: {line}. Take answer_reward")
    return line, len(unreadable)


def can_be_explained(dataset: Any) -> bool:
    """Whether every row has a solution, and no prompt is plain text, so that credit can be shown. Of a stream nobody
    knows."""
    if not isinstance(dataset, Dataset) or "solution" not in dataset.column_names:
        return False
    if isinstance(dataset.features.get("prompt"), Value):
        return False
    return all(isinstance(solution, str) and solution.strip() for solution in dataset["solution"])


def check_size(dataset: Dataset, rollouts: int, group_size: int) -> None:
    """Refuse a training set that cannot fill one generation batch: TRL drops such a batch, and nothing is trained.

    Args:
        dataset: The training set.
        rollouts: Rollouts of a generation batch, of all processes.
        group_size: Rollouts of a prompt.

    Raises:
        DatasetError: With the numbers and the fix.
    """
    prompts = rollouts // group_size
    if len(dataset) < prompts:
        raise DatasetError(
            f"the training set has {len(dataset)} rows, and one generation batch takes {prompts} prompts "
            f"({rollouts} rollouts, {group_size} each). Add rows, or lower per_device_train_batch_size or "
            "gradient_accumulation_steps."
        )
