"""GRPO (arXiv 2402.03300): every token has its rollout's advantage. Training is then TRL's own, to the bit."""

from .method import Method, MethodDoc
from .token_advantages import uniform

METHOD = Method(
    name="grpo",
    summary="the same for every token; TRL's own (`shared_prompt_update: never`: to the bit)",
    source="arXiv 2402.03300",
    facts=MethodDoc(formula="A", told="nothing", sign="yes", bounds="A_t = A", passes="0"),
    assign_credit=uniform,
)
