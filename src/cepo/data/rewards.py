"""Verifiers: `answer_reward`, and TRL's accuracy rewards with solutions and completions that they can read."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from ..references.equality import same_answer
from ..references.extraction import after_thinking, final_answer, reference_answer, text_of_completion

_TRL_MODULE = "trl.rewards.accuracy_rewards"
_READS_THINKING = "reasoning_accuracy_reward"


def answer_reward(
    completions: list[Any],
    solution: list[str],
    answer_extractor: str = "auto",
    **kwargs: Any,  # noqa: ARG001
) -> list[float | None]:
    """1.0 where a completion ends with the solution's answer, else 0.0: numbers, formulas, units, choices, words.

    A reward function in TRL's sense, and the default verifier. docs/graders.md measures it beside TRL's
    `accuracy_reward` and mathruler.

    Args:
        completions: Texts or conversations; of a conversation, the last assistant turn counts.
        solution: Answers, alone or as worked solutions; one without an answer gives no verdict (None).
        answer_extractor: See `final_answer`; the trainer passes its own option.
        kwargs: Other columns, which are not used.
    """
    found = [final_answer(text_of_completion(completion), answer_extractor) for completion in completions]
    references = [reference_answer(one, answer_extractor) for one in solution]
    return [
        (float(answer is not None and same_answer(answer, reference)) if reference else None)
        for answer, reference in zip(found, references, strict=True)
    ]


def compares_answers(function: Any) -> bool:
    """Whether a reward function is `answer_reward` or one of TRL's that compare with the `solution` column."""
    return function is answer_reward or _is_trl_accuracy(function)


def _is_trl_accuracy(function: Any) -> bool:
    return _TRL_MODULE in (getattr(function, "__module__", ""), type(function).__module__)


def prepared(function: Callable[..., Any], thinking: str = "", extractor: str = "auto") -> Callable[..., Any]:
    """A verifier that gets the final answer's turn, and, of TRL's, a solution in a box; other functions unchanged.

    TRL's `accuracy_reward` reads the first turn of a completion, a box within its thinking, and a solution such as
    ``5 \\sqrt { 7 }`` as the number 7.

    Args:
        function: A reward function as TRL calls it.
        thinking: The delimiter with which the prompt opens the thinking of every completion, if it does.
        extractor: How answers are found; see `final_answer`.
    """
    if not compares_answers(function):
        return function

    @functools.wraps(function, updated=())
    def judge(completions: list[Any], solution: list[str], **kwargs: Any) -> Any:
        texts = [thinking + text_of_completion(completion) for completion in completions]
        if getattr(function, "__name__", "") != _READS_THINKING:
            texts = [after_thinking(text) or "" for text in texts]
        if function is answer_reward:
            kwargs["answer_extractor"] = extractor
        else:
            solution = [boxed_reference(one, extractor) for one in solution]
        return function([[{"role": "assistant", "content": text}] for text in texts], solution, **kwargs)

    return judge


def boxed_reference(solution: str, extractor: str = "auto") -> str:
    """The answer of a solution as math-verify reads it whole."""
    return rf"\boxed{{{reference_answer(solution, extractor)}}}"


def unreadable_solutions(function: Any, solutions: Sequence[str], extractor: str = "auto") -> list[int]:
    """Positions of the solutions whose own answer, in a box, a verifier does not accept."""
    completions = [[{"role": "assistant", "content": boxed_reference(one, extractor)}] for one in solutions]
    references = [boxed_reference(one, extractor) for one in solutions]
    verdicts = prepared(function)(completions=completions, solution=references)
    return [place for place, verdict in enumerate(verdicts) if verdict is None or verdict <= 0]
