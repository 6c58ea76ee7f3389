"""A verifier for this task alone: the verdicts of TRL's `accuracy_reward` on answers as the policy writes them, without
its parser, which takes as long as sampling does."""

import re
from typing import Any

_BOX = re.compile(r"\\boxed\{([^{}]*)\}")


def figures_reward(completions: list[list[dict[str, Any]]], solution: list[str], **kwargs: Any) -> list[float]:
    r"""1 if a completion says ``\boxed{(62, 75, 43)}`` with the angles of the solution, and no other box, else 0.

    A reward function in TRL's sense: ``reward_funcs: cepo.tasks.figures.figures_reward``.

    Args:
        completions: One conversation each.
        solution: The dataset's column.
        kwargs: Further columns; not used.
    """
    del kwargs
    return [
        float(_boxes(completion[-1]["content"]) == _boxes(right))
        for completion, right in zip(completions, solution, strict=True)
    ]


def _boxes(text: str) -> set[str]:
    return {box.replace(" ", "") for box in _BOX.findall(text)}
