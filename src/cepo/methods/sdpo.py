"""SDPO (arXiv 2601.20802): the teacher has a correct rollout of the group in its hint; its weights are an EMA."""

from dataclasses import dataclass

from ..references.hint_content import PositiveContent
from ..references.hints import SOLUTION_HINT_TEMPLATE
from .distilling import DISTILLATION_DOC, distillation_contexts
from .method import Method, MethodDoc
from .options import Divergence, DivergenceOptions, HintOptions, TeacherOptions, TeacherSource
from .stages import all_rollouts
from .token_advantages import as_advantages


@dataclass(kw_only=True)
class SDPOOptions(HintOptions, TeacherOptions, DivergenceOptions):
    """The paper's values."""

    positive_content: PositiveContent = "rollout"
    hint_template: str = SOLUTION_HINT_TEMPLATE
    teacher: TeacherSource = "ema"
    teacher_ema_decay: float = 0.95
    divergence: Divergence = "top_k"
    divergence_beta: float = 0.5
    importance_clip: float | None = 2.0


METHOD = Method(
    name="sdpo",
    doc=MethodDoc(
        summary="none: distillation from a teacher with another correct rollout in its hint",
        source="arXiv 2601.20802",
        hints="another correct rollout",
        **DISTILLATION_DOC,
    ),
    options=SDPOOptions,
    contexts=distillation_contexts,
    rollout_filter=all_rollouts,
    assign_credit=as_advantages,
    variants=(),
)
