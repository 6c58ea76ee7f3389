"""The methods: which contexts a rollout is re-read in, and how their log-probs become evidence.

A method is a short composition of the stages in `credit.py`. To add one, write its contexts and its evidence and enter
it in `METHODS`; the trainer does not know which method it runs.

Dimensions: C contexts, B rollouts, T completion tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .credit import evidence, mean_probability, unscorable
from .references import References

# A context is the answer that a teacher is told, or STUDENT: the policy without a hint.
STUDENT = None
Context = str | None


@dataclass(frozen=True)
class Evidence:
    """The evidence of B rollouts.

    Attributes:
        values: (B, T) evidence [nats]; 0 for a rollout that was not re-read.
        unscorable: (B, T) bool, the tokens to which a teacher gave no finite log-prob.
    """

    values: Tensor
    unscorable: Tensor


def cepo_contexts(references: References, student_fallback: bool) -> list[Context]:
    """r+, then every r-; without any, P_S takes the place of P_T- (RLSD) or the rollout keeps its advantage (GRPO)."""
    if references.negatives:
        return [references.positive, *references.negatives]
    return [references.positive, STUDENT] if student_fallback else []


def rlsd_contexts(references: References, _: bool) -> list[Context]:
    """r+ and the student."""
    return [references.positive, STUDENT]


def contrast(logps: Tensor, present: Tensor) -> Evidence:
    """The first context against the mean probability of the others.

    Args:
        logps: (C, B, T) log-probs of the sampled tokens [nats]; anything where not `present`.
        present: (C, B) bool, which contexts a rollout was re-read in.
    """
    positive, negative = logps[0], mean_probability(logps[1:], present[1:])
    return Evidence(evidence(positive, negative), unscorable(positive, negative))


@dataclass(frozen=True)
class Method:
    """How one method places credit.

    Attributes:
        contexts: The contexts in which a rollout is re-read, r+ first; None for a method without teachers. Its second
            argument says whether P_S may stand in for a missing negative teacher. An empty list: do not score.
        evidence: Evidence from the log-probs under all contexts.
        needs_negatives: Whether the method looks for wrong answers in the group.
    """

    contexts: Callable[[References, bool], list[Context]] | None
    evidence: Callable[[Tensor, Tensor], Evidence] = contrast
    needs_negatives: bool = False

    @property
    def needs_teachers(self) -> bool:
        return self.contexts is not None


METHODS: dict[str, Method] = {
    "cepo": Method(cepo_contexts, needs_negatives=True),
    "rlsd": Method(rlsd_contexts),
    "grpo": Method(None),
}
