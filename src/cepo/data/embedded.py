"""Data sets that tasks of cepo make. A task registers its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class EmbeddedDataset:
    """A data set that a task makes rather than loads.

    Attributes:
        name: As `--dataset_name` takes it.
        make: (split, size, options of the variant) -> the data set.
        variants: Options by the name that `--dataset_config` takes; one of them is ``default``.
        policy: Gives the folder of the policy that comes with it.
        recipe: Gives options of `cepo train` that fit it, under those that the user gives.
    """

    name: str
    make: Callable[..., Any]
    variants: Mapping[str, Mapping[str, Any]]
    policy: Callable[[], str]
    recipe: Callable[[], dict[str, Any]]


EMBEDDED: dict[str, EmbeddedDataset] = {}


def register_dataset(dataset: EmbeddedDataset) -> None:
    """Make a task's data set known by its name."""
    EMBEDDED[dataset.name] = dataset


def holds_model(path: str | Path) -> bool:
    """Whether a folder holds a model, or PEFT adapters of one."""
    return any((Path(path) / file).is_file() for file in ("config.json", "adapter_config.json"))


def policy_of(name: str) -> str:
    """The folder of the policy that comes with a task, where a model is called by the task's name; else the name."""
    return EMBEDDED[name].policy() if name in EMBEDDED and not holds_model(name) else name
