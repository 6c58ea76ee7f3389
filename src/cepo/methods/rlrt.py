"""RLRT (arXiv 2605.10781): RLSD's evidence reversed, on right rollouts alone.

    A_t = A [(1 - lambda) + lambda clip((P_S / P_T)^sign(A), 1 - eps, 1 + eps)]    for rollouts that are right
    A_t = A                                                                        for the others

P_T is the policy told a right rollout: a token that it would have written without being told gains. Without the gate on
right rollouts training diverges (paper).

The paper leaves open, as far as known, and we chose: lambda stays as it is; teachers are the live policy; the hint is
another rollout than the one that is read, and the only right rollout of a group keeps its advantage. eps is the paper's
for instruction-tuned models (0.5; base models 1.0, which here has to stay below 1, and thinking models 0.2).
"""

from dataclasses import replace

from torch import Tensor

from ..references.groups import References
from ..references.hints import SOLUTION_HINT_TEMPLATE
from .method import STUDENT, TEACHER, Context, Evidence, Method, MethodDoc, contrast
from .reweighting import REWEIGHTING_DOC, reweighted
from .shared_options import SharedOptions
from .token_advantages import CreditInputs, TokenAdvantages


def contexts(references: References, options: SharedOptions) -> list[Context]:  # noqa: ARG001
    """A teacher that is told another right rollout, and the student; none without such a rollout."""
    return [] if references.fallback == "no_correct_rollout" else [references.positive, STUDENT]


def reversed_contrast(logps: Tensor, present: Tensor) -> Evidence:
    """log P_S - log P_T [nats]."""
    found = contrast(logps, present)
    return replace(found, values=-found.values, positive=found.negative, negative=found.positive)


def right_ones(advantages: Tensor, verdicts: Tensor, options: SharedOptions) -> Tensor:  # noqa: ARG001
    """(B,) bool, right rollouts of groups with variance."""
    return (advantages != 0) & (verdicts > 0)


def reweighted_where_right(inputs: CreditInputs, options: SharedOptions, step: int) -> TokenAdvantages:
    """CEPO's placement for rollouts that are right; the others keep their advantage."""
    evidence = inputs.evidence * (inputs.verdicts > 0).unsqueeze(-1)
    return reweighted(replace(inputs, evidence=evidence), options, step)


METHOD = Method(
    name="rlrt",
    summary="on right rollouts, more where a policy told a right one would not have written it",
    source="arXiv 2605.10781",
    facts=MethodDoc(
        formula="A [(1 - λ) + λ clip((P_S / P_T+)^sign(A), 1 - ε, 1 + ε)] where right, else A",
        told="another right rollout",
        passes="1, right rollouts alone",
        **REWEIGHTING_DOC,
    ),
    options=frozenset(
        {
            *("evidence_coefficient", "evidence_clip", "hint_template"),
            *("positive_content", "positive_part", "hint_max_tokens", *TEACHER),
        }
    ),
    contexts=contexts,
    evidence=reversed_contrast,
    rollout_filter=right_ones,
    assign_credit=reweighted_where_right,
    defaults={"positive_content": "rollout", "hint_template": SOLUTION_HINT_TEMPLATE},
)
