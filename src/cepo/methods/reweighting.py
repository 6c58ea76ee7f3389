"""The token advantages of CEPO, RLSD and the oracle: each token's advantage times a weight of its evidence."""

import math
from typing import Any

from ..credit import signed_evidence, token_advantages
from .token_advantages import CreditInputs, TokenAdvantages

# Entries of `MethodDoc`.
REWEIGHTING_DOC = {"sign": "yes", "bounds": "|A_t - A| <= λ ε |A|"}


def reweighted(inputs: CreditInputs, options: Any, step: int) -> TokenAdvantages:
    """A [(1 - lambda) + lambda clip(exp(sign(A) delta), 1 - eps_w, 1 + eps_w)] (paper, algorithm steps 4, 5 and 7).

    Takes `CoefficientOptions` and `ClipOptions`.
    """
    coefficient, clip = options.coefficient_at(step), options.evidence_clip
    advantages = token_advantages(inputs.advantages, inputs.evidence, inputs.mask, coefficient=coefficient, clip=clip)
    signed = signed_evidence(inputs.evidence, inputs.advantages)
    clipped = (signed > math.log(1 + clip)) | (signed < math.log(1 - clip))
    scale = coefficient * clip * inputs.advantages.abs()
    return TokenAdvantages.of(inputs, advantages, clipped, scale)
