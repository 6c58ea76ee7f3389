"""What a task knows of the tokens of its rollouts, for methods that need it. A task registers what it knows."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

TokenKind = Literal[
    "mistake",  # it is wrong, given what the completion wrote before
    "decision",  # it could have been wrong, and is not
    "repeat",  # it says again what stands there already
    "filler",  # words
]
KINDS: tuple[TokenKind, ...] = get_args(TokenKind)


@dataclass(frozen=True)
class TokenLabels:
    """What one task knows.

    Attributes:
        columns: The columns by which its rows are recognised.
        first_error: (row, the text that each token adds) -> how many tokens come before the first error; None if there
            is none.
        kinds: (row, the text that each token adds) -> what each token is.
    """

    columns: frozenset[str]
    first_error: Callable[[Mapping[str, Any], Sequence[str]], int | None]
    kinds: Callable[[Mapping[str, Any], Sequence[str]], list[TokenKind]]


_KNOWN: list[TokenLabels] = []


def register_token_labels(knowledge: TokenLabels) -> None:
    """Make it known to all methods."""
    _KNOWN.append(knowledge)


def token_labels_of(columns: Collection[str]) -> TokenLabels | None:
    """That of the task to which rows with these columns belong, if any."""
    return next((known for known in _KNOWN if known.columns <= set(columns)), None)
