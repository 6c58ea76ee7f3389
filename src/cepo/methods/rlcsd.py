"""RLCSD (arXiv 2606.11709): a correct sibling rollout against incorrect siblings, added to the advantage.

Each hint carries a whole rollout of the group and states that its answer is the correct one, in the same words for
correct and incorrect siblings. With e = log P_T+ - log mean_k P_T-^(k) [nats] and r = clip(evidence_beta lambda
tanh(e / tau), bonus_min, bonus_max),

    A_t = A + r, or 0 where that would change the sign of A      for tokens with |r| > selection_threshold
    A_t = A                                                      for the other tokens

The loss is the mean over the other tokens plus selected_loss_weight times the mean over the selected ones, both over
the scored rollouts of a micro-batch, as in the authors' code. r does not depend on the sign of A.

Differences to the authors' code: the hint ends the last user turn, as for all methods here; the verifier decides which
rollouts are correct; micro-batches count by scored tokens, not by rows; a generation batch is scored once, so that a
copy of the weights made in between reaches the next batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..references.equality import accepted_by_any_grader
from ..references.extraction import reference_answer
from ..references.groups import References, Rollout
from .method import Method, MethodDoc
from .option_fields import option
from .options import (
    CoefficientOptions,
    MixtureOptions,
    TeacherOptions,
    TeacherSource,
    TemplateOptions,
    token_mean_problem,
)
from .stages import Context, StageContext
from .token_advantages import CreditInputs, TokenAdvantages

HINT_TEMPLATE = (
    "\n\nA reference solution:\n{answer}\n\nSolve the problem yourself and put the final answer in \\boxed{}."
)


@dataclass(kw_only=True)
class RLCSDOptions(CoefficientOptions, MixtureOptions, TemplateOptions, TeacherOptions):
    """The authors' values."""

    hint_template: str = HINT_TEMPLATE
    teacher: TeacherSource = "synced"
    max_negatives: int = 4
    tau: float = option(0.02, "Evidence at which the bonus begins to saturate [nats].", bounds={">": 0})
    evidence_beta: float = option(1.0, "Strength of the bonus r, beside evidence_coefficient.")
    selection_threshold: float = option(0.02, "Tokens with |r| above this are selected.", bounds={">=": 0})
    selected_loss_weight: float = option(1.0, "Weight of the selected tokens' mean in the loss.", bounds={">=": 0})
    bonus_min: float = option(-2.0, "Lower bound of r.")
    bonus_max: float = option(2.0, "Upper bound of r.")
    correct_hint: Literal["rollout", "solution"] = option(
        "rollout", "Content of the positive hint: a correct rollout, or the solution column."
    )

    def __post_init__(self):
        super().__post_init__()
        if self.bonus_min > self.bonus_max:
            raise ValueError(f"bonus_min ({self.bonus_min}) is above bonus_max ({self.bonus_max})")

    def config_problem(self, config: Any) -> str | None:
        return token_mean_problem(config)


def asserted(text: str, answer: str) -> str:
    """A solution, with the statement that its answer is the correct one."""
    return f"{text}\nIts final answer, {answer}, is the correct one."


def siblings(
    rollouts: Sequence[Rollout], solution: str, options: RLCSDOptions, context: StageContext
) -> list[References]:
    """For each rollout, one correct sibling and up to K incorrect ones with an answer, drawn anew."""
    correct = [place for place, rollout in enumerate(rollouts) if rollout.correct]
    reference = reference_answer(solution, options.answer_extractor)
    # An answer that any grader accepts may be correct although the verifier rejected it.
    incorrect = [
        place
        for place, rollout in enumerate(rollouts)
        if rollout.correct is False and rollout.answer and not accepted_by_any_grader(rollout.answer, reference)
    ]

    def hint_of(place: int) -> str:
        # A correct sibling without an announced answer gets that of the solution.
        return asserted(rollouts[place].text, rollouts[place].answer or reference)

    def references_of(place: int) -> References:
        others = [other for other in correct if other != place]
        pool = [other for other in incorrect if other != place]
        from_solution = options.correct_hint == "solution"
        if not others and not from_solution:
            return References(reference, (), "no_correct_rollout")
        if not pool:
            return References(reference, (), "no_incorrect_rollout")
        positive = asserted(solution, reference) if from_solution else hint_of(context.random.choice(others))
        drawn = context.random.sample(pool, min(options.max_negatives, len(pool)))
        return References(positive, tuple(map(hint_of, drawn)), None, tuple(drawn))

    return [references_of(place) for place in range(len(rollouts))]


def sibling_contexts(references: References, options: RLCSDOptions) -> list[Context]:  # noqa: ARG001
    """The correct sibling, then the incorrect ones; a rollout without both is not scored."""
    return [references.positive, *references.negatives] if references.negatives else []


def with_variance(advantages: Tensor, verdicts: Tensor, options: RLCSDOptions) -> Tensor:  # noqa: ARG001
    """(B,) bool, rollouts with A != 0, also at `negative_advantage_weight` 0: the loss counts scored tokens."""
    return advantages != 0


def selected_bonus(inputs: CreditInputs, options: RLCSDOptions, step: int) -> TokenAdvantages:
    """A + r for selected tokens, A for the others; 0 for a rollout that is not scored, which is not trained on."""
    strength = options.evidence_beta * options.coefficient_at(step)
    advantages = inputs.advantages.unsqueeze(-1)
    raw = strength * (inputs.evidence / options.tau).tanh()
    bonus = raw.clamp(options.bonus_min, options.bonus_max).to(advantages.dtype)
    scored = inputs.scored.unsqueeze(-1)
    selected = (bonus.abs() > options.selection_threshold) & inputs.mask & scored
    shifted = advantages + bonus
    crossed = shifted * advantages.sign() < 0
    # A rollout with A = 0 keeps it.
    moved = shifted.masked_fill(crossed, 0.0) * (advantages != 0)
    token_advantages = torch.where(selected, moved, advantages).masked_fill(~scored, 0.0)
    others = inputs.mask & scored & ~selected
    # A mean over some tokens is a mean over all tokens with a larger weight. A count of 0 is taken as 1.
    counts = torch.stack([(inputs.mask & scored).sum(), selected.sum(), others.sum()])
    all_tokens, of_selected, of_others = inputs.sum_counts(counts.to(token_advantages.dtype)).clamp(min=1)
    weights = torch.where(selected, options.selected_loss_weight * all_tokens / of_selected, all_tokens / of_others)
    at_bound = selected & (crossed | (raw < options.bonus_min) | (raw > options.bonus_max))
    largest = min(strength, max(abs(options.bonus_min), abs(options.bonus_max)))
    scale = torch.full_like(inputs.advantages, largest)
    return TokenAdvantages.of(inputs, token_advantages, at_bound, scale, weights)


METHOD = Method(
    name="rlcsd",
    doc=MethodDoc(
        summary="all of it, and a bonus if a token is likelier with a correct sibling in the prompt than with others",
        source="arXiv 2606.11709",
        formula="A + r where |r| > threshold, 0 in place of a change of sign; r = βλ tanh(log(P_T+ / mean P_T-) / τ)",
        hints="a whole correct sibling; each of K incorrect siblings",
        sign="yes, or 0",
        bounds="|A_t - A| <= βλ; 0 without both siblings; in the loss, one mean over each of the two kinds of tokens",
        passes="1 + K",
    ),
    options=RLCSDOptions,
    references=siblings,
    contexts=sibling_contexts,
    rollout_filter=with_variance,
    assign_credit=selected_bonus,
)
