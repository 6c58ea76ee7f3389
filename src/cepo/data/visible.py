"""Text that nobody of ours wrote, made fit to be shown: what models, data sets and command lines hold may be anything.

A terminal obeys control characters, bidirectional marks turn a line around, and half of a surrogate pair cannot be
written at all. Everything that is shown goes through here; data that is kept stays as it is.
"""

import unicodedata
from collections import deque
from typing import Any

# Joiners, which some scripts and emoji need, and the two controls that plain text has.
_KEPT = frozenset("\n\t\u200c\u200d")


def visible(text: str) -> str:
    r"""A text whose control, format and unassigned characters are written as escapes, such as ``\x1b`` and ``\u202e``.

    Line ends, tabs and spaces of any width stay. What came out of it goes through it unchanged.
    """
    if text.isprintable():
        return text
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character.isprintable() or character in _KEPT or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode("ascii")


def one_line(text: str) -> str:
    """A visible text on one line: line ends become spaces."""
    return visible(" ".join(text.split()))


def visible_within(value: Any) -> Any:
    """A value whose texts, in sequences and mappings too, are visible; all else stays as it is."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {visible_within(key): visible_within(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(map(visible_within, value))
    if isinstance(value, (list, deque)):
        return list(map(visible_within, value))
    return value
