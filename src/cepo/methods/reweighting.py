"""CEPO's placement, which RLSD and the oracle share: each token's advantage times a weight of its own evidence."""

import math

from ..credit import signed_evidence, token_advantages
from .shared_options import SharedOptions
from .token_advantages import CreditInputs, TokenAdvantages

# What this placement reads.
SCHEDULE = ("evidence_coefficient", "evidence_steps", "evidence_schedule", "evidence_clip")
REWEIGHTING_DOC = {"sign": "yes", "bounds": "|A_t - A| <= λ ε |A|"}


def reweighted(inputs: CreditInputs, options: SharedOptions, step: int) -> TokenAdvantages:
    """A [(1 - lambda) + lambda clip(exp(sign(A) delta), 1 - eps_w, 1 + eps_w)] (paper, algorithm steps 4, 5 and 7)."""
    coefficient, clip = options.coefficient_at(step), options.evidence_clip
    assert clip is not None  # its methods read it
    advantages = token_advantages(inputs.advantages, inputs.evidence, inputs.mask, coefficient=coefficient, clip=clip)
    signed = signed_evidence(inputs.evidence, inputs.advantages)
    clipped = (signed > math.log(1 + clip)) | (signed < math.log(1 - clip))
    scale = coefficient * clip * inputs.advantages.abs()
    return TokenAdvantages(advantages, inputs.advantages, scale, clipped & inputs.mask, inputs.mask)
