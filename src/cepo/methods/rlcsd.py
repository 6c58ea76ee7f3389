"""RLCSD (arXiv 2606.11709): a sibling rollout that is right against siblings that are wrong, added to the advantage.

Teachers are told a whole rollout of the group and that its answer is the correct one, worded alike for right and wrong
siblings. With e = log P_T+ - log mean_k P_T-^(k) [nats] and r = clip(beta lambda tanh(e / tau), lowest, highest),

    A_t = A + r, and 0 where that would change the sign of A      for tokens with |r| > threshold
    A_t = A                                                       for the others

and the loss is the mean over the others plus eta times the mean over the selected ones, both over the scored rollouts
of a micro-batch, as in the authors' code; the sign of A has no part in r. A token that is alone among the others thus
weighs as much as all of these would.

Where this departs from the authors' code: the hint stands in the last user turn, as for all methods here, not in a
prompt of its own; right and wrong are the verifier's word; micro-batches count by their scored tokens, not by rows;
teachers read a generation batch once, so that a copy of the weights in between reaches the next one. A loss that is no
mean over tokens (`loss_type` grpo, sapo, luspo) is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ..references.equality import accepted_by_any_grader
from ..references.extraction import reference_answer
from ..references.groups import References, Rollout
from .method import TEACHER, Context, Method, MethodDoc, StageContext
from .shared_options import SharedOptions
from .token_advantages import CreditInputs, TokenAdvantages

HINT_TEMPLATE = (
    "\n\nA reference solution:\n{answer}\n\nSolve the problem yourself and put the final answer in \\boxed{}."
)


@dataclass(frozen=True)
class Constants:
    """The authors' values.

    Attributes:
        tau: Evidence at which tanh begins to saturate [nats].
        beta: Strength, beside lambda (`evidence_coefficient`).
        threshold: A token is selected if |r| is above this.
        eta: Weight of the selected tokens' mean in the loss.
        lowest, highest: Bounds of r.
        right_hint: What the teacher of the right side is told: a right ``rollout``, or the ``solution`` column.
    """

    tau: float = 0.02
    beta: float = 1.0
    threshold: float = 0.02
    eta: float = 1.0
    lowest: float = -2.0
    highest: float = 2.0
    right_hint: Literal["rollout", "solution"] = "rollout"

    def __post_init__(self):
        if self.tau <= 0:
            raise ValueError(f"tau must be above 0, got {self.tau}")
        if self.eta < 0 or self.threshold < 0:
            raise ValueError("eta and threshold must not be negative")
        if self.lowest > self.highest:
            raise ValueError(f"lowest ({self.lowest}) is above highest ({self.highest})")
        if self.right_hint not in ("rollout", "solution"):
            raise ValueError(f"right_hint must be rollout or solution, got {self.right_hint!r}")


def asserted(text: str, answer: str) -> str:
    """A solution, right or wrong, with the word that its answer is the correct one."""
    return f"{text}\nIts final answer, {answer}, is the correct one."


def references(
    attempts: Sequence[Rollout], solution: str, options: SharedOptions, tools: StageContext
) -> list[References]:
    """For each rollout one right sibling and up to K wrong ones that gave an answer, drawn anew, never itself."""
    right = [place for place, attempt in enumerate(attempts) if attempt.correct]
    reference = reference_answer(solution, options.answer_extractor)
    # An answer that any grader accepts may be correct: the verifier was too strict.
    wrong = [
        place
        for place, attempt in enumerate(attempts)
        if attempt.correct is False and attempt.answer and not accepted_by_any_grader(attempt.answer, reference)
    ]

    def told(place: int) -> str:
        # A right sibling that announced no answer borrows that of the solution.
        return asserted(attempts[place].text, attempts[place].answer or reference)

    def of(place: int) -> References:
        others = [other for other in right if other != place]
        pool = [other for other in wrong if other != place]
        from_solution = options.constants.right_hint == "solution"
        if not others and not from_solution:
            return References(reference, (), "no_correct_rollout")
        if not pool:
            return References(reference, (), "no_incorrect_rollout")
        positive = asserted(solution, reference) if from_solution else told(tools.random.choice(others))
        drawn = tools.random.sample(pool, min(options.max_negatives or 1, len(pool)))
        return References(positive, tuple(map(told, drawn)), None, tuple(drawn))

    return [of(place) for place in range(len(attempts))]


def contexts(references: References, options: SharedOptions) -> list[Context]:  # noqa: ARG001
    """The right sibling, then the wrong ones; a rollout that lacks either is not read."""
    return [references.positive, *references.negatives] if references.negatives else []


def additive(inputs: CreditInputs, options: SharedOptions, step: int) -> TokenAdvantages:
    """A + r for selected tokens, A for the others, 0 for a rollout that was not read, which is then not trained on."""
    own, strength = options.constants, options.constants.beta * options.coefficient_at(step)
    advantages = inputs.advantages.unsqueeze(-1)
    raw = strength * (inputs.evidence / own.tau).tanh()
    added = raw.clamp(own.lowest, own.highest).to(advantages.dtype)
    scored = inputs.scored.unsqueeze(-1)
    selected = (added.abs() > own.threshold) & inputs.mask & scored
    shifted = advantages + added
    crossed = shifted * advantages.sign() < 0
    # A rollout without an advantage keeps it.
    moved = shifted.masked_fill(crossed, 0.0) * (advantages != 0)
    placed = torch.where(selected, moved, advantages).masked_fill(~(inputs.mask & scored), 0.0)
    others = inputs.mask & scored & ~selected
    # A mean over few tokens is a mean over all of them with a larger weight. A count of 0 is taken as 1.
    counts = torch.stack([(inputs.mask & scored).sum(), selected.sum(), others.sum()])
    all_tokens, of_selected, of_others = inputs.sum_counts(counts.to(placed.dtype)).clamp(min=1)
    weights = torch.where(selected, own.eta * all_tokens / of_selected, all_tokens / of_others)
    at_bound = selected & (crossed | (raw < own.lowest) | (raw > own.highest))
    scale = torch.full_like(inputs.advantages, min(strength, max(abs(own.lowest), abs(own.highest))))
    return TokenAdvantages(placed, inputs.advantages, scale, at_bound, inputs.mask, weights)


METHOD = Method(
    name="rlcsd",
    summary="all of it, and a bonus where a right sibling rollout makes it likelier than wrong ones do",
    source="arXiv 2606.11709",
    facts=MethodDoc(
        formula="A + r where |r| > threshold, 0 in place of a change of sign; r = βλ tanh(log(P_T+ / mean P_T-) / τ)",
        told="a whole right sibling; each of K wrong siblings",
        sign="yes, or 0",
        bounds="|A_t - A| <= βλ; 0 without both siblings; in the loss a mean of each of the two kinds of tokens",
        passes="1 + K",
    ),
    options=frozenset({"evidence_coefficient", "max_negatives", "hint_template", *TEACHER}),
    references=references,
    contexts=contexts,
    assign_credit=additive,
    constants=Constants,
    has_loss_weights=True,
    defaults={"hint_template": HINT_TEMPLATE, "teacher": "synced", "teacher_sync_steps": 10},
)
