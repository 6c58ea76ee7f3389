"""From groups to token advantages: references -> hints -> log-probs -> evidence -> token advantages.

Training, `cepo explain` and custom training loops share this pipeline.

Dimensions: C contexts, N rollouts of all groups on this process, T completion tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from random import Random
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..methods.method import MethodOptions
from ..methods.stages import OTHER_MODEL, STUDENT, Context, Evidence, LabeledGroup, StageContext, TokenValues
from ..methods.token_advantages import CreditInputs, TokenAdvantages
from ..references.groups import Group, Ids, References, Rollout
from .forward import Scorer, ScoringModel
from .prompts import PromptEncoder, cut_text, token_texts
from .requests import Prompt, Request, text_length

# (prompts, requests) -> log-probs [nats] of each request's completion: a `Scorer`'s, or another engine's.
LogProbs = Callable[[Sequence[Prompt], Sequence[Request]], list[Tensor]]
# Log-probs [nats] of one rollout's T tokens under each of its contexts.
ContextLogProbs = dict[Context, Tensor]

VERDICTS = {True: 1.0, False: -1.0, None: 0.0}


@dataclass(frozen=True)
class ScoredBatch:
    """The N rollouts of some groups, scored for one method.

    Attributes:
        references: References of each rollout.
        contexts: Contexts of each rollout, hints filled in; an empty list: the rollout is not scored.
        evidence: Evidence of the rollouts.
    """

    references: list[References]
    contexts: list[list[Context]]
    evidence: Evidence


@dataclass(frozen=True)
class Pipeline:
    """From groups to evidence.

    Attributes:
        encoder: Encodes prompts with hints.
        log_probs: Forward passes of the policy.
        teacher_log_probs: Forward passes of teachers with other weights; None: the policy is the teacher.
        other_log_probs: Forward passes of another model, for methods that need one.
        seed: Seed of what methods draw. A group's draw depends on the seed and `Group.number` alone.
    """

    encoder: PromptEncoder
    log_probs: LogProbs
    teacher_log_probs: LogProbs | None = None
    other_log_probs: LogProbs | None = None
    seed: str = "0"

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        processing_class: Any,
        *,
        max_tokens: int,
        temperature: float = 1.0,
    ) -> "Pipeline":
        """The pipeline of a model outside a trainer. Wrap calls in `evaluating(model)`.

        Args:
            model: A transformers model.
            processing_class: Tokenizer, or processor of a vision-language model.
            max_tokens: Maximum tokens of a forward pass, padding included.
            temperature: Temperature of the distributions; training uses the sampling temperature.
        """
        scorer = Scorer(ScoringModel(model, model, temperature=temperature))
        return cls(PromptEncoder(processing_class), partial(scorer.log_probs, max_tokens=max_tokens))

    def plan(
        self, options: MethodOptions, groups: Sequence[Group], scored: Sequence[bool] | None = None
    ) -> tuple[list[References], list[list[Context]]]:
        """References and contexts of each of the N rollouts.

        Args:
            options: Options of the method.
            groups: The groups.
            scored: (N,) whether each rollout gets contexts; None: all rollouts.
        """
        method = options.method_spec
        references: list[References] = []
        for group in groups:
            if method.contexts is None:
                references += [References("", ())] * len(group.local)
                continue
            tools = StageContext(
                partial(cut_text, self.encoder.processing_class), Random(f"{self.seed}:{group.number}")
            )
            chosen = method.references(group.rollouts, group.solution, options, tools)
            references += [one for one, rollout in zip(chosen, group.rollouts, strict=True) if rollout.local]

        def contexts_of(row: int) -> list[Context]:
            if method.contexts is None or (scored is not None and not scored[row]):
                return []
            contexts = method.contexts(references[row], options)
            return [options.hint(context) if isinstance(context, str) else context for context in contexts]

        return references, [contexts_of(row) for row in range(len(references))]

    def context_ids(self, groups: Sequence[Group], prompts: Sequence[Prompt]) -> Callable[[int, Context], Ids]:
        """A cached function (index of the group, context) -> token ids of the group's prompt in the context."""

        @cache
        def ids(index: int, context: Context) -> Ids:
            if not isinstance(context, str):
                return prompts[index].ids
            return self.encoder.with_hint(prompts[index], groups[index].messages, context)

        return ids

    def find_evidence(
        self,
        all_options: Sequence[MethodOptions],
        groups: Sequence[Group],
        prompts: Sequence[Prompt],
        *,
        scored: Sequence[bool] | None = None,
        student: Tensor | None = None,
        width: int | None = None,
        device: torch.device | str = "cpu",
    ) -> list[ScoredBatch]:
        """Evidence of the groups' rollouts for each of several methods, which share their scoring passes.

        Args:
            all_options: Options of each method.
            groups: The groups.
            prompts: The prompts of the groups, as the student saw them.
            scored: (N,) whether methods with teachers score each rollout; None: all rollouts.
            student: (N, T) log P_S [nats] if already known.
            width: T; None: the length of the longest rollout.
            device: Device of the evidence.
        """
        plans = [self.plan(options, groups, scored) for options in all_options]
        contexts = [
            list(dict.fromkeys(context for of_method in of_methods for context in of_method))
            for of_methods in zip(*(contexts for _, contexts in plans), strict=True)
        ]
        logps = self.score(contexts, groups, prompts, student)
        shape = (len(logps), _width(groups) if width is None else width)
        results = []
        for options, (references, of_method) in zip(all_options, plans, strict=True):
            method = options.method_spec
            if method.token_values is not None:
                evidence = self._labeled(options, method.token_values, groups, prompts, shape, device)
            elif method.contexts is None and method.changes_advantages:
                evidence = no_evidence(shape, device)
            else:
                evidence = method.evidence(*_tabulate(of_method, logps, shape, device))
            results.append(ScoredBatch(references, of_method, evidence))
        return results

    def student_log_probs(self, groups: Sequence[Group], prompts: Sequence[Prompt]) -> Tensor:
        """(N, T) log P_S of the groups' rollouts [nats]."""
        contexts: list[list[Context]] = [[STUDENT] for group in groups for _ in group.local]
        logps = self.score(contexts, groups, prompts)
        return _tabulate(contexts, logps, (len(logps), _width(groups)), "cpu")[0][0]

    def score(
        self,
        contexts: Sequence[Sequence[Context]],
        groups: Sequence[Group],
        prompts: Sequence[Prompt],
        student: Tensor | None = None,
    ) -> list[ContextLogProbs]:
        """Log-probs of each rollout's sampled tokens under each of its contexts. Equal requests are run once.

        Args:
            contexts: For each of the N rollouts its contexts.
            groups: The groups.
            prompts: The prompts of the groups.
            student: (N, T) log P_S [nats] if already known.

        Returns:
            For each rollout the log-probs [nats] by context of its tokens up to the last one that the loss counts. A
            rollout without such tokens has none.
        """
        rollouts = [(index, _scored_ids(rollout)) for index, group in enumerate(groups) for rollout in group.local]
        ids_of = self.context_ids(groups, prompts)
        found: list[ContextLogProbs] = [{} for _ in rollouts]
        if student is not None:
            for row, (_, ids) in enumerate(rollouts):
                if STUDENT in contexts[row]:
                    found[row][STUDENT] = student[row, : len(ids)]
        for log_probs in filter(None, (self.log_probs, self.teacher_log_probs, self.other_log_probs)):
            requests = {
                (row, context): Request(index, ids_of(index, context), ids)
                for row, (index, ids) in enumerate(rollouts)
                for context in contexts[row]
                if ids and self._scorer_of(context) is log_probs and context not in found[row]
            }
            unique = list(dict.fromkeys(requests.values()))
            # Also without requests: another process may have some, and all processes run the same number of passes.
            results = dict(zip(unique, log_probs(prompts, unique), strict=True))
            for (row, context), request in requests.items():
                found[row][context] = results[request]
        return found

    def _scorer_of(self, context: Context) -> LogProbs | None:
        """The forward passes for a context. The policy scores P_S, whatever the teacher's weights are."""
        if context is OTHER_MODEL:
            return self.other_log_probs
        return self.log_probs if context is STUDENT else self.teacher_log_probs or self.log_probs

    def _labeled(
        self,
        options: MethodOptions,
        token_values: TokenValues,
        groups: Sequence[Group],
        prompts: Sequence[Prompt],
        shape: tuple[int, int],
        device: torch.device | str,
    ) -> Evidence:
        """Evidence from token labels."""
        values = torch.zeros(shape)
        row = 0
        for group, prompt in zip(groups, prompts, strict=True):
            texts = [token_texts(self.encoder.processing_class, rollout.ids) for rollout in group.rollouts]
            labeled = LabeledGroup(group.row, texts, group.rollouts, text_length(prompt))
            for tokens, found in zip(texts, token_values(labeled, options), strict=True):
                if len(found) > len(tokens):
                    raise ValueError(
                        f"method {options.method}: token_values returned {len(found)} values for a rollout of "
                        f"{len(tokens)} tokens"
                    )
                values[row, : len(found)] = torch.tensor(found)
                row += 1
        return replace(no_evidence(shape, device), values=values.to(device))


