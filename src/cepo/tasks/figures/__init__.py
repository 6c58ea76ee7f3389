"""The default task: plane geometry whose numbers are only in the figure, with a policy to train."""

from importlib.resources import files
from typing import Any

import yaml

from ...data.embedded import EmbeddedDataset, register_dataset
from . import oracle  # noqa: F401  the method registers itself
from .beliefs import Case, cases_of
from .data import PLAIN_HINT_TEMPLATE, load_figures, problem_of
from .labels import GroupKind, figures_labels, first_error, group_kinds
from .problem import Problem, make_problem
from .solutions import Span, annotate, filler_tokens, token_spans
from .verifier import figures_reward

__all__ = [
    "PLAIN_HINT_TEMPLATE",
    "Case",
    "GroupKind",
    "Problem",
    "Span",
    "annotate",
    "cases_of",
    "figures_labels",
    "figures_reward",
    "filler_tokens",
    "first_error",
    "group_kinds",
    "load_figures",
    "make_problem",
    "policy_path",
    "problem_of",
    "token_spans",
]


def policy_path() -> str:
    """Folder of the shipped policy, a `Qwen3VLForConditionalGeneration` with its `Qwen3VLProcessor`."""
    return str(files(__package__) / "policy")


NAME = "figures"
# Options of `load_figures`, by value of `--dataset_config`.
VARIANTS: dict[str, dict[str, Any]] = {
    "easy": {"steps": (2, 3)},
    "default": {"steps": (3, 4)},
    "long": {"steps": (4, 5)},
    "hard": {"steps": (5, 5)},
    "readings": {"steps": (3, 4), "cases": ("reading",)},
    "arithmetic": {"steps": (3, 4), "cases": ("arithmetic",)},
    "sparse": {"steps": (3, 4), "case_counts": (0, 2, 2, 3, 3)},
    "blank": {"steps": (3, 4), "blank": True},
}


def figures_recipe() -> dict[str, Any]:
    """Options of `cepo train` for this task on two CPU cores."""
    return yaml.safe_load((files(__package__) / "recipe.yaml").read_text())


register_dataset(EmbeddedDataset(NAME, load_figures, VARIANTS, policy_path, figures_recipe))
