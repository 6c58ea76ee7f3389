"""Putting a reference answer into a prompt: what a teacher reads that the student did not."""

from typing import Any

from .groups import Messages

# The hint closes the last user turn: the prompt before it stays a prefix that student and teachers share, and the
# assistant header after it stays the chat template's own. r+ and r- are worded alike, so that only the answer differs.
DEFAULT_HINT_TEMPLATE = "\n\nThe correct answer is {answer}."

# Wordings for hints that carry a whole solution.
SOLUTION_HINT_TEMPLATE = "\n\nA reference solution:\n{answer}\n\nNow answer the question yourself."


def fill_hint(template: str, answer: str) -> str:
    """The hint that tells an answer.

    Raises:
        ValueError: If the template has no ``{answer}``.
    """
    require_placeholder(template)
    return template.replace("{answer}", answer)


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
