"""OPSD (arXiv 2601.18734): no reward; the teacher is the initial policy, told the reference solution."""

from ..references.hints import SOLUTION_HINT_TEMPLATE
from .distilling import FACTS, OPTIONS, contexts
from .method import Method, MethodDoc, all_rollouts
from .token_advantages import as_advantages

METHOD = Method(
    name="opsd",
    summary="none: distillation from a teacher that is told the solution",
    source="arXiv 2601.18734",
    facts=MethodDoc(told="the solution", **FACTS),
    options=OPTIONS,
    contexts=contexts,
    assign_credit=as_advantages,
    rollout_filter=all_rollouts,
    distils=True,
    defaults={
        "positive_content": "solution",
        "hint_template": SOLUTION_HINT_TEMPLATE,
        "teacher": "initial",
        "divergence": "full",
        "divergence_beta": 0.0,
    },
    variants=(),
)
