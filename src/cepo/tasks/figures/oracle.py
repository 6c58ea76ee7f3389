"""Credit by what the figures task knows of rollouts, and that knowledge for other methods."""

from collections.abc import Collection
from dataclasses import dataclass

import torch

from ...methods.method import LabeledGroup, Method, MethodDoc
from ...methods.registry import register_method
from ...methods.reweighting import REWEIGHTING_DOC, SCHEDULE, reweighted
from ...methods.shared_options import SharedOptions
from ...methods.token_advantages import CreditInputs, TokenAdvantages
from ...methods.token_labels import TokenLabels, register_token_labels
from .labels import figures_labels, first_error, token_kinds

# The columns by which a row of this task is known.
COLUMNS = frozenset({"start", "labels", "angles"})
# Evidence of a label [nats]: beyond every bound that `evidence_clip` may set.
LABEL_EVIDENCE = 20.0


def oracle_evidence(group: LabeledGroup, options: SharedOptions) -> list[list[float]]:  # noqa: ARG001
    """Evidence that raises the weight of tokens that decide to its bound, and lowers that of filler."""
    labels = figures_labels(group.row, group.tokens, [attempt.correct for attempt in group.attempts])
    signs = [(advantage > 0) - (advantage < 0) for advantage in group.advantages]
    return [[LABEL_EVIDENCE * label * sign for label in line] for line, sign in zip(labels, signs, strict=True)]


@dataclass(frozen=True)
class Constants:
    """The oracle's own option.

    Attributes:
        only_mistakes: In wrong rollouts nothing but mistakes is blamed, and right ones keep their advantage whole; in
            place of weights. With lambda 1, all else in a wrong rollout gets 0.
    """

    only_mistakes: bool = False


def placed_by_labels(inputs: CreditInputs, options: SharedOptions, step: int) -> TokenAdvantages:
    """CEPO's placement, or blame for mistakes alone."""
    if not options.constants.only_mistakes:
        return reweighted(inputs, options, step)
    kept = 1 - options.coefficient_at(step)
    advantages = inputs.advantages.unsqueeze(-1) * inputs.mask
    blameless = (advantages < 0) & (inputs.evidence >= 0)
    scale = (1 - kept) * inputs.advantages.abs()
    return TokenAdvantages(
        torch.where(blameless, kept * advantages, advantages),
        inputs.advantages,
        scale,
        torch.zeros_like(inputs.mask),
        inputs.mask,
    )


def _refuses(columns: Collection[str], options: SharedOptions) -> str | None:  # noqa: ARG001
    return None if set(columns) >= COLUMNS else "it needs the figures task, whose tokens are known"


# No method, but what evidence without fault would do: credit by the figures task's ground truth.
ORACLE = Method(
    name="oracle",
    summary="more where the figures task's ground truth says that it decided",
    source="",
    facts=MethodDoc(
        formula="A [(1 - λ) + λ w_t], w_t = 1 ± ε by the labels", told="nothing", passes="0", **REWEIGHTING_DOC
    ),
    options=frozenset(SCHEDULE),
    token_values=oracle_evidence,
    check_dataset=_refuses,
    assign_credit=placed_by_labels,
    constants=Constants,
)

register_method(ORACLE)
register_token_labels(TokenLabels(COLUMNS, first_error, token_kinds))
