"""References: the right answer r+ and the wrong answers r- of each rollout of a group."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from .answers import reference_answer, same_answer

NegativeRule = Literal["lowest_reward", "most_common", "own", "mixture", "own_or_mixture"]
# By the measurements in docs/credit.md; the paper's is lowest_reward.
DEFAULT_RULE: NegativeRule = "own_or_mixture"

# Why a rollout does not get the r- that its rule asks for.
Fallback = Literal[
    "no_rejected",  # the verifier rejected no rollout of the group
    "no_wrong_answer",  # it rejected some, but none of them gives an answer that differs from r+
    "own_missing",  # a rejected rollout without an answer of its own; it gets the group's most common wrong answer
]


@dataclass(frozen=True)
class Attempt:
    """What the references need to know of one rollout.

    Attributes:
        answer: Its final answer, None if it announces none.
        reward: Its total reward.
        correct: The verifier's word; None where the verifier gives none.
    """

    answer: str | None
    reward: float
    correct: bool | None


@dataclass(frozen=True)
class References:
    """The references of one rollout.

    Attributes:
        positive: r+, the right answer.
        negatives: The wrong answers whose mean probability is P_T-; empty if the group has none.
        fallback: Why the rule could not be followed, None if it was.
    """

    positive: str
    negatives: tuple[str, ...]
    fallback: Fallback | None = None


def choose_references(
    attempts: Sequence[Attempt],
    solution: str,
    *,
    rule: NegativeRule = DEFAULT_RULE,
    max_negatives: int = 4,
    same: Callable[[str, str], bool] = same_answer,
) -> list[References]:
    """The references of every rollout of a group (paper, algorithm step 2).

    Only the answer of a rollout that the verifier rejected can be r-; an answer that equals r+ or was not announced
    cannot. Spellings of one answer count as one. Ties go to the rollout that comes first.

    Args:
        attempts: The G rollouts of the group.
        solution: The `solution` of their prompt.
        rule: Where r- comes from: ``lowest_reward``, the rejected rollout with the lowest reward (the paper);
            ``most_common``, the most frequent wrong answer; ``own``, a rejected rollout's own answer and the most
            frequent one for the others; ``mixture``, all distinct wrong answers, the most frequent ones first, up to
            `max_negatives`; ``own_or_mixture``, own on rejected rollouts and the mixture on the others.
        max_negatives: K, the most negatives of a mixture.
        same: Tells whether two answers are the same.

    Raises:
        ValueError: If the rule is unknown or `max_negatives` is below 1.
    """
    if rule not in get_args(NegativeRule):
        raise ValueError(f"unknown negative_reference {rule!r}; choose one of {', '.join(get_args(NegativeRule))}")
    if max_negatives < 1:
        raise ValueError(f"max_negatives must be at least 1, got {max_negatives}")
    positive = reference_answer(solution)

    rejected = [attempt for attempt in attempts if attempt.correct is False]
    usable = [attempt for attempt in rejected if attempt.answer and not same(attempt.answer, positive)]
    if not usable:
        reason: Fallback = "no_wrong_answer" if rejected else "no_rejected"
        return [References(positive, (), reason)] * len(attempts)

    ranked = _by_frequency([attempt.answer for attempt in usable if attempt.answer], same)
    lowest = min(usable, key=lambda attempt: attempt.reward).answer
    mixture = tuple(ranked[:max_negatives])

    def for_attempt(attempt: Attempt) -> References:
        if rule == "lowest_reward":
            return References(positive, (lowest,)) if lowest else References(positive, ())
        if rule == "most_common":
            return References(positive, (ranked[0],))
        if rule == "mixture":
            return References(positive, mixture)
        if attempt.correct is not False:
            return References(positive, mixture if rule == "own_or_mixture" else (ranked[0],))
        if attempt in usable and attempt.answer:
            return References(positive, (attempt.answer,))
        return References(positive, (ranked[0],), "own_missing")

    return [for_attempt(attempt) for attempt in attempts]


def _by_frequency(answers: list[str], same: Callable[[str, str], bool]) -> list[str]:
    """The distinct answers, the most frequent first, each in its first spelling."""
    spellings: list[str] = []
    counts: list[int] = []
    for answer in answers:
        for position, spelling in enumerate(spellings):
            if same(answer, spelling):
                counts[position] += 1
                break
        else:
            spellings.append(answer)
            counts.append(1)
    order = sorted(range(len(spellings)), key=lambda position: -counts[position])
    return [spellings[position] for position in order]
