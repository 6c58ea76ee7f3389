"""The embedded default task: plane geometry whose numbers stand only in the figure, and a policy to start from."""

from importlib.resources import files
from typing import Any

import yaml

from ...data.embedded import EmbeddedDataset, register_dataset
from . import oracle  # noqa: F401  the method registers itself
from .beliefs import Case, cases_of
from .data import PLAIN_HINT_TEMPLATE, load_figures, problem_of
from .labels import GroupKind, figures_labels, first_error, group_kinds
from .problem import Problem, make_problem
from .solutions import Annotation, Span, annotate, filler_tokens, token_spans
from .verifier import figures_reward

__all__ = [
    "PLAIN_HINT_TEMPLATE",
    "Annotation",
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
    """Folder of the warm-started policy, a `Qwen3VLForConditionalGeneration` with its `Qwen3VLProcessor`."""
    return str(files(__package__) / "policy")


NAME = "figures"
# `steps` is the smallest and largest number of unknown angles; `cases` the kinds of wrong beliefs that can matter;
# `blank` leaves the printed numbers out, the control that shows that the figure is needed.
VARIANTS: dict[str, dict[str, Any]] = {
    "easy": {"steps": (2, 3)},
    "default": {"steps": (3, 4)},
    "long": {"steps": (4, 5)},
    "hard": {"steps": (5, 5)},
    "readings": {"steps": (3, 4), "cases": ("reading",)},
    "arithmetic": {"steps": (3, 4), "cases": ("arithmetic",)},
    "blank": {"steps": (3, 4), "blank": True},
}


def figures_recipe() -> dict[str, Any]:
    """Options of `cepo train` that fit this task on two CPU cores."""
    return yaml.safe_load((files(__package__) / "recipe.yaml").read_text())


register_dataset(EmbeddedDataset(NAME, load_figures, VARIANTS, policy_path, figures_recipe))
