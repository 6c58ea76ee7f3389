"""The credit of rollouts under several methods at once, by the functions that training uses.

Every rollout is read once in each context that any of the methods asks for; a method is then a choice among its
log-probs. Dimensions: N rollouts of all groups together, C contexts, T completion tokens.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin
from trl.trainer.utils import add_fused_lm_head

from ..credit import evidence_weights, token_advantages
from ..data.sampling import Sampling, conversation_of, sample, text_of, verdicts
from ..methods.registry import METHODS, STUDENT, Context
from ..references.answers import final_answer
from ..references.choosing import Attempt, NegativeRule, References, choose_references
from ..references.hints import DEFAULT_HINT_TEMPLATE, Messages, add_hint
from ..scoring.passes import Policy, Reader
from ..scoring.requests import Ids, Prompt
from ..scoring.scoring import PromptEncoder, Read, Rollouts, evaluating, score_contexts

# (references, attempts, solution) of a group -> its references with what teachers are told in place of the answers.
Tell = Callable[[Sequence[References], Sequence[Attempt], str], list[References]]


@dataclass(frozen=True)
class Variant:
    """A method, and for those with negatives the rule for r-."""

    method: str
    rule: NegativeRule | None = None
    max_negatives: int = 1

    @property
    def name(self) -> str:
        """`grpo`, `cepo own`, `cepo mixture of 4`."""
        if self.rule is None:
            return self.method
        return f"{self.method} {self.rule}{f' of {self.max_negatives}' if 'mixture' in self.rule else ''}"


def all_variants(mixtures: Sequence[int] = (4,)) -> list[Variant]:
    """GRPO, RLSD, and CEPO with each rule for r-, those of a mixture once for each K."""
    variants = [Variant("grpo"), Variant("rlsd")]
    for rule in get_args(NegativeRule):
        variants += [Variant("cepo", rule, k) for k in (mixtures if "mixture" in rule else [1])]
    return variants


@dataclass(frozen=True)
class Rollout:
    """A completion and what was made of it.

    Attributes:
        ids: Its T token ids.
        advantage: GRPO's.
        trained: (T,) bool, the tokens that the loss counts; None: all of them.
    """

    ids: Ids
    advantage: float
    trained: tuple[bool, ...] | None = None


@dataclass(frozen=True)
class Group:
    """Rollouts of one prompt.

    Attributes:
        messages: The conversation, images in place.
        solution: As in the dataset's `solution` column.
        attempts: Answers, rewards and verdicts of the whole group.
        rollouts: The rollouts to inspect: those of `attempts` from position `first` on.
        first: Above 0 where another process has the rollouts before.
    """

    messages: Messages
    solution: str
    attempts: list[Attempt]
    rollouts: list[Rollout]
    first: int = 0


@dataclass(frozen=True)
class Credit:
    """The credit of one rollout under one variant.

    Attributes:
        references: r+ and r-, and why no better r- was had.
        contexts: What it was read with, r+ first; STUDENT (None) for no answer. Empty: not read.
        positive, negative: (T,) log P_T+ and the log of what stands against it [nats]; None where not read.
        evidence: (T,) [nats]; 0 where not read.
        weights: (T,) w_t.
        advantages: (T,) A_t at the given lambda.
    """

    references: References
    contexts: list[Context]
    positive: Tensor | None
    negative: Tensor | None
    evidence: Tensor
    weights: Tensor
    advantages: Tensor


@dataclass(frozen=True)
class Inspected:
    """One rollout under all variants: `student` is (T,) log P_S [nats]."""

    student: Tensor
    credit: dict[Variant, Credit]


def group_advantages(rewards: Sequence[float]) -> list[float]:
    """GRPO's advantages of a group: (reward - mean) / (standard deviation + 1e-4), as TRL computes them."""
    mean = statistics.fmean(rewards)
    deviation = statistics.stdev(rewards) if len(rewards) > 1 else 0.0
    return [(reward - mean) / (deviation + 1e-4) for reward in rewards]


def sampled_groups(
    model: PreTrainedModel,
    processing_class: Any,
    rows: Sequence[dict[str, Any]],
    num_generations: int,
    sampling: Sampling,
    reward_func: Callable[..., Sequence[float | None]],
    *,
    threshold: float = 0.5,
) -> list[Group]:
    """A group of rollouts for each row of a dataset, judged as in training."""
    each = [row for row in rows for _ in range(num_generations)]
    conversations = [conversation_of(row, processing_class) for row in rows]
    completions = sample(model, processing_class, [c for c in conversations for _ in range(num_generations)], sampling)
    texts = [text_of(processing_class, ids) for ids in completions]
    judged = zip(texts, verdicts(reward_func, each, texts), strict=True)
    attempts = [
        Attempt(final_answer(text), reward or 0.0, None if reward is None else reward >= threshold, text)
        for text, reward in judged
    ]
    groups = []
    for index, (row, messages) in enumerate(zip(rows, conversations, strict=True)):
        own = slice(index * num_generations, (index + 1) * num_generations)
        advantages = group_advantages([attempt.reward for attempt in attempts[own]])
        rollouts = [Rollout(ids, a) for ids, a in zip(completions[own], advantages, strict=True)]
        groups.append(Group(messages, row["solution"], attempts[own], rollouts))
    return groups


