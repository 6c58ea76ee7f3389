"""Checks of datasets before training. Each error names the column, the row and the fix."""

from collections.abc import Iterable
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import pyarrow
from datasets import Dataset, IterableDataset, Value

from ..methods.method import MethodOptions
from ..references.extraction import reference_answer
from .errors import DatasetError
from .images import as_list, check_header, check_nulls, check_parts, image_columns, refused_size, undecoded
from .rewards import compares_answers, unreadable_solutions

# Rows of a stream that are checked before training; the others are checked when they arrive.
_STREAM_ROWS = 8
# A verifier is refused if it can parse fewer solutions than this.
_LARGEST_UNREADABLE_SHARE = 0.1
_VERIFIED_ROWS = 500


def check_dataset(
    dataset: Dataset | IterableDataset,
    *,
    needs_solution: bool,
    needs_prompt: bool = True,
    name: str = "the training set",
    extractor: str = "auto",
) -> None:
    """Refuse a dataset that would fail during training, or train on the wrong columns.

    Args:
        dataset: With TRL's columns: `prompt`, `solution`, and `image` or `images` for vision-language models.
        needs_solution: Whether hints need the `solution`. Every row must then have a solution, and prompts must be
            conversations, since the hint goes into the last user turn.
        needs_prompt: Whether prompts are required; an environment may make them.
        name: The dataset's name in messages.
        extractor: How the solution's answer is extracted; see `final_answer`.
    """
    columns = dataset.column_names
    if columns is not None:
        if needs_prompt and "prompt" not in columns:
            raise DatasetError(
                f"{name} has no column 'prompt'; it has {_listed(columns)}. Rename the column with the questions."
            )
        if needs_solution and "solution" not in columns:
            raise DatasetError(
                f"{name} has no column 'solution', which verifiers and hints need; it has {_listed(columns)}. Rename "
                "the column with the reference answers to 'solution'."
            )
    if isinstance(dataset, IterableDataset):
        if needs_solution:
            _check_rows(islice(dataset, _STREAM_ROWS), name, extractor)
        return
    _check_text(dataset, name)
    _check_images(dataset, name)
    if "prompt" in dataset.column_names and not _is_plain(dataset.features["prompt"]):
        for number, row in enumerate(dataset.select_columns(["prompt"])):
            check_parts(row["prompt"], f"row {number} of {name}")
    if needs_solution:
        # Without the images, which would be decoded.
        present = [column for column in ("prompt", "solution") if column in dataset.column_names]
        _check_rows(dataset.select_columns(present), name, extractor)


def _check_rows(rows: Iterable[dict[str, Any]], name: str, extractor: str) -> None:
    for number, row in enumerate(rows):
        check_solution(row, f"row {number} of {name}", extractor)
        prompt = row.get("prompt", [{"role": "user"}])
        if isinstance(prompt, str):
            raise DatasetError(
                f"row {number} of {name}: 'prompt' is plain text. A hint goes into the last user turn of a "
                'conversation; give the prompt as [{"role": "user", "content": ...}].'
            )
        if not any(message["role"] == "user" for message in prompt):
            raise DatasetError(f"row {number} of {name}: 'prompt' has no user turn, into which a hint would go.")


