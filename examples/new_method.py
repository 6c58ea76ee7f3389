"""A method of your own, in one file: GRPO that also blames groups in which every rollout is wrong.

GRPO learns nothing from such a group: without variance its advantages are 0. Here each of its rollouts gets -blame, the
same for every token; any other rollout keeps its advantage. No teacher reads anything. This is the boring control for
methods that learn from such groups by evidence, as `cepo_additive` does.

    cepo train --method examples.new_method:METHOD --negative_advantage_weight 0.3    # from the root, 3 minutes
"""

from dataclasses import dataclass, replace

import torch

from cepo.methods import CreditInputs, LabeledGroup, Method, MethodDoc, MethodOptions, TokenAdvantages
from cepo.methods.method import all_rollouts
from cepo.methods.token_advantages import uniform


@dataclass(frozen=True)
class Constants:
    """Set by --method_kwargs '{"blame": 0.1}'."""

    blame: float = 0.1


def wrong_without_variance(group: LabeledGroup, options: MethodOptions) -> list[list[float]]:
    """Evidence of every token: -1 where the whole group is wrong, else 0."""
    dead = all(attempt.correct is False for attempt in group.attempts)
    return [[-1.0 if dead else 0.0] * len(tokens) for tokens in group.tokens]


def placed(inputs: CreditInputs, options: MethodOptions, step: int) -> TokenAdvantages:
    """A, or -blame."""
    blamed = (inputs.evidence < 0).any(dim=1) & (inputs.advantages == 0)
    advantages = torch.where(blamed, -options.constants.blame, inputs.advantages)
    return uniform(replace(inputs, advantages=advantages), options, step)


METHOD = Method(
    name="blame_all_wrong",
    summary="the same for every token, and a little blame where the whole group is wrong",
    source="",
    facts=MethodDoc(
        formula="A, or -blame in a group that is all wrong", told="nothing", sign="yes", bounds="", passes="0"
    ),
    token_values=wrong_without_variance,
    rollout_filter=all_rollouts,  # groups without variance are looked at too
    assign_credit=placed,
    constants=Constants,
)
