"""The methods: which contexts a rollout is re-read in, and how their log-probs become evidence.

A method is a short composition of the stages in `credit.py`. To add one, write its contexts and its evidence and enter
it in `METHODS`; the trainer does not know which method it runs.

Dimensions: C contexts, B rollouts, T completion tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..credit import evidence, mean_probability, unscorable
from ..references.choosing import References
from ..references.hints import SOLUTION_HINT_TEMPLATE
from ..tasks.figures import figures_labels

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


def told_contexts(references: References, _: bool) -> list[Context]:
    """One teacher, that is told the positive content; none where it was to be a right rollout and there is none."""
    return [] if references.fallback == "no_right_rollout" else [references.positive]


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
        labels: Credit from a task's own knowledge in place of teachers: (dataset row, the tokens of each rollout of its
            group, their verdicts) -> for each rollout and token 1 (decides), -1 (filler) or 0.
        distils: Whether the loss is the student's divergence from the teacher, rather than GRPO's.
        defaults: Values of `CEPOConfig` that are the method's own where the user gives none.
    """

    contexts: Callable[[References, bool], list[Context]] | None
    evidence: Callable[[Tensor, Tensor], Evidence] = contrast
    needs_negatives: bool = False
    labels: Callable[[dict[str, Any], list[list[str]], list[bool | None]], list[list[int]]] | None = None
    distils: bool = False
    defaults: dict[str, Any] = field(default_factory=dict)

    @property
    def needs_teachers(self) -> bool:
        return self.contexts is not None


# Evidence of a label [nats]: beyond every bound that `evidence_clip` may set.
LABEL_EVIDENCE = 20.0


def label_evidence(labels: Tensor, advantages: Tensor) -> Tensor:
    """(B, T) evidence [nats] that raises the weight of tokens labelled 1 to its bound and lowers that of -1."""
    return LABEL_EVIDENCE * labels * advantages.sign().unsqueeze(-1)


METHODS: dict[str, Method] = {
    "cepo": Method(cepo_contexts, needs_negatives=True),
    "rlsd": Method(rlsd_contexts),
    "grpo": Method(None),
    # No method, but what evidence without fault would do: credit by the figures task's ground truth.
    "oracle": Method(None, labels=figures_labels),
    # arXiv 2601.18734: no reward; the teacher is the initial policy, told the reference solution.
    "opsd": Method(
        told_contexts,
        distils=True,
        defaults={
            "positive_content": "solution",
            "hint_template": SOLUTION_HINT_TEMPLATE,
            "teacher": "initial",
            "divergence": "full",
            "divergence_beta": 0.0,
        },
    ),
    # arXiv 2601.20802: the teacher is told a right rollout of the group, and follows the policy slowly.
    "sdpo": Method(
        told_contexts,
        distils=True,
        defaults={
            "positive_content": "rollout",
            "hint_template": SOLUTION_HINT_TEMPLATE,
            "teacher": "ema",
            "teacher_ema_decay": 0.95,
            "divergence": "top_k",
            "divergence_beta": 0.5,
            "importance_clip": 2.0,
        },
    ),
}
