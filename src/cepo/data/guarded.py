"""Reward functions whose word is looked at: one reward for each completion, a finite number or None.

What TRL makes of the rest is silent: an infinite reward gives its whole group no advantage, or the largest float there
is, and a string or a tensor fails far from the function that returned it.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch

from ..methods.faults import file_of, plain, raised
from .rewards import prepared

_LARGEST = torch.finfo(torch.float32).max  # rewards are float32 in TRL


class RewardError(ValueError):
    """A reward function failed, or returned what is no reward; the message names it."""


def guarded(function: Callable[..., Any], name: str, thinking: str = "", extractor: str = "auto") -> Callable[..., Any]:
    """A reward function, async or not, that raises nothing but `RewardError` and returns what `rewards_of` lets pass.

    Args:
        function: As TRL calls it, by keywords, `prompts` among them.
        name: For messages.
        thinking, extractor: See `prepared`.
    """
    function = prepared(function, thinking, extractor)

    @functools.wraps(function, updated=())
    def judge(*args: Any, **kwargs: Any) -> Any:
        with _named(name, function):
            return rewards_of(name, function(*args, **kwargs), kwargs["prompts"])

    @functools.wraps(function, updated=())
    async def judge_later(*args: Any, **kwargs: Any) -> Any:
        with _named(name, function):
            return rewards_of(name, await function(*args, **kwargs), kwargs["prompts"])

    chosen = judge_later if _is_async(function) else judge
    chosen.__name__ = name
    return chosen


def rewards_of(name: str, found: Any, prompts: Sequence[Any]) -> list[float | None]:
    """What a reward function returned, as numbers; None where it has no verdict, for which NaN stands too.

    Args:
        name: Of the function.
        found: What it returned: a list, a tensor, an array.
        prompts: Of the completions, in their order.

    Raises:
        RewardError: If it is another number of rewards, or one of them is no number, or infinite.
    """
    values = found.tolist() if hasattr(found, "tolist") else found
    if isinstance(values, str | bytes | Mapping | Set) or not isinstance(values, Iterable):
        raise RewardError(
            f"the reward function {name!r} returned {_described(found)} for {len(prompts)} completions; a list with "
            "one reward for each is wanted, a number or None"
        )
    values = list(values)
    if len(values) != len(prompts):
        raise RewardError(
            f"the reward function {name!r} returned {len(values)} rewards for {len(prompts)} completions; one is "
            "wanted for each, a number or None"
        )
    return [_reward(name, value, place, prompts[place]) for place, value in enumerate(values)]


def refuse_infinite(rewards: torch.Tensor, names: Sequence[str]) -> None:
    """Refuse infinite rewards of reward models, which nobody looks at before.

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
        raise RewardError(f"{where}; a number or None is wanted")
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


@contextmanager
def _named(name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Whatever a reward function raises says whose it is; what does so already stays."""
    try:
        yield
    except RewardError:
        raise
    except Exception as error:
        raise _failure(name, function, error) from error


def _failure(name: str, function: Callable[..., Any], error: Exception) -> RewardError:
    said, entered = raised(error, file_of(function), __file__)
    text = f"the reward function {name!r} {said}"
    if isinstance(error, TypeError) and not entered:
        if "required" in str(error):
            text += "; what TRL does not give it comes from the data set, which has no such column"
        else:
            text += "; it is called with prompts, completions, completion_ids, the columns and more, so it has to take "
            text += "**kwargs"
    return RewardError(text)


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(plain(function))
