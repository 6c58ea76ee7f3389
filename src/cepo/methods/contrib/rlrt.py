"""RLRT (arXiv 2605.10781): RLSD's evidence reversed, on correct rollouts alone.

    A_t = A [(1 - lambda) + lambda clip((P_S / P_T)^sign(A), 1 - eps, 1 + eps)]    for correct rollouts
    A_t = A                                                                        for the others

P_T is the policy with a correct rollout in its hint: a token gains if the policy finds it likelier without the hint.
Without the gate on correct rollouts training diverges (paper).

Open in the paper, as far as known, and chosen here: lambda is constant; teachers have the current weights; the hint
carries another rollout than the scored one, and the only correct rollout of a group keeps its advantage. eps is the
paper's for instruction-tuned models (0.5; thinking models 0.2; base models 1.0, which is out of range here).
"""

from dataclasses import dataclass, replace

from torch import Tensor

from ...references.hint_content import PositiveContent
from ...references.hints import SOLUTION_HINT_TEMPLATE
from ..method import Method, MethodDoc
from ..options import ClipOptions, CoefficientOptions, HintOptions, TeacherOptions
from ..reweighting import REWEIGHTING_DOC, reweighted
from ..stages import Evidence, contrast, sibling_and_unhinted, with_advantage
from ..token_advantages import CreditInputs, TokenAdvantages


@dataclass(kw_only=True)
class RLRTOptions(CoefficientOptions, ClipOptions, HintOptions, TeacherOptions):
    """The paper's values for instruction-tuned models."""

    positive_content: PositiveContent = "rollout"
    hint_template: str = SOLUTION_HINT_TEMPLATE


def reversed_contrast(logps: Tensor, present: Tensor) -> Evidence:
    """log P_S - log P_T [nats]."""
    found = contrast(logps, present)
    return replace(found, values=-found.values, positive=found.negative, negative=found.positive)


def correct_rollouts(advantages: Tensor, verdicts: Tensor, options: RLRTOptions) -> Tensor:
    """(B,) bool, correct rollouts with an advantage."""
    return with_advantage(advantages, verdicts, options) & (verdicts > 0)


def reweighted_if_correct(inputs: CreditInputs, options: RLRTOptions, step: int) -> TokenAdvantages:
    """CEPO's token advantages for correct rollouts; the others keep their advantage."""
    evidence = inputs.evidence * (inputs.verdicts > 0).unsqueeze(-1)
    return reweighted(replace(inputs, evidence=evidence), options, step)


METHOD = Method(
    name="rlrt",
    doc=MethodDoc(
        summary="on correct rollouts, more where another correct rollout in the prompt makes it less likely",
        source="arXiv 2605.10781",
        formula="A [(1 - λ) + λ clip((P_S / P_T+)^sign(A), 1 - ε, 1 + ε)] if correct, else A",
        hints="another correct rollout",
        passes="1, correct rollouts alone",
        **REWEIGHTING_DOC,
    ),
    options=RLRTOptions,
    contexts=sibling_and_unhinted,
    evidence=reversed_contrast,
    rollout_filter=correct_rollouts,
    assign_credit=reweighted_if_correct,
)
