"""Hint content: an answer, or more of the text that led to it (the paper's ablations, OPSD, SDPO)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .equality import same_answer
from .groups import References, Rollout

PositiveContent = Literal["answer", "solution", "rollout"]
NegativeContent = Literal["answer", "rollout"]
Part = Literal["whole", "prefix", "suffix"]


@dataclass(frozen=True)
class HintContent:
    """What the hints contain.

    Attributes:
        positive: ``answer``, r+; ``solution``, the `solution` column; ``rollout``, another correct rollout of the
            group.
        negative: ``answer``, r-; ``rollout``, the rejected rollout with the answer r-. For that rollout itself, another
            rollout with this answer and another text: a teacher conditioned on the text that it scores gives every
            token a high probability.
        positive_part, negative_part: Part of a solution or rollout: ``whole``, ``prefix`` or ``suffix``.
        tokens: Length of a prefix or suffix [tokens].
    """

    positive: PositiveContent = "answer"
    negative: NegativeContent = "answer"
    positive_part: Part = "whole"
    negative_part: Part = "whole"
    tokens: int = 64


def with_contents(
    references: Sequence[References],
    rollouts: Sequence[Rollout],
    solution: str,
    content: HintContent,
    cut: Callable[[str, Part, int], str],
) -> list[References]:
    """Replace the answers in a group's references by the texts that the hints contain.

    If the group lacks the other rollout that a hint needs, the hint has the answer, and the fallback is
    ``no_correct_rollout`` or ``no_incorrect_rollout``.

    Args:
        references: References of each rollout of the group.
        rollouts: The rollouts of the group.
        solution: The `solution` of its prompt.
        content: What the hints contain.
        cut: Cuts a text to its first or last tokens.
    """

    def part_of(text: str, part: Part) -> str:
        return text if part == "whole" else cut(text, part, content.tokens)

    def with_positive(one: References, text: str) -> References:
        if content.positive == "answer":
            return one
        source: str | None = solution
        if content.positive == "rollout":
            source = next((other.text for other in rollouts if other.correct and other.text != text), None)
        if source is None:
            return replace(one, fallback="no_correct_rollout")
        return replace(one, positive=part_of(source, content.positive_part))

    def source_text(index: int, text: str) -> str | None:
        """The text of the rollout at `index`, or of another one with its answer if its text is `text`."""
        source = rollouts[index]
        if source.text != text:
            return source.text
        alike = (
            other.text
            for other in rollouts
            if other.text != text and other.correct is False and other.answer
            if same_answer(other.answer, source.answer or "")
        )
        return next(alike, None)

    def with_negatives(one: References, text: str) -> References:
        if content.negative == "answer":
            return one
        sources = [source_text(index, text) for index in one.sources]
        texts = tuple(
            answer if source is None else part_of(source, content.negative_part)
            for source, answer in zip(sources, one.negatives, strict=True)
        )
        fallback = one.fallback or ("no_incorrect_rollout" if None in sources else None)
        return replace(one, negatives=texts, fallback=fallback)

    return [
        with_negatives(with_positive(one, rollout.text), rollout.text)
        for one, rollout in zip(references, rollouts, strict=True)
    ]
