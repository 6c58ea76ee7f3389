"""Save the rollouts of a training run to `rollouts/step-00012.parquet` in its output directory, and load them.

A file has one row per rollout, with the token ids as sampled, and digests of the images, which stay in the dataset.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Dataset
from pyarrow import parquet

from ..references.groups import Group, Messages, Rollout
from .files import replacing
from .sampling import conversation_of, images_of_messages, text_of_messages

FOLDER = "rollouts"


class SavedError(ValueError):
    """Saved rollouts that are missing, or do not belong to the dataset. The message has the fix."""


def rows_of(groups: Sequence[Group], first_index: int) -> list[dict[str, Any]]:
    """Groups as rows of a file, numbered from `first_index`."""
    return [
        {
            "group": first_index + index,
            "position": place,
            "prompt": _prompt_text(group.messages),
            "images": _digests(group.messages),
            "solution": group.solution,
            "completion_ids": list(rollout.ids),
            "trained": None if rollout.trained is None else list(rollout.trained),
            "advantage": rollout.advantage,
            "answer": rollout.answer,
            "reward": rollout.reward,
            "correct": rollout.correct,
            "text": rollout.text,
            "first_error": rollout.first_error,
        }
        for index, group in enumerate(groups)
        for place, rollout in enumerate(group.rollouts)
        if rollout.local
    ]


def save_rows(output_dir: str, step: int, rows: list[dict[str, Any]]) -> None:
    """Save the rollouts that were sampled for an optimizer step."""
    path = Path(output_dir) / FOLDER / f"step-{step:05d}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        parquet.write_table(pyarrow.Table.from_pylist(rows), part)


@dataclass(frozen=True)
class Saved:
    """The groups of an optimizer step, each as its rows."""

    step: int
    groups: list[list[dict[str, Any]]]


def load_saved(output_dir: str, step: int | None = None) -> Saved:
    """Load the rollouts of an optimizer step; None: of the last one that was saved."""
    folder = Path(output_dir) / FOLDER
    files = {int(path.stem.removeprefix("step-")): path for path in sorted(folder.glob("step-*.parquet"))}
    if not files:
        raise SavedError(f"{folder} has no rollouts; cepo train saves them with --log_completions")
    chosen = max(files) if step is None else step
    if chosen not in files:
        raise SavedError(f"{folder} has no step {step}; it has {_listed(files)}")
    rows = parquet.read_table(files[chosen]).sort_by([("group", "ascending"), ("position", "ascending")]).to_pylist()
    return Saved(chosen, [list(group) for _, group in groupby(rows, lambda row: row["group"])])


def restore(saved: Sequence[list[dict[str, Any]]], dataset: Dataset, processing_class: Any) -> list[Group]:
    """The groups of saved rows, with prompts and images from the dataset that was trained on."""
    wanted = {(rows[0]["prompt"], rows[0]["solution"], rows[0]["images"]) for rows in saved}
    found = _find(wanted, dataset, processing_class)
    groups = []
    for rows in saved:
        head = rows[0]
        key = (head["prompt"], head["solution"], head["images"])
        if key not in found:
            text = " / ".join(text for _, text in json.loads(head["prompt"]))
            raise SavedError(
                f"the dataset does not have the prompt {text[:80]!r} with the solution {head['solution']!r}"
                f"{' and its images' if head['images'] else ''}. Name the dataset of the run with --dataset_name, "
                "--dataset_config and --dataset_split."
            )
        rollouts = [
            Rollout(
                row["answer"],
                row["reward"],
                row["correct"],
                row["text"],
                row["first_error"],
                tuple(row["completion_ids"]),
                row["advantage"],
                None if row["trained"] is None else tuple(row["trained"]),
            )
            for row in rows
        ]
        messages, row = found[key]
        groups.append(Group(messages, head["solution"], rollouts, row, head["group"]))
    return groups


def _find(
    wanted: set[tuple[str, str, str]], dataset: Dataset, processing_class: Any
) -> dict[tuple[str, str, str], tuple[Messages, dict[str, Any]]]:
    """Conversations and rows of the wanted prompts. Images are decoded only if text and solution match."""
    texts = {(prompt, solution) for prompt, solution, _ in wanted}
    found: dict[tuple[str, str, str], tuple[Messages, dict[str, Any]]] = {}
    columns = dataset.select_columns(["prompt", "solution"])
    for index, row in enumerate(columns):
        text = _prompt_text(row["prompt"])
        if (text, row["solution"]) in texts:
            whole = dataset[index]
            messages = conversation_of(whole, processing_class)
            key = (text, row["solution"], _digests(messages))
            if key in wanted:
                found[key] = messages, whole
        if len(found) == len(wanted):
            break
    return found


def _prompt_text(messages: Messages) -> str:
    return json.dumps(text_of_messages(messages), ensure_ascii=False)


def _digests(messages: Messages) -> str:
    digests = []
    for image in images_of_messages(messages):
        picture = image.convert("RGB")
        digests.append(hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()[:16])
    return " ".join(digests)


def _listed(steps: Iterable[int]) -> str:
    ordered = [str(step) for step in sorted(steps)]
    return ", ".join(ordered if len(ordered) <= 8 else [*ordered[:4], "...", *ordered[-2:]])
