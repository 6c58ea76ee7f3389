"""RLSD (arXiv 2604.03128): evidence for the correct answer against no answer."""

from dataclasses import dataclass

from .method import Method, MethodDoc
from .options import ClipOptions, HintOptions, ScheduleOptions, TeacherOptions
from .reweighting import REWEIGHTING_DOC, reweighted
from .stages import hinted_and_unhinted


@dataclass(kw_only=True)
class RLSDOptions(ScheduleOptions, ClipOptions, HintOptions, TeacherOptions):
    """Defaults are CEPO's; the preset ``rlsd`` has the paper's values."""


METHOD = Method(
    name="rlsd",
    doc=MethodDoc(
        summary="more where r+ in the prompt supports the verdict, compared with no answer",
        source="arXiv 2604.03128",
        formula="A [(1 - λ) + λ clip((P_T+ / P_S)^sign(A), 1 - ε, 1 + ε)]",
        hints="r+",
        passes="1",
        **REWEIGHTING_DOC,
    ),
    options=RLSDOptions,
    contexts=hinted_and_unhinted,
    assign_credit=reweighted,
    presets={
        "rlsd": {
            "evidence_coefficient": 0.5,
            "evidence_steps": 50,
            "evidence_schedule": "linear",
            "evidence_clip": 0.2,
            "teacher": "synced",
            "teacher_sync_steps": 10,
        }
    },
)
