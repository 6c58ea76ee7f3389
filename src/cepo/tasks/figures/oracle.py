"""The oracle: credit by the token labels of the figures task, which other methods may use too."""

from collections.abc import Collection
from dataclasses import dataclass

import torch

from ...methods.method import Method, MethodDoc
from ...methods.option_fields import option
from ...methods.options import ClipOptions, ScheduleOptions
from ...methods.registry import register_method
from ...methods.reweighting import REWEIGHTING_DOC, reweighted
from ...methods.stages import LabeledGroup
from ...methods.token_advantages import CreditInputs, TokenAdvantages
from ...methods.token_labels import TokenLabels, register_token_labels
from .labels import figures_labels, first_error, token_kinds

# The columns that identify a row of this task.
COLUMNS = frozenset({"start", "labels", "angles"})
# Evidence of a label [nats]: beyond every bound of `evidence_clip`.
LABEL_EVIDENCE = 20.0


@dataclass(kw_only=True)
class OracleOptions(ScheduleOptions, ClipOptions):
    """CEPO's options."""

    only_mistakes: bool = option(
        False,
        "In incorrect rollouts, tokens other than mistakes get (1 - lambda) A; correct rollouts keep their advantage.",
    )

    def dataset_problem(self, columns: Collection[str]) -> str | None:
        return None if set(columns) >= COLUMNS else "it needs the token labels of the figures task"


def oracle_evidence(group: LabeledGroup, options: OracleOptions) -> list[list[float]]:  # noqa: ARG001
    """Evidence that raises the weight of deciding tokens to its bound, and lowers the weight of filler."""
    labels = figures_labels(group.row, group.tokens, [rollout.correct for rollout in group.rollouts])
    signs = [(rollout.advantage > 0) - (rollout.advantage < 0) for rollout in group.rollouts]
    return [[LABEL_EVIDENCE * label * sign for label in line] for line, sign in zip(labels, signs, strict=True)]


def oracle_credit(inputs: CreditInputs, options: OracleOptions, step: int) -> TokenAdvantages:
    """CEPO's token advantages, or negative advantages for mistakes alone."""
    if not options.only_mistakes:
        return reweighted(inputs, options, step)
    kept = 1 - options.coefficient_at(step)
    advantages = inputs.advantages.unsqueeze(-1) * inputs.mask
    no_mistake = (advantages < 0) & (inputs.evidence >= 0)
    advantages = torch.where(no_mistake, kept * advantages, advantages)
    return TokenAdvantages.of(inputs, advantages, scale=(1 - kept) * inputs.advantages.abs())


# An upper bound for evidence, not a method for other tasks.
ORACLE = Method(
    name="oracle",
    doc=MethodDoc(
        summary="more where the token labels of the figures task mark a decision",
        formula="A [(1 - λ) + λ w_t], w_t = 1 ± ε by the labels",
        hints="no teacher",
        passes="0",
        **REWEIGHTING_DOC,
    ),
    options=OracleOptions,
    token_values=oracle_evidence,
    assign_credit=oracle_credit,
)

register_method(ORACLE)
register_token_labels(TokenLabels(COLUMNS, first_error, token_kinds))
