"""PBSD (arXiv 2606.09348): evidence for the verified answer, summed over a turn, as a weight of the turn.

    s = sum over the turn of (log P_T+ - log P_S) [nats],    w = 1 + sign(A) clip(tanh(s / scale), -bound, bound),
    A_t = A w

By Bayes' rule the sum over a turn is the change of the answer's log-probability that the turn causes. A turn is a run
of trained tokens; tool results separate turns. A rollout without tools is one turn, and its tokens all get the same
advantage; `evidence_unit: token` takes every token as a turn.

Known from the abstract and a note. Open, and chosen here: scale and bound, no schedule, the current weights as teacher.
Another PBSD (arXiv 2605.05040) is a preference loss and unrelated.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..method import Method, MethodDoc
from ..option_fields import option
from ..options import HintOptions, TeacherOptions
from ..stages import hinted_and_unhinted
from ..token_advantages import CreditInputs, TokenAdvantages


@dataclass(kw_only=True)
class PBSDOptions(HintOptions, TeacherOptions):
    """Values chosen here: the paper's are not known."""

    evidence_scale: float = option(1.0, "Evidence of a turn at which tanh begins to saturate [nats].", bounds={">": 0})
    weight_bound: float = option(
        0.5, "Largest |w - 1|; below 1, so that the sign of A is kept.", bounds={">": 0, "<": 1}
    )
    evidence_unit: Literal["turn", "token"] = option("turn", "Unit over which evidence is summed: turn or token.")


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


def weighted_turns(inputs: CreditInputs, options: PBSDOptions, step: int) -> TokenAdvantages:  # noqa: ARG001
    """A (1 + sign(A) clip(tanh(s / scale), -bound, bound))."""
    sums = sums_of_turns(inputs.evidence, inputs.mask) if options.evidence_unit == "turn" else inputs.evidence
    bound, raw = options.weight_bound, (sums / options.evidence_scale).tanh()
    advantages = inputs.advantages.unsqueeze(-1)
    weights = 1 + advantages.sign() * raw.clamp(-bound, bound).to(advantages.dtype)
    return TokenAdvantages.of(inputs, advantages * weights, raw.abs() > bound, bound * inputs.advantages.abs())


METHOD = Method(
    name="pbsd",
    doc=MethodDoc(
        summary="more for turns in which r+ in the prompt supports the verdict",
        source="arXiv 2606.09348",
        formula="A [1 + sign(A) clip(tanh(Σ_turn log(P_T+ / P_S) / d), -b, b)]",
        hints="r+",
        sign="yes",
        bounds="|A_t - A| <= b |A|",
        passes="1",
    ),
    options=PBSDOptions,
    contexts=hinted_and_unhinted,
    assign_credit=weighted_turns,
)
