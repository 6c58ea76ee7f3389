"""The contexts of OPSD and SDPO: one teacher with a solution in its hint, distilled on the policy's rollouts."""

from typing import Any

from ..references.groups import References
from .stages import Context, sibling_and_unhinted

# Entries of `MethodDoc`.
DISTILLATION_DOC = {
    "formula": "none: D(P_T, P_S) is the loss; `sampled`: log P_T+ - log P_S",
    "sign": "independent of A",
    "bounds": "none",
    "passes": "1, in the update",
}


def distillation_contexts(references: References, options: Any) -> list[Context]:
    """The hinted teacher; also the student, where log-probs of the sampled tokens are compared."""
    contexts = sibling_and_unhinted(references, options)
    return contexts if options.divergence == "sampled" else contexts[:1]
