"""The data model: the rollouts of one prompt with their verdicts, and the references for their teachers.

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
    "no_incorrect_answer",  # no rejected rollout gives an answer that differs from r+
    "own_missing",  # a rejected rollout without a usable answer; the group's most common incorrect answer replaces it
    "no_correct_rollout",  # the hint needs another correct rollout, and the group has none
    "no_incorrect_rollout",  # the hint needs another incorrect rollout with this answer, and the group has none
]


@dataclass(frozen=True)
class Rollout:
    """One completion, its verdict and its advantage.

    Attributes:
        answer: Final answer, None if the completion announces none.
        reward: Total reward.
        correct: Verdict of the verifier; None without a verdict.
        text: The completion as text, for hints that carry more than an answer.
        first_error: Number of tokens before the first error, where a reward function returns it.
        ids: T token ids, as sampled.
        advantage: GRPO's advantage.
        trained: (T,) bool, the tokens that the loss counts; None: all tokens.
        local: Whether this process holds the tokens. A group of a training run may span processes; of a rollout on
            another process only the first five fields are known here.
    """

    answer: str | None
    reward: float
    correct: bool | None
    text: str = ""
    first_error: int | None = None
    ids: Ids = ()
    advantage: float = 0.0
    trained: tuple[bool, ...] | None = None
    local: bool = True


@dataclass(frozen=True)
class Group:
    """All rollouts of one prompt.

    Attributes:
        messages: The conversation, images in place.
        solution: The dataset's `solution` column.
        rollouts: The G rollouts.
        row: Row of the dataset, for methods with token labels; empty where it is unknown.
        number: Index of the group in the batch, counted over all processes.
    """

    messages: Messages
    solution: str
    rollouts: Sequence[Rollout]
    row: dict[str, Any] = field(default_factory=dict)
    number: int = 0

    @property
    def local(self) -> list[Rollout]:
        """The rollouts whose tokens this process holds. They are contiguous."""
        return [rollout for rollout in self.rollouts if rollout.local]


@dataclass(frozen=True)
class References:
    """The references of one rollout, from which its hints are made.

    Attributes:
        positive: r+, the correct answer, or a text in its place.
        negatives: The incorrect answers whose mean probability is P_T-; may be empty.
        fallback: Why the references are not those that the method asks for; None if they are.
        sources: For each negative, the position in the group of the first rollout with this answer.
    """

    positive: str
    negatives: tuple[str, ...]
    fallback: Fallback | None = None
    sources: tuple[int, ...] = ()
