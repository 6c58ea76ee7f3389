"""A verifier for any kind of answer: it reads completions and solutions as the references are read."""

from typing import Any

from ..references.answers import final_answer, reference_answer, same_answer, text_of_completion


def answer_reward(completions: list[Any], solution: list[str], **kwargs: Any) -> list[float]:  # noqa: ARG001
    """1.0 where a completion ends with the solution's answer, else 0.0: numbers, formulas, letters, words, dates.

    As TRL's reward functions are called. TRL's `accuracy_reward` judges mathematics alone, and returns None for a
    solution such as ``A``.

    Args:
        completions: Texts or conversations.
        solution: Answers, alone or as worked solutions.
        kwargs: Other columns, which it does not read.
    """
    found = [final_answer(text_of_completion(completion)) for completion in completions]
    return [
        float(answer is not None and same_answer(answer, reference_answer(right)))
        for answer, right in zip(found, solution, strict=True)
    ]