def _scored_ids(rollout: Rollout) -> Ids:
    """The tokens up to the last one that the loss counts: no other token's log-prob depends on those after it."""
    if rollout.trained is None:
        return rollout.ids
    return rollout.ids[: max((place + 1 for place, trained in enumerate(rollout.trained) if trained), default=0)]


def _width(groups: Sequence[Group]) -> int:
    """T, the length of the longest rollout; at least 1, since truncated rollouts may be masked to no token."""
    return max([1, *(len(rollout.ids) for group in groups for rollout in group.local)])


def _tabulate(
    contexts: Sequence[Sequence[Context]],
    logps: Sequence[ContextLogProbs],
    shape: tuple[int, int],
    device: torch.device | str,
) -> tuple[Tensor, Tensor]:
    """(C, N, T) log-probs, NaN without a context, and (C, N) bool, whether a rollout has it; C is at least 2."""
    count = max([2, *map(len, contexts)])
    table = torch.full((count, *shape), torch.nan, device=device)
    present = torch.zeros(count, shape[0], dtype=torch.bool)
    for row, of_row in enumerate(contexts):
        for position, context in enumerate(of_row):
            present[position, row] = True
            table[position, row] = 0.0
            if (values := logps[row].get(context)) is not None:
                table[position, row, : len(values)] = values
    return table, present.to(device, non_blocking=True)


