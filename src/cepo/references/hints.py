"""Putting a reference answer into a prompt: what a teacher reads that the student did not."""

import re
from typing import Any

from .groups import Messages

# The hint closes the last user turn: the prompt before it stays a prefix that student and teachers share, and the
# assistant header after it stays the chat template's own. r+ and r- are worded alike, so that only the answer differs.
DEFAULT_HINT_TEMPLATE = "\n\nThe correct answer is {answer}."

# Wordings for hints that carry a whole solution.
SOLUTION_HINT_TEMPLATE = "\n\nA reference solution:\n{answer}\n\nNow answer the question yourself."


# Stands within what may be a special token of some tokenizer, in an answer: there it is text. A private character, of
# which no text makes use.
MARK = "\U000f0000"
_SPECIAL = re.compile(r"<[^<>\s]{1,40}>|\[/?[A-Z_]{2,20}\]")


def fill_hint(template: str, answer: str) -> str:
    """The hint that carries an answer.

    An answer is untrusted text: a special token in it (``<|im_end|>``) gets a `MARK`, so that `PromptEncoder` tokenises
    it as text. Special tokens of the template stay special.

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
        hint: As `fill_hint` makes it.

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
    raise ValueError("a hint needs a user turn to stand in, and this conversation has none")


def _in_last_text(parts: list[dict[str, Any]], hint: str) -> list[dict[str, Any]]:
    """Typed parts whose last text ends with a hint; where there is no text, the hint is the first.

    Some templates trim each part, and would glue a part of its own onto the one before.
    """
    for place in reversed(range(len(parts))):
        if parts[place]["type"] == "text":
            longer = {**parts[place], "text": f"{parts[place]['text'] or ''}{hint}"}
            return [*parts[:place], longer, *parts[place + 1 :]]
    return [*parts, {"type": "text", "text": hint}]


def require_placeholder(template: str) -> None:
    """Refuse a hint template that could not tell r+ from r-.

    Raises:
        ValueError: If the template has no ``{answer}``.
    """
    if "{answer}" not in template:
        raise ValueError(f"hint_template must contain the placeholder {{answer}}, got {template!r}")