def check_solution(row: dict[str, Any], place: str, extractor: str = "auto") -> str:
    """The `solution` of a row."""
    solution = row.get("solution")
    if isinstance(solution, str) and solution.strip():
        if not reference_answer(solution, extractor):
            raise DatasetError(
                f"{place}: 'solution' has no answer that answer_extractor={extractor!r} finds: {solution[:80]!r}. Add "
                "the answer, or drop the row."
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
    """Refuse text that is not UTF-8: `datasets` loads it, and fails when the row is accessed."""
    for column in set(dataset.column_names) - set(image_columns(dataset)):
        try:
            dataset.data.column(column).validate(full=True)
        except pyarrow.ArrowInvalid:
            texts = dataset.select_columns([column])
            for number in range(len(dataset)):
                try:
                    texts[number]
                except UnicodeDecodeError as error:
                    raise DatasetError(
                        f"row {number} of {name}: '{column}' is not UTF-8 ({error.reason}). Fix it, or drop the row"
                    ) from error


# Image sizes of checked datasets with their first row, by column. Headers of a large dataset take minutes to read,
# and its processor is known only later.
_Sizes = dict[str, dict[tuple[int, int], int]]
_SIZES: WeakKeyDictionary[Dataset, _Sizes] = WeakKeyDictionary()


def _check_images(dataset: Dataset, name: str) -> _Sizes:
    """Refuse missing or unusable images, and return the sizes of the others."""
    sizes: _Sizes = {}
    for column, several in image_columns(dataset).items():
        if column not in ("image", "images"):
            continue
        if several != (column == "images"):
            holds, other = ("lists of images", "images") if several else ("one image a row", "image")
            raise DatasetError(f"{name}: '{column}' has {holds}; rename it to '{other}'.")
        first: dict[bool, int] = {}
        sizes[column] = {}
        for number, row in enumerate(undecoded(dataset.select_columns([column]))):
            value = row[column]
            first.setdefault(bool(value), number)
            if len(first) > 1:
                raise DatasetError(
                    f"row {first[False]} of {name} has no image in '{column}', and row {first[True]} has one: a batch "
                    "cannot have both. Give every row an image, or drop those without (--drop_incomplete_rows true)."
                )
            place = f"row {number} of {name}: '{column}'"
            check_nulls(value, place)
            for image in as_list(value):
                if size := check_header(image, place):
                    sizes[column].setdefault(size, number)
    _SIZES[dataset] = sizes
    return sizes


def check_image_sizes(dataset: Any, processing_class: Any, name: str = "the training set") -> None:
    """Refuse images of a size that the processor refuses. Only headers are read."""
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


def unused_images(dataset: Any) -> str | None:
    """A warning if a dataset has images in a column that TRL does not use."""
    columns = image_columns(dataset) if isinstance(dataset, Dataset) else {}
    if not columns or {"image", "images"} & set(columns):
        return None
    return (
        f"The dataset has no column 'image' or 'images', so the policy gets text only. '{next(iter(columns))}' has "
        "images: rename it to 'image', or 'images' if it has lists."
    )


def _listed(columns: list[str]) -> str:
    return ", ".join(f"'{column}'" for column in columns)


def check_method(dataset: Any, options: MethodOptions) -> None:
    """Refuse a dataset that the method cannot train on."""
    if reason := options.dataset_problem(dataset.column_names or []):
        raise DatasetError(f"method={options.method!r} cannot train on this dataset: {reason}")


def check_verifier(
    function: Any, dataset: Any, extractor: str = "auto", name: str = "the training set"
) -> tuple[str, int]:
    """Count the solutions that a verifier can parse: those whose answer, as a completion, gets a reward.

    Args:
        function: A reward function.
        dataset: With TRL's columns. At most 500 to 1,000 of its rows are used.
        extractor: See `final_answer`.
        name: The dataset's name in messages.

    Returns:
        A line for the user, and the number of solutions that the verifier cannot parse; ("", 0) for reward functions
        that are not known to compare with the `solution` column.

    Raises:
        DatasetError: If the verifier cannot parse more than a tenth of the solutions.
    """
    if not compares_answers(function) or not isinstance(dataset, Dataset) or "solution" not in dataset.column_names:
        return "", 0
    step = max(1, len(dataset) // _VERIFIED_ROWS)
    found = {row: text for row in range(0, len(dataset), step) if isinstance(text := dataset["solution"][row], str)}
    rows, solutions = list(found), list(found.values())
    unreadable = unreadable_solutions(function, solutions, extractor)
    sampled = "" if step == 1 else " sampled"
    line = f"{function.__name__} parses {len(rows) - len(unreadable):,} of {len(rows):,}{sampled} solutions"
    if not unreadable:
        return line, 0
    line += (
        f" (row {rows[unreadable[0]]} of {name} is the first that it does not: {solutions[unreadable[0]][:60]!r}); "
        "answer_reward parses numbers, formulas, units, choices and words"
    )
    if len(unreadable) > _LARGEST_UNREADABLE_SHARE * len(rows):
        raise DatasetError(f"reward_funcs: {line}. Use answer_reward")
    return line, len(unreadable)


def can_be_explained(dataset: Any) -> bool:
    """Whether `cepo explain` can show the dataset's rollouts: every row has a solution, and prompts are conversations.
    False for streams."""
    if not isinstance(dataset, Dataset) or "solution" not in dataset.column_names:
        return False
    if isinstance(dataset.features.get("prompt"), Value):
        return False
    return all(isinstance(solution, str) and solution.strip() for solution in dataset["solution"])


def check_size(dataset: Dataset, rollouts: int, group_size: int) -> None:
    """Refuse a training set smaller than a generation batch. TRL drops incomplete batches, so it would not train."""
    prompts = rollouts // group_size
    if len(dataset) < prompts:
        raise DatasetError(
            f"the training set has {len(dataset)} rows, and a generation batch takes {prompts} prompts ({rollouts} "
            f"rollouts, {group_size} each). Add rows, or lower per_device_train_batch_size or "
            "gradient_accumulation_steps."
        )
