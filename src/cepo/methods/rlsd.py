"""RLSD (arXiv 2604.03128): evidence for the right answer against no answer."""

from .method import TEACHER, Method, MethodDoc, told_and_student
from .reweighting import REWEIGHTING_DOC, SCHEDULE, reweighted

METHOD = Method(
    name="rlsd",
    summary="more where it speaks for r+ against no answer",
    source="arXiv 2604.03128",
    facts=MethodDoc(
        formula="A [(1 - λ) + λ clip((P_T+ / P_S)^sign(A), 1 - ε, 1 + ε)]", told="r+", passes="1", **REWEIGHTING_DOC
    ),
    options=frozenset(
        {
            *SCHEDULE,
            *("hint_template", "positive_content", "positive_part", "hint_max_tokens"),
            *TEACHER,
        }
    ),
    contexts=told_and_student,
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
