"""OPSD (arXiv 2601.18734): no reward; the teacher is the initial policy with the solution in its hint."""

from dataclasses import dataclass

from ..references.hint_content import PositiveContent
from ..references.hints import SOLUTION_HINT_TEMPLATE
from .distilling import DISTILLATION_DOC, distillation_contexts
from .method import Method, MethodDoc
from .options import DivergenceOptions, HintOptions, TeacherOptions, TeacherSource
from .stages import all_rollouts
from .token_advantages import as_advantages


@dataclass(kw_only=True)
class OPSDOptions(HintOptions, TeacherOptions, DivergenceOptions):
    """The paper's values."""

    positive_content: PositiveContent = "solution"
    hint_template: str = SOLUTION_HINT_TEMPLATE
    teacher: TeacherSource = "initial"


METHOD = Method(
    name="opsd",
    doc=MethodDoc(
        summary="none: distillation from a teacher with the solution in its hint",
        source="arXiv 2601.18734",
        hints="the solution",
        **DISTILLATION_DOC,
    ),
    options=OPSDOptions,
    contexts=distillation_contexts,
    rollout_filter=all_rollouts,
    assign_credit=as_advantages,
    variants=(),
)
