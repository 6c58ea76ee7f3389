"""CEPO (arXiv 2605.19436): evidence for the correct answer against an incorrect one. See `cepo.credit`."""

from dataclasses import dataclass
from typing import get_args

from ..references.groups import References
from ..references.negatives import NegativeRule
from .method import Method, MethodDoc
from .options import ClipOptions, ContrastOptions, ScheduleOptions, TeacherOptions
from .reweighting import REWEIGHTING_DOC, reweighted
from .stages import STUDENT, Context, correct_and_incorrect_answers


@dataclass(kw_only=True)
class CEPOOptions(ScheduleOptions, ClipOptions, ContrastOptions, TeacherOptions):
    """Defaults are the paper's, except for `negative_reference`; the preset ``paper`` sets the paper's rule as well."""


def contrast_contexts(references: References, options: ContrastOptions) -> list[Context]:
    """r+, then every r-. Without r-: the student takes its place, which is RLSD; with `missing_negative: uniform` the
    rollout is not scored and keeps its advantage, which is GRPO."""
    if references.negatives:
        return [references.positive, *references.negatives]
    return [references.positive, STUDENT] if options.missing_negative == "student" else []


METHOD = Method(
    name="cepo",
    doc=MethodDoc(
        summary="more where r+ in the prompt supports the verdict, compared with r-",
        source="arXiv 2605.19436",
        title="CEPO: Contrastive Evidence Policy Optimization",
        formula="A [(1 - λ) + λ clip((P_T+ / P_T-)^sign(A), 1 - ε, 1 + ε)]",
        hints="r+; each r-",
        passes="1 + K; 2 with one r-",
        **REWEIGHTING_DOC,
    ),
    options=CEPOOptions,
    references=correct_and_incorrect_answers,
    contexts=contrast_contexts,  # their log-probs become evidence by `stages.contrast`, the default
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
    # `cepo explain` shows the method once for each rule.
    variants=tuple({"negative_reference": rule} for rule in get_args(NegativeRule)),
)
