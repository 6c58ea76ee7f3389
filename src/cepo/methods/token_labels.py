"""Token labels that a task knows of its rollouts, for methods that need them. A task registers its labels."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

TokenKind = Literal[
    "mistake",  # incorrect, given the completion so far
    "decision",  # correct, where it could have been incorrect
    "repeat",  # repeats an earlier part of the completion
    "filler",  # carries no decision
]
KINDS: tuple[TokenKind, ...] = get_args(TokenKind)


@dataclass(frozen=True)
class TokenLabels:
    """The token labels of one task.

    Attributes:
        columns: The columns that identify its rows.
        first_error: (row, the text that each token adds) -> number of tokens before the first error; None without one.
        kinds: (row, the text that each token adds) -> the kind of each token.
    """

    columns: frozenset[str]
    first_error: Callable[[Mapping[str, Any], Sequence[str]], int | None]
    kinds: Callable[[Mapping[str, Any], Sequence[str]], list[TokenKind]]


_REGISTERED: list[TokenLabels] = []


def register_token_labels(labels: TokenLabels) -> None:
    """Make token labels available to all methods."""
    _REGISTERED.append(labels)


def token_labels_of(columns: Collection[str]) -> TokenLabels | None:
    """The token labels for rows with these columns; None without any."""
    return next((labels for labels in _REGISTERED if labels.columns <= set(columns)), None)
