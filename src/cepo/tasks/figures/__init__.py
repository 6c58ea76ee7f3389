"""The embedded default task: plane geometry whose numbers stand only in the figure, and a policy to start from."""

from importlib.resources import files

from .data import PLAIN_HINT_TEMPLATE, load_figures, problem_of
from .labels import TokenKind, figures_labels, group_kinds
from .problem import Problem, make_problem
from .solutions import Annotation, Span, annotate, filler_tokens, token_spans
from .verifier import figures_reward

__all__ = [
    "PLAIN_HINT_TEMPLATE",
    "Annotation",
    "Problem",
    "Span",
    "TokenKind",
    "annotate",
    "figures_labels",
    "figures_reward",
    "filler_tokens",
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
