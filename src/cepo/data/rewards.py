"""Reward functions: `answer_reward`, TRL's accuracy rewards adapted to solutions of any form, and loading by name."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..references.equality import same_answer
from ..references.extraction import after_thinking, final_answer, reference_answer, text_of_completion
from ..references.importing import imported
from .errors import LoadingError

_TRL_MODULE = "trl.rewards.accuracy_rewards"
_PARSES_THINKING = "reasoning_accuracy_reward"


def answer_reward(
    completions: list[Any],
    solution: list[str],
    answer_extractor: str = "auto",
    **kwargs: Any,  # noqa: ARG001
) -> list[float | None]:
    """1.0 if a completion's final answer equals the solution's answer, else 0.0: numbers, formulas, units, choices,
    words.

    A reward function in TRL's sense, and the default verifier. docs/graders.md compares it with TRL's
    `accuracy_reward` and mathruler.

    Args:
        completions: Texts or conversations. Of a conversation, the last assistant turn counts.
        solution: Answers, alone or at the end of worked solutions. A solution without an answer gives None.
        answer_extractor: See `final_answer`. The trainer passes its option.
        kwargs: Other columns; ignored.
    """
    found = [final_answer(text_of_completion(completion), answer_extractor) for completion in completions]
    references = [reference_answer(one, answer_extractor) for one in solution]
    return [
        (float(answer is not None and same_answer(answer, reference)) if reference else None)
        for answer, reference in zip(found, references, strict=True)
    ]


def load_reward_funcs(names: list[str]) -> list[Any]:
    """Load reward functions: `answer_reward`, those of `trl.rewards` by their name, others by their import path."""
    from trl import rewards as trl_rewards

    known = {name: getattr(trl_rewards, name) for name in dir(trl_rewards) if name.endswith("_reward")}
    known = {name: function for name, function in known.items() if not name.startswith("get_")}
    known["answer_reward"] = answer_reward
    functions = []
    for name in names:
        if "." not in name and name not in known:
            raise LoadingError(
                f"reward_funcs: there is no {name!r}; choose one of {', '.join(known)}, or give module.function"
            )
        functions.append(known[name] if name in known else imported("reward_funcs", name))
    return functions


def need_solutions(functions: Iterable[Any]) -> bool:
    """Whether one of the reward functions is known to compare with the `solution` column."""
    return any(map(compares_answers, functions))


def compares_answers(function: Any) -> bool:
    """Whether a reward function is `answer_reward` or one of TRL's that compare with the `solution` column."""
    return function is answer_reward or _TRL_MODULE in (getattr(function, "__module__", ""), type(function).__module__)


def prepared(function: Callable[..., Any], thinking: str = "", extractor: str = "auto") -> Callable[..., Any]:
    """Wrap a verifier so that it gets the final answer's turn, and TRL's so that it gets the boxed answer as solution.

    TRL's `accuracy_reward` parses the first turn of a completion, including boxes in its thinking, and parses a
    solution such as ``5 \\sqrt { 7 }`` as the number 7. Other functions are returned unchanged.

    Args:
        function: A reward function as TRL calls it.
        thinking: The delimiter with which the prompt opens the thinking of every completion, if it does.
        extractor: See `final_answer`.
    """
    if not compares_answers(function):
        return function

    @functools.wraps(function, updated=())
    def judge(completions: list[Any], solution: list[str], **kwargs: Any) -> Any:
        texts = [thinking + text_of_completion(completion) for completion in completions]
        if getattr(function, "__name__", "") != _PARSES_THINKING:
            texts = [after_thinking(text) or "" for text in texts]
        if function is answer_reward:
            kwargs["answer_extractor"] = extractor
        else:
            solution = [_boxed(one, extractor) for one in solution]
        return function([[{"role": "assistant", "content": text}] for text in texts], solution, **kwargs)

    return judge


def _boxed(solution: str, extractor: str) -> str:
    """The answer of a solution in a box, which math-verify parses as a whole."""
    return rf"\boxed{{{reference_answer(solution, extractor)}}}"


def unreadable_solutions(function: Any, solutions: Sequence[str], extractor: str = "auto") -> list[int]:
    """Positions of the solutions whose answer, given as a completion, gets no reward from a verifier."""
    references = [_boxed(one, extractor) for one in solutions]
    completions = [[{"role": "assistant", "content": reference}] for reference in references]
    verdicts = prepared(function)(completions=completions, solution=references)
    return [index for index, verdict in enumerate(verdicts) if verdict is None or verdict <= 0]
