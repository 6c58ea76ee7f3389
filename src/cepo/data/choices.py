"""Multiple-choice problems: list the choices in the prompt, and turn solutions into letters."""

import re
from collections.abc import Sequence
from typing import Any

from .errors import DatasetError

# Forms of a solution among its choices.
CHOICE_KEYS = {
    "letter": "a letter",
    "text": "the text of a choice",
    "from_0": "a position from 0",
    "from_1": "a position from 1",
}
_LETTERED = re.compile(r"^\s*\(?[A-Z]\s?[).:]\s*")


def as_text(value: Any) -> str:
    """A value as text; whole numbers without a decimal point."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _letters(choices: Sequence[Any]) -> list[str]:
    return [chr(ord("A") + index) for index in range(len(choices))]


def choice_letter(solution: Any, choices: list[Any], keys: str, place: str) -> str:
    """The letter of the correct choice.

    Args:
        solution: The solution, of the form `keys` of `CHOICE_KEYS`.
        choices: The choices.
        keys: Form of the solution.
        place: Row and column, for errors.

    Raises:
        DatasetError: If the solution is none of the choices.
    """
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
    if not 0 <= position < len(choices):
        others = ", ".join(other for other in CHOICE_KEYS if other != keys)
        raise DatasetError(
            f"{place} is {solution!r}, which is not {CHOICE_KEYS[keys]} among {choices!r}. Set --choice_keys to one of "
            f"{others}, or drop the row"
        )
    return _letters(choices)[position]


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
