"""A method of your own in one file: GRPO with a penalty for groups without a correct rollout.

GRPO has no gradient in such a group: without variance its advantages are 0. Here each of its rollouts gets -penalty,
the same for every token; other rollouts keep their advantage. No teacher scores rollouts. This is the control for
methods that learn from such groups by evidence, as `cepo_additive` does.

    cepo train --method examples.new_method:METHOD --penalty 0.2    # from the root of the repository, 3 minutes

From Python: `cepo.config_class("examples.new_method:METHOD")("out", penalty=0.2)`.
"""

from dataclasses import dataclass, replace

import torch

from cepo.methods import CreditInputs, LabeledGroup, Method, MethodDoc, MethodOptions, TokenAdvantages, option
from cepo.methods.stages import all_rollouts
from cepo.methods.token_advantages import uniform


@dataclass(kw_only=True)
class PenaltyOptions(MethodOptions):
    """Options of this method: flags of `cepo train`, YAML keys, and arguments in Python."""

    penalty: float = option(0.1, "Penalty of a rollout in a group without a correct one.", bounds={">=": 0})


def without_correct_rollout(group: LabeledGroup, options: PenaltyOptions) -> list[list[float]]:
    """Evidence of every token: -1 in a group of incorrect rollouts, else 0."""
    incorrect = all(rollout.correct is False for rollout in group.rollouts)
    return [[-1.0 if incorrect else 0.0] * len(tokens) for tokens in group.tokens]


def penalized(inputs: CreditInputs, options: PenaltyOptions, step: int) -> TokenAdvantages:
    """A, or -penalty."""
    incorrect = (inputs.evidence < 0).any(dim=1) & (inputs.advantages == 0)
    advantages = torch.where(incorrect, -options.penalty, inputs.advantages)
    return uniform(replace(inputs, advantages=advantages), options, step)


METHOD = Method(
    name="penalty",
    doc=MethodDoc(
        summary="the same for every token, and a small penalty in groups without a correct rollout",
        formula="A, or -penalty in a group without a correct rollout",
        hints="no teacher",
        sign="yes",
        passes="0",
    ),
    options=PenaltyOptions,
    token_values=without_correct_rollout,
    rollout_filter=all_rollouts,  # zero-variance groups too
    assign_credit=penalized,
)
