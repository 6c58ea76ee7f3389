"""What OPSD and SDPO share: one teacher that is told more, from which the policy learns on its own rollouts."""

from ..references.groups import References
from .method import STUDENT, TEACHER, Context
from .shared_options import SharedOptions

OPTIONS = frozenset(
    {
        *("hint_template", "positive_content", "positive_part", "hint_max_tokens"),
        *TEACHER,
        *("divergence", "divergence_beta", "divergence_top_k", "importance_clip"),
    }
)
FACTS = {
    "formula": "none: D(P_T, P_S) is the loss; `sampled`: log P_T+ - log P_S",
    "sign": "does not read A",
    "bounds": "none",
    "passes": "1, in the update",
}


def contexts(references: References, options: SharedOptions) -> list[Context]:
    """One teacher, that is told the positive content; none where it was to be a right rollout and there is none."""
    if references.fallback == "no_correct_rollout":
        return []
    return [references.positive, STUDENT] if options.divergence == "sampled" else [references.positive]
