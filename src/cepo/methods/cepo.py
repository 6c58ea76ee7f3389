"""CEPO (arXiv 2605.19436): evidence for the right answer against a wrong one. `cepo.credit` has its equations."""

from typing import get_args

from ..references.groups import References
from ..references.negatives import NegativeRule
from .method import CONTRAST_OPTIONS, STUDENT, TEACHER, Context, Method, MethodDoc, correct_and_incorrect_answers
from .reweighting import REWEIGHTING_DOC, SCHEDULE, reweighted
from .shared_options import SharedOptions


def contexts(references: References, options: SharedOptions) -> list[Context]:
    """r+, then every r-; without any, P_S takes the place of P_T- (RLSD) or the rollout keeps its advantage (GRPO)."""
    if references.negatives:
        return [references.positive, *references.negatives]
    return [references.positive, STUDENT] if options.missing_negative == "student" else []


METHOD = Method(
    name="cepo",
    summary="more where a token speaks for r+ against r-",
    source="arXiv 2605.19436",
    facts=MethodDoc(
        formula="A [(1 - λ) + λ clip((P_T+ / P_T-)^sign(A), 1 - ε, 1 + ε)]",
        told="r+; each r-",
        passes="1 + K; 2 with one r-",
        **REWEIGHTING_DOC,
    ),
    options=frozenset({*SCHEDULE, *CONTRAST_OPTIONS, *TEACHER}),
    references=correct_and_incorrect_answers,
    contexts=contexts,
    assign_credit=reweighted,
    presets={
        "paper": {
            "negative_reference": "lowest_reward",
            "missing_negative": "student",
            "evidence_coefficient": 0.5,
            "evidence_steps": 25,
            "evidence_schedule": "linear",
            "evidence_clip": 0.5,
            "epsilon": 0.2,
            "epsilon_high": 0.28,
        }
    },
    variants=tuple({"negative_reference": rule} for rule in get_args(NegativeRule)),
)
