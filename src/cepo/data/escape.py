"""Escape untrusted text for the terminal: it obeys control characters, and bidirectional marks reorder a line."""

import unicodedata

# Line ends, tabs, and the joiners that some scripts and emoji need.
_KEPT = frozenset("\n\t\u200c\u200d")


def escape(text: str) -> str:
    r"""A text whose control, format and unassigned characters are written as escapes, such as ``\x1b`` and ``\u202e``.

    Line ends, tabs and spaces of any width stay. Idempotent.
    """
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if character.isprintable() or character in _KEPT or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode("ascii")


def one_line(text: str) -> str:
    """An escaped text on one line: line ends become spaces."""
    return escape(" ".join(text.split()))
