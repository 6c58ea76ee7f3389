"""What a hint carries: an answer, or more of the text that led to it (the paper's ablations, OPSD, SDPO)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .equality import same_answer
from .groups import Attempt, References

PositiveContent = Literal["answer", "solution", "rollout"]
NegativeContent = Literal["answer", "rollout"]
Part = Literal["whole", "prefix", "suffix"]


@dataclass(frozen=True)
class HintContent:
    """What teachers are told.

    Attributes:
        positive: ``answer``, r+; ``solution``, the `solution` column as it is; ``rollout``, a right rollout of the
            group other than the one that is read.
        negative: ``answer``, r-; ``rollout``, the rejected rollout that r- comes from, or, where that is the one that
            is read, another that ends in the same answer. Another has another text: a teacher that is told a text finds
            all of it likely.
        positive_part, negative_part: Of a solution or a rollout on that side: the ``whole``, or a ``prefix`` or
            ``suffix``.
        tokens: Length of a prefix or suffix.
    """

    positive: PositiveContent = "answer"
    negative: NegativeContent = "answer"
    positive_part: Part = "whole"
    negative_part: Part = "whole"
    tokens: int = 64


def with_contents(
    references: Sequence[References],
    attempts: Sequence[Attempt],
    solution: str,
    content: HintContent,
    cut: Callable[[str, Part, int], str],
    same: Callable[[str, str], bool] = same_answer,
) -> list[References]:
    """The references of a group with the texts that teachers are told in place of the answers.

    Where another rollout is wanted and there is none, the answer stays, and the fallback is ``no_correct_rollout`` or
    ``no_incorrect_rollout``.

    Args:
        references: Of each rollout of the group.
        attempts: Its rollouts.
        solution: The `solution` of its prompt.
        content: What to tell.
        cut: Cuts a text to its first or last tokens.
        same: Tells whether two answers are the same.
    """

    def part_of(text: str, part: Part) -> str:
        return text if part == "whole" else cut(text, part, content.tokens)

    def other_with_answer_of(source: int) -> int | None:
        text, answer = attempts[source].text, attempts[source].answer or ""
        for place, attempt in enumerate(attempts):
            if attempt.text != text and attempt.correct is False and attempt.answer and same(attempt.answer, answer):
                return place
        return None

    right = [place for place, attempt in enumerate(attempts) if attempt.correct]
    filled = []
    for place, one in enumerate(references):
        changed, own = one, attempts[place].text
        if content.positive == "solution":
            changed = replace(changed, positive=part_of(solution, content.positive_part))
        elif content.positive == "rollout":
            other = next((candidate for candidate in right if attempts[candidate].text != own), None)
            if other is None:
                changed = replace(changed, fallback="no_correct_rollout")
            else:
                changed = replace(changed, positive=part_of(attempts[other].text, content.positive_part))
        if content.negative == "rollout":
            sources = [other_with_answer_of(s) if attempts[s].text == own else s for s in one.sources]
            texts = tuple(
                answer if source is None else part_of(attempts[source].text, content.negative_part)
                for source, answer in zip(sources, one.negatives, strict=True)
            )
            changed = replace(changed, negatives=texts)
            if None in sources and changed.fallback is None:
                changed = replace(changed, fallback="no_incorrect_rollout")
        filled.append(changed)
    return filled
