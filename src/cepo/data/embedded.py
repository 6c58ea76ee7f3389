"""Datasets that come with cepo. A task registers its dataset."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class EmbeddedDataset:
    """A dataset that a task generates.

    Attributes:
        name: Value of `--dataset_name`.
        make: (split, size, options of the variant) -> the dataset.
        variants: Options by value of `--dataset_config`, including ``default``.
        policy: Returns the folder of the task's policy.
        recipe: Returns options of `cepo train`, which the user's options override.
    """

    name: str
    make: Callable[..., Any]
    variants: Mapping[str, Mapping[str, Any]]
    policy: Callable[[], str]
    recipe: Callable[[], dict[str, Any]]


EMBEDDED: dict[str, EmbeddedDataset] = {}


def register_dataset(dataset: EmbeddedDataset) -> None:
    """Register a task's dataset under its name."""
    EMBEDDED[dataset.name] = dataset


def holds_model(path: str | Path) -> bool:
    """Whether a folder holds a model or PEFT adapters."""
    return any((Path(path) / file).is_file() for file in ("config.json", "adapter_config.json"))


def policy_of(name: str) -> str:
    """The folder of a task's policy if a model is named after the task; else the name."""
    return EMBEDDED[name].policy() if name in EMBEDDED and not holds_model(name) else name
