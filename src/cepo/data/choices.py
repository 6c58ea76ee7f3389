"""Multiple-choice problems: list the choices in the prompt, and turn solutions into letters."""

import re
from collections.abc import Sequence
from typing import Any

from .errors import DatasetError

# How a solution may name one of its choices. Of several possible forms that agree, the first is taken.
CHOICE_KEYS = {
    "letter": "letters",
    "text": "texts of choices",
    "from_0": "positions from 0",
    "from_1": "positions from 1",
}
_LETTERED = re.compile(r"^\s*\(?[A-Z]\s?[).:]\s*")


def as_text(value: Any) -> str:
    """A value as text; whole numbers without a decimal point."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _letters(choices: Sequence[Any]) -> list[str]:
    return [chr(ord("A") + index) for index in range(len(choices))]


def choice_letter(solution: Any, choices: Any, keys: str | None) -> str | None:
    """The letter of the correct choice. None if there is no list of choices, or no choice matches the solution."""
    if not isinstance(choices, list) or not choices:
        return None
    text = as_text(solution).strip()
    position = -1
    if keys == "letter":
        if found := re.fullmatch(r"\(?([A-Za-z])\)?[.:]?", text):
            position = ord(found[1].upper()) - ord("A")
    elif keys == "text":
        texts = [_LETTERED.sub("", as_text(choice)).strip() for choice in choices]
        position = next((texts.index(one) for one in (text, _LETTERED.sub("", text).strip()) if one in texts), -1)
    elif re.fullmatch(r"\d{1,2}", text):
        position = int(text) - (keys == "from_1")
    return _letters(choices)[position] if 0 <= position < len(choices) else None


def list_choices(choices: Any) -> str:
    """The choices as lines of the prompt, lettered unless they have letters already."""
    if not isinstance(choices, list):
        return as_text(choices)
    texts, letters = [as_text(choice) for choice in choices], _letters(choices)
    if [text.strip() for text in texts] == letters:  # the image shows what the letters stand for
        return f"Choices: {', '.join(letters)}"
    return "\n".join(
        text if re.match(rf"\(?{letter}\s*[).:]", text) else f"{letter}. {text}"
        for letter, text in zip(letters, texts, strict=True)
    )


def find_choice_keys(
    problems: Sequence[tuple[Any, Any]],
    given: str | None,
    columns: tuple[str, str],
    name: str,
    notes: list[str] | None,
) -> str | None:
    """The form of a column's solutions, one of `CHOICE_KEYS`: the form that fits most rows.

    Args:
        problems: (solution, choices) of each row.
        given: The form that the user chose.
        columns: The columns of solutions and choices, for messages.
        name: The dataset, for messages.
        notes: Receives a line with the form.

    Returns:
        The form; None if no row has a list of choices.

    Raises:
        DatasetError: If two forms fit equally well and give different letters, or no row has choices.
    """
    if not any(choices for _, choices in problems):
        raise DatasetError(f"{name}: no row has choices in '{columns[1]}'; leave choices out of dataset_columns")
    listed = [(solution, choices) for solution, choices in problems if isinstance(choices, list) and choices]
    if not listed:
        return None
    letters = {keys: [choice_letter(solution, choices, keys) for solution, choices in listed] for keys in CHOICE_KEYS}
    counts = {keys: len(listed) - found.count(None) for keys, found in letters.items()}
    best = [given] if given else [keys for keys in CHOICE_KEYS if counts[keys] == max(counts.values())]
    for other in best[1:]:
        for (solution, choices), one, two in zip(listed, letters[best[0]], letters[other], strict=True):
            if one != two:
                raise DatasetError(
                    f"{name}: '{columns[0]}' is ambiguous: {solution!r} among {choices!r} is {one} by "
                    f"{CHOICE_KEYS[best[0]]} and {two} by {CHOICE_KEYS[other]}. Set --choice_keys to {best[0]} or "
                    f"{other}"
                )
    if notes is not None:
        unmatched, free = len(listed) - counts[best[0]], len(problems) - len(listed)
        other = f"; {unmatched} solutions match no choice and stay unchanged" if unmatched else ""
        rest = f"; {free} rows have no choices" if free else ""
        notes.append(f"{name}: '{columns[0]}' is parsed as {CHOICE_KEYS[best[0]]}{other}{rest}")
    return best[0]
