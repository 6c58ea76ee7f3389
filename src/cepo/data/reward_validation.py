"""Validate the outputs of reward functions: one reward per completion, a finite number or None.

TRL does not check them. An infinite reward makes the advantages of its group NaN or zero, and a string or a tensor
fails far from the function that returned it.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from numbers import Real
from typing import Any

import torch

from .rewards import prepared

_LARGEST = torch.finfo(torch.float32).max  # TRL's rewards are float32


class RewardError(ValueError):
    """An invalid output of a reward function. The message names the function and the completion."""


def validated(
    function: Callable[..., Any], name: str, thinking: str = "", extractor: str = "auto"
) -> Callable[..., Any]:
    """Wrap a reward function, async or not, so that its output passes `validate_rewards`.

    Args:
        function: A reward function as TRL calls it, with keyword arguments.
        name: The function's name in messages.
        thinking, extractor: See `prepared`.
    """
    function = prepared(function, thinking, extractor)

    @functools.wraps(function, updated=())
    def judge(*args: Any, **kwargs: Any) -> Any:
        return validate_rewards(name, function(*args, **kwargs), kwargs["prompts"])

    @functools.wraps(function, updated=())
    async def judge_async(*args: Any, **kwargs: Any) -> Any:
        return validate_rewards(name, await function(*args, **kwargs), kwargs["prompts"])

    wrapped = judge_async if inspect.iscoroutinefunction(function) else judge
    wrapped.__name__ = name
    return wrapped


def validate_rewards(name: str, output: Any, prompts: Sequence[Any]) -> list[float | None]:
    """The rewards in a function's output, as floats. None and NaN, the missing verdicts, become None.

    Args:
        name: The function's name.
        output: A list, tensor or array.
        prompts: The prompts of the completions, in their order.

    Raises:
        RewardError: If there is not one reward per completion, or a reward is not a number, or infinite.
    """
    values = output.tolist() if hasattr(output, "tolist") else output
    if isinstance(values, str | bytes | Mapping | Set) or not isinstance(values, Iterable):
        raise RewardError(
            f"the reward function {name!r} returned {_described(output)} for {len(prompts)} completions; it must "
            "return a list with one reward for each, a number or None"
        )
    values = list(values)
    if len(values) != len(prompts):
        raise RewardError(
            f"the reward function {name!r} returned {len(values)} rewards for {len(prompts)} completions; it must "
            "return one for each, a number or None"
        )
    return [_reward(name, value, index, prompts[index]) for index, value in enumerate(values)]


def refuse_infinite(rewards: torch.Tensor, names: Sequence[str]) -> None:
    """Refuse infinite rewards of reward models, which TRL calls without `validated`."""
    for row, column in rewards.isinf().nonzero().tolist()[:1]:
        raise RewardError(f"the reward model {names[column]!r} gave rollout {row} of the batch {rewards[row, column]}")


def _reward(name: str, value: Any, index: int, prompt: Any) -> float | None:
    if getattr(value, "shape", None) == ():
        value = value.item()
    where = f"the reward function {name!r} returned {_described(value)} for completion {index} of its batch"
    is_number = isinstance(value, Real)
    if value is not None and not is_number:
        raise RewardError(f"{where}; it must be a number or None")
    if value is None or value != value:
        return None
    if abs(value) > _LARGEST:
        raise RewardError(
            f"{where} (prompt: {str(prompt)[:200]}); the mean of its group would be infinite. Return a finite "
            "number, or None for no verdict"
        )
    return float(value)


def _described(value: Any) -> str:
    kind = type(value).__name__
    if shape := getattr(value, "shape", None):
        return f"a {kind} of shape {tuple(shape)}"
    return repr(value)[:80] if value is None or isinstance(value, Real) else f"{repr(value)[:80]} ({kind})"
