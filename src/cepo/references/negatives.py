"""References: the correct answer r+ and the incorrect answers r- of each rollout of a group."""

from collections.abc import Sequence
from typing import Literal, get_args

from .equality import accepted_by_any_grader, same_answer
from .extraction import reference_answer
from .groups import Fallback, References, Rollout

NegativeRule = Literal["lowest_reward", "most_common", "own", "mixture", "own_or_mixture"]
# Chosen by the measurements in experiments/credit.md; the paper's rule is lowest_reward.
DEFAULT_RULE: NegativeRule = "own_or_mixture"


def choose_references(
    rollouts: Sequence[Rollout],
    solution: str,
    *,
    rule: NegativeRule = DEFAULT_RULE,
    max_negatives: int = 2,
    extractor: str = "auto",
) -> list[References]:
    """The references of every rollout of a group (paper, algorithm step 2).

    An answer can be r- if the verifier rejected its rollout and no grader accepts it as r+. Spellings of one answer
    count as one answer. Ties go to the first rollout.

    Args:
        rollouts: The G rollouts of the group.
        solution: The `solution` of their prompt.
        rule: Source of r-: ``lowest_reward``, the rejected rollout with the lowest reward (the paper);
            ``most_common``, the most frequent incorrect answer; ``own``, a rejected rollout's own answer, and for the
            others the most frequent one; ``mixture``, the `max_negatives` most frequent incorrect answers;
            ``own_or_mixture``, a rejected rollout's own answer, and for the others the mixture.
        max_negatives: K, the maximum number of answers in a mixture.
        extractor: Extractor of the solution's answer; see `final_answer`.

    Raises:
        ValueError: If the rule is unknown or `max_negatives` is below 1.
    """
    if rule not in get_args(NegativeRule):
        raise ValueError(f"unknown negative_reference {rule!r}; choose one of {', '.join(get_args(NegativeRule))}")
    if max_negatives < 1:
        raise ValueError(f"max_negatives must be at least 1, got {max_negatives}")
    positive = reference_answer(solution, extractor)
    answers = [rollout.answer or "" for rollout in rollouts]

    rejected = [index for index, rollout in enumerate(rollouts) if rollout.correct is False]
    usable = [index for index in rejected if answers[index] and not accepted_by_any_grader(answers[index], positive)]
    if not usable:
        reason: Fallback = "no_incorrect_answer" if rejected else "no_rejected"
        return [References(positive, (), reason)] * len(rollouts)

    counts: dict[int, int] = {}  # the first rollout of each distinct answer -> number of rollouts
    for index in usable:
        first = next((known for known in counts if same_answer(answers[index], answers[known])), index)
        counts[first] = counts.get(first, 0) + 1
    ranked = sorted(counts, key=lambda index: -counts[index])
    lowest = min(usable, key=lambda index: rollouts[index].reward)

    def references(*sources: int, fallback: Fallback | None = None) -> References:
        return References(positive, tuple(answers[index] for index in sources), fallback, sources)

    def references_of(index: int) -> References:
        if rule == "lowest_reward":
            return references(lowest)
        if rule == "most_common":
            return references(ranked[0])
        if rule == "mixture":
            return references(*ranked[:max_negatives])
        if index not in rejected:
            return references(*ranked[:max_negatives]) if rule == "own_or_mixture" else references(ranked[0])
        return references(index) if index in usable else references(ranked[0], fallback="own_missing")

    return [references_of(index) for index in range(len(rollouts))]
