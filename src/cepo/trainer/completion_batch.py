"""Rollouts of a generation batch with their verdicts. A group may span processes.

Dimensions: B rollouts of this process, G rollouts of a group.
"""

from dataclasses import dataclass, replace
from typing import Any

from ..references.groups import Group, Messages, Rollout
from .batches import Batch, completions_of


@dataclass(frozen=True)
class CompletionBatch:
    """The dataset rows of this process's rollouts, and the verdicts on the rollouts of all processes.

    Attributes:
        rows: B rows of the dataset.
        prompts: Their B conversations.
        rollouts, solutions: One for each rollout of all processes; the rollouts have no token ids yet.
        group_size: G.
        first: Index of this process's first rollout among those of all processes.
    """

    rows: list[dict[str, Any]]
    prompts: list[Messages]
    rollouts: list[Rollout]
    solutions: list[str]
    group_size: int
    first: int

    def groups(self, batch: Batch) -> tuple[list[Group], list[int]]:
        """The groups of this process's rollouts, and for each the batch row of its first local rollout."""
        size, first = self.group_size, self.first
        rollouts = list(self.rollouts)
        fields = zip(completions_of(batch), batch["advantages"].tolist(), strict=True)
        for index, ((ids, trained), advantage) in enumerate(fields, first):
            rollouts[index] = replace(rollouts[index], ids=ids, advantage=advantage, trained=trained, local=True)
        groups, rows = [], []
        for number in range(first // size, -(-(first + len(self.rows)) // size)):
            start = number * size
            row = max(0, start - first)
            members = rollouts[start : start + size]
            groups.append(Group(self.prompts[row], self.solutions[start], members, self.rows[row], number))
            rows.append(row)
        return groups, rows
