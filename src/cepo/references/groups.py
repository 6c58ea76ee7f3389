"""The data of a group: what was sampled for one prompt, what became of it, and what teachers are to be told.

Dimensions: G rollouts of a group, T completion tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Ids = tuple[int, ...]
Messages = list[dict[str, Any]]

# Why a rollout does not get the references that its method asks for.
Fallback = Literal[
    "no_rejected",  # the verifier rejected no rollout of the group
    "no_incorrect_answer",  # it rejected some, but none of them gives an answer that differs from r+
    "own_missing",  # a rejected rollout without an answer of its own; it gets the group's most common wrong answer
    "no_correct_rollout",  # the teacher is to be told another right rollout, and there is none
    "no_incorrect_rollout",  # it is to be told another rejected rollout with this answer, and there is none
]


@dataclass(frozen=True)
class Attempt:
    """What the verifier and the references know of one rollout.

    Attributes:
        answer: Its final answer, None if it announces none.
        reward: Its total reward.
        correct: The verifier's word; None where the verifier gives none.
        text: All of it, for hints that carry more than an answer.
        first_error: How many of its tokens come before its first error, where a reward function says so.
    """

    answer: str | None
    reward: float
    correct: bool | None
    text: str = ""
    first_error: int | None = None


@dataclass(frozen=True)
class Rollout:
    """A completion as it was sampled.

    Attributes:
        ids: Its T token ids.
        advantage: GRPO's.
        trained: (T,) bool, the tokens that the loss counts; None: all of them.
    """

    ids: Ids
    advantage: float
    trained: tuple[bool, ...] | None = None


@dataclass(frozen=True)
class Group:
    """Rollouts of one prompt.

    Attributes:
        messages: The conversation, images in place.
        solution: As in the data set's `solution` column.
        attempts: Answers, rewards and verdicts of the whole group.
        rollouts: Those of `attempts` from position `first` on.
        first: Above 0 where another process has the rollouts before.
        row: The row of the data set, for methods that ask what a task knows of it; empty where it is not at hand.
        number: Which group of the batch it is, among those of all processes.
    """

    messages: Messages
    solution: str
    attempts: Sequence[Attempt]
    rollouts: Sequence[Rollout]
    first: int = 0
    row: dict[str, Any] = field(default_factory=dict)
    number: int = 0


@dataclass(frozen=True)
class References:
    """What the teachers of one rollout are told.

    Attributes:
        positive: r+, the right answer, or a text in its place.
        negatives: The wrong answers whose mean probability is P_T-; empty if there is none.
        fallback: Why the method could not be followed, None if it was.
        sources: For each negative, the position in the group of the first rollout that gave it.
    """

    positive: str
    negatives: tuple[str, ...]
    fallback: Fallback | None = None
    sources: tuple[int, ...] = ()