def no_evidence(shape: tuple[int, ...], device: torch.device | str = "cpu") -> Evidence:
    """Evidence of a method without teachers: 0 at all (N, T) tokens, and every rollout counts as scored."""
    values = torch.zeros(shape, device=device)
    scored = torch.ones(shape[0], dtype=torch.bool, device=device)
    return Evidence(values, torch.zeros_like(values, dtype=torch.bool), scored)


def advantages_of(groups: Sequence[Group]) -> Tensor:
    """(N,) GRPO's advantages of the groups' rollouts."""
    return torch.tensor([rollout.advantage for group in groups for rollout in group.local])


def verdicts_of(groups: Sequence[Group]) -> Tensor:
    """(N,) verdicts on the groups' rollouts: 1 correct, -1 incorrect, 0 without a verdict."""
    return torch.tensor([VERDICTS[rollout.correct] for group in groups for rollout in group.local])


def assign_credit(evidence: Evidence, options: MethodOptions, groups: Sequence[Group], step: int) -> TokenAdvantages:
    """Token advantages of the groups' rollouts.

    Args:
        evidence: (N, T) evidence of the rollouts.
        options: Options of the method.
        groups: The groups.
        step: Optimizer steps done so far.
    """
    device = evidence.values.device
    mask = torch.zeros_like(evidence.unscorable)
    for row, rollout in enumerate(rollout for group in groups for rollout in group.local):
        length = len(rollout.ids)
        mask[row, :length] = True if rollout.trained is None else torch.tensor(rollout.trained, device=device)
    inputs = CreditInputs(
        advantages_of(groups).to(device),
        evidence.values.masked_fill(~mask, 0.0),
        mask,
        evidence.scored,
        verdicts_of(groups).to(device),
        evidence.unscorable,
    )
    return options.method_spec.token_advantages(inputs, options, step)
