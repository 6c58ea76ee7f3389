"""References: the right answer r+ and the wrong answers r- of each rollout of a group."""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

from .equality import accepted_by_any_grader, same_answer
from .extraction import reference_answer
from .groups import Attempt, Fallback, References

NegativeRule = Literal["lowest_reward", "most_common", "own", "mixture", "own_or_mixture"]
# By the measurements in experiments/credit.md; the paper's is lowest_reward.
DEFAULT_RULE: NegativeRule = "own_or_mixture"


def choose_references(
    attempts: Sequence[Attempt],
    solution: str,
    *,
    rule: NegativeRule = DEFAULT_RULE,
    max_negatives: int = 4,
    extractor: str = "auto",
    same: Callable[[str, str], bool] = same_answer,
    accepted: Callable[[str, str], bool] = accepted_by_any_grader,
) -> list[References]:
    """The references of every rollout of a group (paper, algorithm step 2).

    Only the answer of a rollout that the verifier rejected can be r-; an answer that any grader takes for r+, or that
    was not announced, cannot. Spellings of one answer count as one. Ties go to the rollout that comes first.

    Args:
        attempts: The G rollouts of the group.
        solution: The `solution` of their prompt.
        rule: Where r- comes from: ``lowest_reward``, the rejected rollout with the lowest reward (the paper);
            ``most_common``, the most frequent wrong answer; ``own``, a rejected rollout's own answer and the most
            frequent one for the others; ``mixture``, all distinct wrong answers, the most frequent ones first, up to
            `max_negatives`; ``own_or_mixture``, own on rejected rollouts and the mixture on the others.
        max_negatives: K, the most negatives of a mixture.
        extractor: How the solution's answer is read; see `final_answer`.
        same: Tells whether two answers are the same.
        accepted: Tells whether an answer may be the correct one after all, so that it cannot be r-.

    Raises:
        ValueError: If the rule is unknown or `max_negatives` is below 1.
    """
    if rule not in get_args(NegativeRule):
        raise ValueError(f"unknown negative_reference {rule!r}; choose one of {', '.join(get_args(NegativeRule))}")
    if max_negatives < 1:
        raise ValueError(f"max_negatives must be at least 1, got {max_negatives}")
    positive = reference_answer(solution, extractor)

    rejected = [place for place, attempt in enumerate(attempts) if attempt.correct is False]
    usable = [place for place in rejected if (answer := attempts[place].answer) and not accepted(answer, positive)]
    if not usable:
        reason: Fallback = "no_incorrect_answer" if rejected else "no_rejected"
        return [References(positive, (), reason)] * len(attempts)

    ranked = _by_frequency(usable, lambda one, other: same(attempts[one].answer or "", attempts[other].answer or ""))
    lowest = min(usable, key=lambda place: attempts[place].reward)

    def references(*places: int, fallback: Fallback | None = None) -> References:
        return References(positive, tuple(attempts[place].answer or "" for place in places), fallback, places)

    def for_attempt(place: int) -> References:
        if rule == "lowest_reward":
            return references(lowest)
        if rule == "most_common":
            return references(ranked[0])
        if rule == "mixture":
            return references(*ranked[:max_negatives])
        if place not in rejected:
            return references(*ranked[:max_negatives]) if rule == "own_or_mixture" else references(ranked[0])
        return references(place) if place in usable else references(ranked[0], fallback="own_missing")

    return [for_attempt(place) for place in range(len(attempts))]


def _by_frequency(places: list[int], same: Callable[[int, int], bool]) -> list[int]:
    """The first place of each distinct answer, the most frequent answer first."""
    counts: dict[int, int] = {}
    for place in places:
        first = next((known for known in counts if same(place, known)), place)
        counts[first] = counts.get(first, 0) + 1
    return sorted(counts, key=lambda place: -counts[place])
