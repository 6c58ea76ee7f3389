"""Escape untrusted text for display: terminals obey control characters, and bidirectional marks reorder a line."""

import unicodedata

# Line ends, tabs, and the joiners of some scripts and emoji.
_KEPT = frozenset("\n\t\u200c\u200d")


def escape(text: str) -> str:
    r"""Escape control, format and unassigned characters, as ``\x1b`` and ``\u202e``. Idempotent.

    Line ends, tabs and spaces of any width are kept.
    """
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if character.isprintable() or character in _KEPT or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode("ascii")


def one_line(text: str) -> str:
    """Escape a text and join its lines with spaces."""
    return escape(" ".join(text.split()))
