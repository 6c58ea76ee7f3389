"""Validate what reward functions return: one reward per completion, a finite number or None.

TRL accepts the rest silently: an infinite reward gives its whole group no advantage, or the largest float there is, and
a string or a tensor fails far from the function that returned it.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from numbers import Real
from typing import Any

import torch

from .rewards import prepared

_LARGEST = torch.finfo(torch.float32).max  # rewards are float32 in TRL


class RewardError(ValueError):
    """A reward function returned what is not a reward; the message names the function and the completion."""


def validated(
    function: Callable[..., Any], name: str, thinking: str = "", extractor: str = "auto"
) -> Callable[..., Any]:
    """A reward function, async or not, whose rewards pass `validate_rewards`; its own exceptions pass unchanged.

    Args:
        function: As TRL calls it, by keywords, `prompts` among them.
        name: For messages.
        thinking, extractor: See `prepared`.
    """
    function = prepared(function, thinking, extractor)

    @functools.wraps(function, updated=())
    def judge(*args: Any, **kwargs: Any) -> Any:
        return validate_rewards(name, function(*args, **kwargs), kwargs["prompts"])

    @functools.wraps(function, updated=())
    async def judge_async(*args: Any, **kwargs: Any) -> Any:
        return validate_rewards(name, await function(*args, **kwargs), kwargs["prompts"])

    chosen = judge_async if inspect.iscoroutinefunction(function) else judge
    chosen.__name__ = name
    return chosen


def validate_rewards(name: str, found: Any, prompts: Sequence[Any]) -> list[float | None]:
    """The rewards that a function returned, as floats; None and NaN are None, no verdict.

    Args:
        name: Of the function.
        found: What it returned: a list, a tensor, an array.
        prompts: Of the completions, in their order.

    Raises:
        RewardError: If the number of rewards is not the number of prompts, or one is not a number, or infinite.
    """
    values = found.tolist() if hasattr(found, "tolist") else found
    if isinstance(values, str | bytes | Mapping | Set) or not isinstance(values, Iterable):
        raise RewardError(
            f"the reward function {name!r} returned {_described(found)} for {len(prompts)} completions; it must return "
            "a list with one reward for each, a number or None"
        )
    values = list(values)
    if len(values) != len(prompts):
        raise RewardError(
            f"the reward function {name!r} returned {len(values)} rewards for {len(prompts)} completions; it must "
            "return one for each, a number or None"
        )
    return [_reward(name, value, place, prompts[place]) for place, value in enumerate(values)]


def refuse_infinite(rewards: torch.Tensor, names: Sequence[str]) -> None:
    """Refuse infinite rewards of reward models, whose output `validated` does not see.

    Args:
        rewards: (rollouts of all processes, functions).
        names: Of the functions.

    Raises:
        RewardError: Naming the function and the rollout.
    """
    for row, column in rewards.isinf().nonzero().tolist()[:1]:
        raise RewardError(f"the reward model {names[column]!r} gave rollout {row} of the batch {rewards[row, column]}")


def _reward(name: str, value: Any, place: int, prompt: Any) -> float | None:
    if value is None:
        return None
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()
    where = f"the reward function {name!r} returned {_described(value)} for completion {place} of its batch"
    if not isinstance(value, Real):
        raise RewardError(f"{where}; it must be a number or None")
    number = _number(value)
    if number != number:
        return None
    if abs(number) > _LARGEST:
        raise RewardError(
            f"{where} (prompt: {str(prompt)[:200]}); the mean of its group would be that too. Return a finite number, "
            "or None for no verdict"
        )
    return number


def _number(value: Real) -> float:
    try:
        return float(value)
    except OverflowError:  # of whole numbers
        return math.inf


def _described(value: Any) -> str:
    kind = type(value).__name__
    if shape := getattr(value, "shape", None):
        return f"a {kind} of shape {tuple(shape)}"
    return repr(value)[:80] if value is None or isinstance(value, Real) else f"{repr(value)[:80]} ({kind})"
