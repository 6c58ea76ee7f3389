"""GRPO (arXiv 2402.03300): every token has its rollout's advantage; TRL's loss is unchanged."""

from dataclasses import dataclass

from .method import Method, MethodDoc, MethodOptions


@dataclass(kw_only=True)
class GRPOOptions(MethodOptions):
    """The options of every method."""

    def coefficient_at(self, step: int) -> float:  # noqa: ARG002
        return 0.0


METHOD = Method(
    name="grpo",
    doc=MethodDoc(
        summary="the same for every token; bit-identical to TRL with `shared_prompt_update: never`",
        source="arXiv 2402.03300",
        formula="A",
        hints="no teacher",
        sign="yes",
        bounds="A_t = A",
        passes="0",
    ),
    options=GRPOOptions,
)
