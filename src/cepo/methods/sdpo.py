"""SDPO (arXiv 2601.20802): the teacher is told a right rollout of the group, and follows the policy slowly."""

from ..references.hints import SOLUTION_HINT_TEMPLATE
from .distilling import FACTS, OPTIONS, contexts
from .method import Method, MethodDoc, all_rollouts
from .token_advantages import as_advantages

METHOD = Method(
    name="sdpo",
    summary="none: distillation from a teacher that is told another right rollout",
    source="arXiv 2601.20802",
    facts=MethodDoc(told="another right rollout", **FACTS),
    options=OPTIONS,
    contexts=contexts,
    assign_credit=as_advantages,
    rollout_filter=all_rollouts,
    distils=True,
    defaults={
        "positive_content": "rollout",
        "hint_template": SOLUTION_HINT_TEMPLATE,
        "teacher": "ema",
        "teacher_ema_decay": 0.95,
        "divergence": "top_k",
        "divergence_beta": 0.5,
        "importance_clip": 2.0,
    },
    variants=(),
)
