"""Hints: a reference answer at the end of the last user turn."""

import re
from typing import Any

from .groups import Messages

# The hint ends the last user turn: the prompt before it is a prefix that student and teachers share, and the assistant
# header after it is the chat template's. Hints with r+ and r- differ only in the answer.
DEFAULT_HINT_TEMPLATE = "\n\nThe correct answer is {answer}."

# Template for hints that contain a whole solution.
SOLUTION_HINT_TEMPLATE = "\n\nA reference solution:\n{answer}\n\nNow answer the question yourself."


# Inserted into special tokens in an answer, so that they are tokenized as text. A private-use character.
MARK = "\U000f0000"
_SPECIAL = re.compile(r"<[^<>\s]{1,40}>|\[/?[A-Z_]{2,20}\]")


def fill_hint(template: str, answer: str) -> str:
    """The hint with an answer.

    The answer is untrusted text: a `MARK` in each of its special tokens (``<|im_end|>``) makes `PromptEncoder` tokenize
    them as text. Special tokens of the template stay special.

    Raises:
        ValueError: If the template has no ``{answer}``.
    """
    require_placeholder(template)
    marked = _SPECIAL.sub(lambda found: found[0][0] + MARK + found[0][1:], answer)
    return template.replace("{answer}", marked)


def add_hint(messages: Messages, hint: str) -> Messages:
    """A copy of a conversation whose last user turn ends with a hint.

    Args:
        messages: Conversation in TRL's format; `content` is a string or a list of typed parts (text, image).
        hint: The hint, from `fill_hint`.

    Raises:
        ValueError: If there is no user turn.
    """
    for position in reversed(range(len(messages))):
        message = messages[position]
        if message["role"] != "user":
            continue
        content = message["content"]
        hinted = content + hint if isinstance(content, str) else _in_last_text(content, hint)
        return [*messages[:position], {**message, "content": hinted}, *messages[position + 1 :]]
    raise ValueError("a hint is added to the last user turn, and this conversation has no user turn")


def _in_last_text(parts: list[dict[str, Any]], hint: str) -> list[dict[str, Any]]:
    """Typed parts whose last text ends with a hint. Some templates trim each part, so a separate part would lose its
    leading newlines; only where there is no text, the hint becomes a part.
    """
    for position in reversed(range(len(parts))):
        if parts[position]["type"] == "text":
            longer = {**parts[position], "text": f"{parts[position]['text'] or ''}{hint}"}
            return [*parts[:position], longer, *parts[position + 1 :]]
    return [*parts, {"type": "text", "text": hint}]


def require_placeholder(template: str) -> None:
    """Check that a hint template has a place for the answer.

    Raises:
        ValueError: If the template has no ``{answer}``.
    """
    if "{answer}" not in template:
        raise ValueError(f"hint_template must contain the placeholder {{answer}}, got {template!r}")
