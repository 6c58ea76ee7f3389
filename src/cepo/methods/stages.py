"""The stages that methods are made of, and the shared ones.

    references -> contexts -> evidence -> token advantages

Every stage is a plain function; the options that it receives are those of its method. The last stage is in
`token_advantages`.

Dimensions: B rollouts, C contexts, G rollouts of a group, T completion tokens.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from torch import Tensor

from ..credit import evidence, mean_probability, unscorable
from ..references.extraction import reference_answer
from ..references.groups import References, Rollout
from ..references.hint_content import Part, with_contents
from ..references.negatives import choose_references


class Unhinted(Enum):
    """A model other than the policy that scores a rollout without a hint."""

    OTHER_MODEL = "other model"


# Another model (`teacher_model_name_or_path`), without a hint.
OTHER_MODEL = Unhinted.OTHER_MODEL
# The policy itself, without a hint.
STUDENT = None
# The model and prompt that score a rollout: a teacher with this reference in its hint, OTHER_MODEL, or STUDENT.
Context = str | Unhinted | None


@dataclass(frozen=True)
class StageContext:
    """Tools for a references stage.

    Attributes:
        cut: Cuts a text to its first or last tokens: (text, prefix or suffix, number of tokens).
        random: The group's random generator: the same on every process and after resuming.
    """

    cut: Callable[[str, Part, int], str]
    random: random.Random


@dataclass(frozen=True)
class Evidence:
    """The evidence of B rollouts.

    Attributes:
        values: (B, T) evidence [nats]; 0 for a rollout without evidence.
        unscorable: (B, T) bool, tokens to which a teacher gave no finite log-prob.
        scored: (B,) bool, rollouts that have evidence.
        positive, negative: (B, T) the two log-probs compared [nats], for display; None without teachers.
    """

    values: Tensor
    unscorable: Tensor
    scored: Tensor
    positive: Tensor | None = None
    negative: Tensor | None = None


@dataclass(frozen=True)
class LabeledGroup:
    """A whole group, for a method whose evidence comes from token labels or texts rather than from teachers.

    Attributes:
        row: The row of the dataset.
        tokens: For each rollout, the text that each token adds.
        rollouts: Answers, rewards, verdicts and GRPO's advantages.
        prompt_tokens: Length of the prompt without its images [tokens].
    """

    row: Mapping[str, Any]
    tokens: Sequence[Sequence[str]]
    rollouts: Sequence[Rollout]
    prompt_tokens: int


# References: (rollouts of a group, solution, options, context) -> the references of each rollout.
MakeReferences = Callable[[Sequence[Rollout], str, Any, StageContext], list[References]]


def correct_answer(rollouts: Sequence[Rollout], solution: str, options: Any, context: StageContext) -> list[References]:
    """r+ alone: the correct answer, or the text that `positive_content` names."""
    references = [References(reference_answer(solution, options.answer_extractor), ())] * len(rollouts)
    return with_contents(references, rollouts, solution, options.hint_content(), context.cut)


def correct_and_incorrect_answers(
    rollouts: Sequence[Rollout], solution: str, options: Any, context: StageContext
) -> list[References]:
    """r+ and r-, an answer of a rejected rollout (CEPO's paper, algorithm step 2). Takes `ContrastOptions`."""
    references = choose_references(
        rollouts,
        solution,
        rule=options.negative_reference,
        max_negatives=options.max_negatives,
        extractor=options.answer_extractor,
    )
    return with_contents(references, rollouts, solution, options.hint_content(), context.cut)


def no_references(rollouts: Sequence[Rollout], solution: str, options: Any, context: StageContext) -> list[References]:  # noqa: ARG001
    """No references, for a method whose teachers have no hint."""
    return [References("", ())] * len(rollouts)


# Contexts: (references of a rollout, options) -> its contexts, the positive one first. With an empty list the rollout
# is not scored.
MakeContexts = Callable[[References, Any], list[Context]]


def hinted_and_unhinted(references: References, options: Any) -> list[Context]:  # noqa: ARG001
    """A teacher conditioned on r+, and the policy without a hint."""
    return [references.positive, STUDENT]


def sibling_and_unhinted(references: References, options: Any) -> list[Context]:
    """As `hinted_and_unhinted`; no context where the hint should carry another correct rollout and there is none."""
    return [] if references.fallback == "no_correct_rollout" else hinted_and_unhinted(references, options)


# Evidence of each rollout by itself: ((C, B, T) log-probs [nats], (C, B) bool, which contexts it has) -> evidence.
FindEvidence = Callable[[Tensor, Tensor], Evidence]


def contrast(logps: Tensor, present: Tensor) -> Evidence:
    """Log-prob under the first context minus the log of the mean probability under the others.

    Args:
        logps: (C, B, T) log-probs of the sampled tokens [nats]; any value where a context is not `present`.
        present: (C, B) bool, which contexts a rollout has.
    """
    positive, negative = logps[0], mean_probability(logps[1:], present[1:])
    return Evidence(evidence(positive, negative), unscorable(positive, negative), present.any(0), positive, negative)


# Evidence without teachers: (group, options) -> for each rollout the (T,) evidence of its tokens.
TokenValues = Callable[[LabeledGroup, Any], list[list[float]]]

# Rollouts to score: ((B,) advantages, (B,) verdicts, options) -> (B,) bool.
RolloutFilter = Callable[[Tensor, Tensor, Any], Tensor]


def with_advantage(advantages: Tensor, verdicts: Tensor, options: Any) -> Tensor:  # noqa: ARG001
    """Rollouts whose advantage is not 0 after `negative_advantage_weight`: other rollouts have no gradient."""
    return advantages > 0 if options.negative_advantage_weight == 0 else advantages != 0


def all_rollouts(advantages: Tensor, verdicts: Tensor, options: Any) -> Tensor:  # noqa: ARG001
    """Every rollout."""
    return advantages == advantages
