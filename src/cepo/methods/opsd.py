"""OPSD (arXiv 2601.18734): no reward; the teacher is the initial policy, told the reference solution."""

from ..references.hints import SOLUTION_HINT_TEMPLATE
from .distilling import FACTS, OPTIONS, contexts
from .method import Facts, Method, all_rollouts
from .placement import as_advantages

METHOD = Method(
    name="opsd",
    summary="none: distillation from a teacher that is told the solution",
    source="arXiv 2601.18734",
    facts=Facts(told="the solution", **FACTS),
    options=OPTIONS,
    contexts=contexts,
    placement=as_advantages,
    selects=all_rollouts,
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
