"""PBSD (arXiv 2606.09348): evidence for the verified answer, summed over a turn, squashed into a weight of the turn.

    s = sum over the turn of (log P_T+ - log P_S) [nats],    w = 1 + sign(A) clip(tanh(s / scale), -bound, bound),
    A_t = A w

By Bayes' rule the sum over a turn is what the turn changes in the log-probability of the answer. A turn is a run of
trained tokens: what a tool returned lies between two of them. A rollout without tools is one turn, whose tokens all
get the same then; `unit: token` takes every token for a turn of its own.

Known from its abstract and a note; open, and chosen here: scale and bound (`Constants`), no schedule, the live policy
as teacher. Another PBSD (arXiv 2605.05040) is a preference loss and unrelated.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .method import TEACHER, Method, MethodDoc, told_and_student
from .shared_options import SharedOptions
from .token_advantages import CreditInputs, TokenAdvantages


@dataclass(frozen=True)
class Constants:
    """Ours: the paper's are not known.

    Attributes:
        scale: Evidence of a turn at which tanh begins to saturate [nats].
        bound: Largest |w - 1|, in (0, 1), so that the sign of A is kept.
        unit: Over what evidence is summed: a ``turn``, or not at all (``token``).
    """

    scale: float = 1.0
    bound: float = 0.5
    unit: Literal["turn", "token"] = "turn"

    def __post_init__(self):
        if self.scale <= 0:
            raise ValueError(f"scale must be above 0, got {self.scale}")
        if not 0 < self.bound < 1:
            raise ValueError(f"bound must lie strictly between 0 and 1, got {self.bound}")
        if self.unit not in ("turn", "token"):
            raise ValueError(f"unit must be turn or token, got {self.unit!r}")


def sums_of_turns(evidence: Tensor, mask: Tensor) -> Tensor:
    """(B, T) for each trained token the sum of the evidence of its turn [nats]; 0 elsewhere.

    Args:
        evidence: (B, T) evidence [nats].
        mask: (B, T) bool, the trained tokens; a turn is a run of them.
    """
    begins = mask & ~torch.nn.functional.pad(mask, (1, 0))[:, :-1]
    turn = begins.cumsum(dim=1)  # 0 before the first
    kept = evidence.masked_fill(~mask, 0.0)
    sums = torch.zeros(len(mask), int(turn.max()) + 1 if turn.numel() else 1, dtype=kept.dtype, device=kept.device)
    sums.scatter_add_(1, turn, kept)
    return sums.gather(1, turn).masked_fill(~mask, 0.0)


def by_turns(inputs: CreditInputs, options: SharedOptions, step: int) -> TokenAdvantages:  # noqa: ARG001
    """A (1 + sign(A) clip(tanh(s / scale), -bound, bound))."""
    own: Constants = options.constants
    sums = sums_of_turns(inputs.evidence, inputs.mask) if own.unit == "turn" else inputs.evidence
    raw = (sums / own.scale).tanh()
    advantages = inputs.advantages.unsqueeze(-1)
    weights = 1 + advantages.sign() * raw.clamp(-own.bound, own.bound).to(advantages.dtype)
    placed = (advantages * weights).masked_fill(~inputs.mask, 0.0)
    at_bound = (raw.abs() > own.bound) & inputs.mask
    return TokenAdvantages(placed, inputs.advantages, own.bound * inputs.advantages.abs(), at_bound, inputs.mask)


METHOD = Method(
    name="pbsd",
    summary="more for turns that, told r+, speak for the verdict",
    source="arXiv 2606.09348",
    facts=MethodDoc(
        formula="A [1 + sign(A) clip(tanh(Σ_turn log(P_T+ / P_S) / d), -b, b)]",
        told="r+",
        sign="yes",
        bounds="|A_t - A| <= b |A|",
        passes="1",
    ),
    options=frozenset({"hint_template", "positive_content", "positive_part", "hint_max_tokens", *TEACHER}),
    contexts=told_and_student,
    assign_credit=by_turns,
    constants=Constants,
)