def inspect(
    groups: Sequence[Group],
    prompts: Sequence[Prompt],
    variants: Sequence[Variant],
    *,
    read: Read,
    encoder: PromptEncoder,
    hint_template: str = DEFAULT_HINT_TEMPLATE,
    coefficient: float = 0.5,
    clip: float = 0.5,
    no_negative: str = "student",
    tell: Tell | None = None,
) -> list[list[Inspected]]:
    """What each rollout of each group gets under each variant.

    Args:
        groups: The groups.
        prompts: Their prompts as the student read them.
        variants: The variants to compare.
        read: Makes the forward passes; the model's mode is the caller's, see `evaluating`.
        encoder: Makes the prompts with hints.
        hint_template, clip, no_negative: As the options of the trainer.
        coefficient: lambda.
        tell: What hints carry, see `with_contents`; None: answers.
    """
    owners = [index for index, group in enumerate(groups) for _ in group.rollouts]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    references = {variant: [r for group in groups for r in _references(group, variant, tell)] for variant in variants}
    plans = {
        variant: [_contexts(variant, reference, no_negative == "student") for reference in references[variant]]
        for variant in variants
    }
    # All contexts of a rollout, each once, the student first.
    unions: list[list[Context]] = [
        list(dict.fromkeys([STUDENT, *(answer for variant in variants for answer in plans[variant][row])]))
        for row in range(len(rollouts))
    ]
    ids, exists, trained = _padded(rollouts)

    def hinted(index: int, answer: str) -> Ids:
        messages = groups[index].messages
        return encoder.with_hint(prompts[index], messages, add_hint(messages, answer, hint_template))

    logps, _ = score_contexts(unions, Rollouts(ids, exists, owners), prompts, hinted=hinted, read=read)
    advantages = torch.tensor([rollout.advantage for rollout in rollouts])

    credit = {
        variant: _credit_of(
            variant,
            references[variant],
            plans[variant],
            _select(logps, plans[variant], unions),
            advantages,
            trained,
            [len(rollout.ids) for rollout in rollouts],
            coefficient,
            clip,
        )
        for variant in variants
    }
    inspected = iter(
        Inspected(logps[0, row, : len(rollout.ids)], {variant: credit[variant][row] for variant in variants})
        for row, rollout in enumerate(rollouts)
    )
    return [[next(inspected) for _ in group.rollouts] for group in groups]


def _references(group: Group, variant: Variant, tell: Tell | None) -> list[References]:
    rule: dict[str, Any] = {} if variant.rule is None else {"rule": variant.rule}
    everyone = choose_references(group.attempts, group.solution, max_negatives=variant.max_negatives, **rule)
    if tell is not None:
        everyone = tell(everyone, group.attempts, group.solution)
    return everyone[group.first : group.first + len(group.rollouts)]


def _contexts(variant: Variant, references: References, student_fallback: bool) -> list[Context]:
    contexts_of = METHODS[variant.method].contexts
    return [] if contexts_of is None else contexts_of(references, student_fallback)


def _padded(rollouts: Sequence[Rollout]) -> tuple[Tensor, Tensor, Tensor]:
    """(N, T) token ids, whether there is a token, and whether the loss counts it."""
    width = max(len(rollout.ids) for rollout in rollouts)
    ids = torch.zeros(len(rollouts), width, dtype=torch.long)
    exists = torch.zeros(len(rollouts), width, dtype=torch.bool)
    trained = torch.zeros_like(exists)
    for row, rollout in enumerate(rollouts):
        length = len(rollout.ids)
        ids[row, :length] = torch.tensor(rollout.ids)
        exists[row, :length] = True
        trained[row, :length] = True if rollout.trained is None else torch.tensor(rollout.trained)
    return ids, exists, trained


def _select(logps: Tensor, plans: list[list[Context]], unions: list[list[Context]]) -> tuple[Tensor, Tensor]:
    """The (C, N, T) log-probs that one variant asks for, and (C, N) which of them there are."""
    count = max(2, *map(len, plans))
    rows = [[union.index(answer) for answer in plan] for plan, union in zip(plans, unions, strict=True)]
    source = torch.tensor([row + [0] * (count - len(row)) for row in rows]).T
    present = torch.tensor([[position < len(row) for row in rows] for position in range(count)])
    return logps.gather(0, source.unsqueeze(-1).expand(-1, -1, logps.shape[-1])), present


def _credit_of(
    variant: Variant,
    references: list[References],
    plans: list[list[Context]],
    log_probs: tuple[Tensor, Tensor],
    advantages: Tensor,
    trained: Tensor,
    lengths: list[int],
    coefficient: float,
    clip: float,
) -> list[Credit]:
    """The stages of training, on the log-probs that this variant asks for."""
    logps, present = log_probs
    found = METHODS[variant.method].evidence(logps, present)
    values = found.values.masked_fill(~trained, 0.0)
    weights = evidence_weights(values, advantages, clip=clip)
    placed = token_advantages(advantages, values, trained, coefficient=coefficient, clip=clip)
    results = []
    for row, (reference, plan, length) in enumerate(zip(references, plans, lengths, strict=True)):
        positive = logps[0, row, :length] if plan else None
        results.append(
            Credit(
                reference,
                plan,
                positive,
                None if positive is None else positive - found.values[row, :length],
                values[row, :length],
                weights[row, :length],
                placed[row, :length],
            )
        )
    return results


def inspect_with(
    model: PreTrainedModel,
    processing_class: Any,
    groups: Sequence[Group],
    variants: Sequence[Variant],
    *,
    max_tokens: int,
    **options: Any,
) -> list[list[Inspected]]:
    """`inspect` for a model that no trainer holds, a token budget for its passes, and the options of `inspect`."""
    encoder = PromptEncoder(processing_class, isinstance(processing_class, ProcessorMixin))
    add_fused_lm_head(model)
    reader = Reader(Policy(model, model))
    prompts = [encoder.prompt(group.messages) for group in groups]
    with evaluating(model):
        return inspect(
            groups, prompts, variants, read=partial(reader.read, max_tokens=max_tokens), encoder=encoder, **options
        )
