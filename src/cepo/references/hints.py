"""Putting a reference answer into a prompt: what a teacher reads that the student did not."""

from typing import Any

# The hint closes the last user turn: the prompt before it stays a prefix that student and teachers share, and the
# assistant header after it stays the chat template's own. r+ and r- are worded alike, so that only the answer differs.
DEFAULT_HINT_TEMPLATE = "\n\nThe correct answer is {answer}."

# Wordings for hints that carry a whole solution.
SOLUTION_HINT_TEMPLATE = "\n\nA reference solution:\n{answer}\n\nNow answer the question yourself."

Messages = list[dict[str, Any]]


def add_hint(messages: Messages, answer: str, template: str = DEFAULT_HINT_TEMPLATE) -> Messages:
    """A copy of a conversation whose last user turn ends with the hint.

    Args:
        messages: Conversation in TRL's format; `content` is a string or a list of typed parts (text, image).
        answer: The reference answer, r+ or r-.
        template: Text with the placeholder ``{answer}``.

    Raises:
        ValueError: If there is no user turn, or the template has no ``{answer}``.
    """
    require_placeholder(template)
    hint = template.replace("{answer}", answer)
    for position in reversed(range(len(messages))):
        message = messages[position]
        if message["role"] != "user":
            continue
        content = message["content"]
        hinted = content + hint if isinstance(content, str) else [*content, {"type": "text", "text": hint}]
        return [*messages[:position], {**message, "content": hinted}, *messages[position + 1 :]]
    raise ValueError("a hint needs a user turn to stand in, and this conversation has none")


def require_placeholder(template: str) -> None:
    """Refuse a hint template that could not tell r+ from r-.

    Raises:
        ValueError: If the template has no ``{answer}``.
    """
    if "{answer}" not in template:
        raise ValueError(f"hint_template must contain the placeholder {{answer}}, got {template!r}")
