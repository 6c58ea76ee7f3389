"""What the verifier said of a generation batch, whose groups may span processes.

Dimensions: B rollouts of this process, G rollouts of a group.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..references.groups import Attempt, Group, Messages, Rollout
from ..scoring.score import Completions
from .batches import Batch, trained_tokens


@dataclass(frozen=True)
class CompletionBatch:
    """The rows and prompts of this process's rollouts, and what came of everyone's.

    Attributes:
        rows: B rows of the dataset.
        prompts: Their B conversations.
        attempts, solutions: One for each rollout of all processes.
        group_size: G.
        first: Position of this process's first rollout among everyone's.
    """

    rows: list[dict[str, Any]]
    prompts: list[Messages]
    attempts: list[Attempt]
    solutions: list[str]
    group_size: int
    first: int

    def groups(self, batch: Batch) -> tuple[list[Group], list[int]]:
        """This process's part of each group, and the row of the batch with which each part begins."""
        size, before = self.group_size, self.first
        trained = trained_tokens(batch).tolist()
        completions = Completions(batch["completion_ids"], batch["completion_mask"].bool(), []).until_last_wanted()
        rollouts = [
            Rollout(ids, advantage, tuple(mask[: len(ids)]))
            for ids, advantage, mask in zip(completions, batch["advantages"].tolist(), trained, strict=True)
        ]
        groups, rows = [], []
        for index in range(before // size, -(-(before + len(rollouts)) // size)):
            first = index * size
            row = max(0, first - before)
            own = rollouts[row : first + size - before]
            attempts = self.attempts[first : first + size]
            groups.append(
                Group(
                    self.prompts[row],
                    self.solutions[first],
                    attempts,
                    own,
                    first=before + row - first,
                    row=self.rows[row],
                    number=index,
                )
            )
            rows.append(row)
        return groups, rows


def attempts_of(
    answers: Sequence[str | None],
    texts: Sequence[str],
    rewards: Sequence[float],
    verdicts: Sequence[float],
    first_errors: Sequence[float],
    threshold: float,
) -> list[Attempt]:
    """What is known of each rollout; NaN where a reward function returned None.

    Args:
        answers, texts: Of the rollouts.
        rewards: In all.
        verdicts: Of the function that decides what is right: at least `threshold`.
        first_errors: Tokens before the first error.
        threshold: See `verdicts`.
    """
    return [
        Attempt(
            answer,
            reward,
            None if verdict != verdict else verdict >= threshold,
            text,
            None if error != error else int(error),
        )
        for answer, text, reward, verdict, error in zip(answers, texts, rewards, verdicts, first_errors, strict=True)
    ]
