"""A fast verifier for the figures task, with the verdicts of TRL's `accuracy_reward`."""

import re
from typing import Any

_BOX = re.compile(r"\\boxed\{([^{}]*)\}")


def figures_reward(completions: list[list[dict[str, Any]]], solution: list[str], **kwargs: Any) -> list[float]:  # noqa: ARG001
    r"""1 if the boxes of a completion, such as ``\boxed{(62, 75, 43)}``, are those of the solution, else 0.

    A reward function in TRL's sense: ``reward_funcs: cepo.tasks.figures.figures_reward``.
    """
    return [
        float(_boxes(completion[-1]["content"]) == _boxes(correct))
        for completion, correct in zip(completions, solution, strict=True)
    ]


def _boxes(text: str) -> set[str]:
    return {box.replace(" ", "") for box in _BOX.findall(text)}
