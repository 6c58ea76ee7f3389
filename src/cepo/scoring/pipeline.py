"""The one pipeline: groups -> references -> contexts -> hints -> log-probs -> evidence. Training, `cepo explain` and
loops of your own all take this way; a method's placement then makes token advantages of the evidence.

Dimensions: N rollouts of all groups together, C contexts, T completion tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from ..methods.method import MethodOptions
from ..methods.stages import OTHER_MODEL, STUDENT, Context, Evidence, LabeledGroup, StageContext, TokenValues
from ..methods.token_advantages import CreditInputs, TokenAdvantages
from ..references.groups import Group, Ids, References, Rollout
from ..references.hint_content import Part
from ..references.hints import add_hint
from .forward import Scorer, ScoringModel
from .prompts import PromptEncoder, cut_text, token_texts
from .requests import Prompt, text_length
from .score import Completions, LogProbs, score_contexts

VERDICTS = {True: 1.0, False: -1.0, None: 0.0}


@dataclass(frozen=True)
class Plan:
    """What a method asks of the rollouts of some groups.

    Attributes:
        references: Of each of the N rollouts.
        contexts: Of each, hints as they are read; an empty list: it is not read.
    """

    references: list[References]
    contexts: list[list[Context]]


@dataclass(frozen=True)
class Read:
    """The rollouts of some groups, read in the contexts of a plan.

    Attributes:
        plan: The plan.
        logps: (C, N, T) log-probs of the rollouts' tokens [nats]; anything where not `present`.
        present: (C, N) bool, which contexts a rollout has.
    """

    plan: Plan
    logps: Tensor
    present: Tensor


@dataclass(frozen=True)
class Found:
    """What a method found of the rollouts of some groups."""

    plan: Plan
    evidence: Evidence


@dataclass(frozen=True)
class Pipeline:
    """From groups to evidence.

    Attributes:
        encoder: Makes the prompts with hints.
        log_probs: Makes the policy's forward passes.
        teacher_log_probs: Makes those of teachers with other weights; None: the policy is its own teacher.
        other_log_probs: Makes those of another model, for methods that need one.
        seed: Of what methods draw; a group draws the same on every process, whichever group came before it.
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
        **template_options: Any,
    ) -> "Pipeline":
        """For a model that no trainer holds. Its mode is the caller's, see `evaluating`.

        Args:
            model: A transformers model.
            processing_class: Its tokenizer, or its processor if it reads images.
            max_tokens: The most tokens of a forward pass, padding included.
            temperature: Of the distributions; training has that of sampling.
            template_options: Further arguments of the chat template.
        """
        encoder = PromptEncoder(processing_class, isinstance(processing_class, ProcessorMixin), template_options)
        return cls(
            encoder,
            partial(Scorer(ScoringModel(model, model, temperature=temperature)).log_probs, max_tokens=max_tokens),
        )

    def plan(self, options: MethodOptions, groups: Sequence[Group], wanted: Sequence[bool] | None = None) -> Plan:
        """References and contexts of the groups' rollouts.

        Args:
            options: Of the method.
            groups: The groups.
            wanted: For each rollout, whether it is to be read; None: all are.
        """
        method = options.method_spec
        if method.contexts is None:
            everyone = [References("", ())] * sum(len(group.rollouts) for group in groups)
            return Plan(everyone, [[] for _ in everyone])
        references: list[References] = []
        for group in groups:
            tools = StageContext(self._cut, Random(f"{self.seed}:{group.number}"))
            of_group = method.references(group.attempts, group.solution, options, tools)
            references += of_group[group.first : group.first + len(group.rollouts)]
        kept = [True] * len(references) if wanted is None else wanted
        contexts = [
            [options.hint(c) if isinstance(c, str) else c for c in method.contexts(reference, options)] if keep else []
            for reference, keep in zip(references, kept, strict=True)
        ]
        return Plan(references, contexts)

    def hinted(self, groups: Sequence[Group], prompts: Sequence[Prompt]) -> Callable[[int, str], Ids]:
        """Makes the token ids of a prompt with a hint: (index of the group, hint) -> ids."""

        def ids(index: int, hint: str) -> Ids:
            messages = groups[index].messages
            return self.encoder.with_hint(prompts[index], messages, add_hint(messages, hint))

        return ids

    def find_evidence(
        self,
        all_options: Sequence[MethodOptions],
        groups: Sequence[Group],
        prompts: Sequence[Prompt],
        completions: Completions,
        *,
        wanted: Sequence[bool] | None = None,
        student: Tensor | None = None,
    ) -> list[Found]:
        """Evidence of the groups' rollouts under each of several methods; a context that several ask for is read once.

        Args:
            all_options: Of each method.
            groups: The groups.
            prompts: Their prompts as the student read them.
            completions: Of the N rollouts, in the order of the groups.
            wanted: For each rollout, whether methods with teachers read it; None: all are.
            student: (N, T) log P_S [nats] where it is known already.
        """
        plans = [self.plan(options, groups, wanted) for options in all_options]
        reads = self.read(plans, groups, prompts, completions, student)
        return [
            Found(read.plan, self.evidence(options, read, groups, prompts, completions))
            for options, read in zip(all_options, reads, strict=True)
        ]

    def student(self, groups: Sequence[Group], prompts: Sequence[Prompt], completions: Completions) -> Tensor:
        """(N, T) log P_S of the rollouts [nats]."""
        plan = Plan([], [[STUDENT]] * len(completions.prompts))
        (read,) = self.read([plan], groups, prompts, completions, None)
        return read.logps[0]

    def read(
        self,
        plans: Sequence[Plan],
        groups: Sequence[Group],
        prompts: Sequence[Prompt],
        completions: Completions,
        student: Tensor | None,
    ) -> list[Read]:
        """The rollouts under the contexts of each plan; a context that several ask for is read once.

        Args:
            plans: Of each method.
            groups, prompts, completions, student: As for `find_evidence`.
        """
        rows = range(len(completions.prompts))
        everyone = [list(dict.fromkeys(c for plan in plans for c in plan.contexts[row])) for row in rows]
        # P_S is the policy's, whoever teaches. A reader makes its passes even if it has nothing to read here: other
        # processes may have, and they go together.
        teaches = self.teacher_log_probs is not None
        readers = [
            (self.log_probs, lambda c: c is STUDENT or (not teaches and isinstance(c, str)), student),
            (self.teacher_log_probs, lambda c: isinstance(c, str), None),
            (self.other_log_probs, lambda c: c is OTHER_MODEL, None),
        ]
        tables: list[Tensor] = []
        places: list[dict[Context, int]] = [{} for _ in everyone]
        for log_probs, reads, known in readers:
            if log_probs is None:
                continue
            own = [[context for context in contexts if reads(context)] for contexts in everyone]
            found, _ = score_contexts(
                own, completions, prompts, hinted=self.hinted(groups, prompts), log_probs=log_probs, student=known
            )
            for place, contexts in zip(places, own, strict=True):
                place |= {context: sum(map(len, tables)) + index for index, context in enumerate(contexts)}
            tables.append(found)
        logps = torch.cat(tables) if len(tables) > 1 else tables[0]
        return [_select(logps, plan, places) for plan in plans]

    def evidence(
        self,
        options: MethodOptions,
        read: Read,
        groups: Sequence[Group],
        prompts: Sequence[Prompt],
        completions: Completions,
    ) -> Evidence:
        """What a method makes of what was read for it."""
        method = options.method_spec
        if method.token_values is not None:
            return self._labelled(options, method.token_values, groups, prompts, completions)
        if method.changes_advantages and not method.needs_teachers:
            return no_evidence(completions.completion_ids)
        return method.evidence(read.logps, read.present)

    def _labelled(
        self,
        options: MethodOptions,
        labels: TokenValues,
        groups: Sequence[Group],
        prompts: Sequence[Prompt],
        completions: Completions,
    ) -> Evidence:
        """Evidence by what is known of the tokens."""
        values = torch.zeros(completions.completion_ids.shape, dtype=torch.float32)
        row = 0
        for group, prompt in zip(groups, prompts, strict=True):
            texts = [token_texts(self.encoder.processing_class, rollout.ids) for rollout in group.rollouts]
            advantages = [rollout.advantage for rollout in group.rollouts]
            known = LabeledGroup(group.row, texts, group.attempts, advantages, text_length(prompt))
            for place, found in enumerate(labels(known, options)):
                if len(found) > len(texts[place]):
                    raise ValueError(
                        f"method {options.method}: labels gave {len(found)} numbers for a rollout of "
                        f"{len(texts[place])} tokens"
                    )
                values[row + place, : len(found)] = torch.tensor(found, dtype=torch.float32)
            row += len(group.rollouts)
        unread = no_evidence(completions.completion_ids)
        return replace(unread, values=values.to(unread.values))

    def _cut(self, text: str, part: Part, tokens: int) -> str:
        return cut_text(self.encoder.processing_class, text, part, tokens)


def _select(logps: Tensor, plan: Plan, places: list[dict[Context, int]]) -> Read:
    """What one plan asks for; C is at least 2."""
    count = max(2, *map(len, plan.contexts))
    rows = [[place[context] for context in contexts] for contexts, place in zip(plan.contexts, places, strict=True)]
    source = torch.tensor([row + [0] * (count - len(row)) for row in rows], device=logps.device).T
    present = torch.tensor([[position < len(row) for row in rows] for position in range(count)])
    picked = logps.gather(0, source.unsqueeze(-1).expand(-1, -1, logps.shape[-1]))
    return Read(plan, picked, present.to(logps.device))


def no_evidence(completion_ids: Tensor) -> Evidence:
    """For a method that asks nothing of the (N, T) tokens: 0, and every rollout counts as scored."""
    nothing = torch.zeros_like(completion_ids, dtype=torch.bool)
    return Evidence(nothing.float(), nothing, torch.ones_like(nothing[:, 0]))


def advantages_of(groups: Sequence[Group]) -> Tensor:
    """(N,) GRPO's advantages of the groups' rollouts."""
    return torch.tensor([rollout.advantage for group in groups for rollout in group.rollouts])


def verdicts_of(groups: Sequence[Group]) -> Tensor:
    """(N,) the verifier's word on the groups' rollouts: 1 right, -1 wrong, 0 none."""
    return torch.tensor(
        [
            VERDICTS[attempt.correct]
            for group in groups
            for attempt in group.attempts[group.first : group.first + len(group.rollouts)]
        ]
    )


def completions_of(groups: Sequence[Group], *, trained_only: bool = False) -> Completions:
    """The groups' rollouts as tensors: of every token, or of the trained ones, the log-probs are wanted."""
    rollouts: list[Rollout] = [rollout for group in groups for rollout in group.rollouts]
    # One column at least: where every rollout was cut off, and is masked for that, there is no token at all.
    width = max([1, *(len(rollout.ids) for rollout in rollouts)])
    ids = torch.zeros(len(rollouts), width, dtype=torch.long)
    wanted = torch.zeros(len(rollouts), width, dtype=torch.bool)
    for row, rollout in enumerate(rollouts):
        length = len(rollout.ids)
        ids[row, :length] = torch.tensor(rollout.ids)
        trained = torch.tensor(rollout.trained) if trained_only and rollout.trained is not None else True
        wanted[row, :length] = trained
    owners = [index for index, group in enumerate(groups) for _ in group.rollouts]
    return Completions(ids, wanted, owners)


def place(found: Found, options: MethodOptions, groups: Sequence[Group], mask: Tensor, step: int) -> TokenAdvantages:
    """Token advantages of the groups' rollouts at an optimiser step.

    Args:
        found: What the method found of them.
        options: Of the method.
        groups: The groups.
        mask: (N, T) bool, the completion tokens that are trained on.
        step: Optimiser steps done so far.
    """
    values = found.evidence.values
    inputs = CreditInputs(
        advantages_of(groups).to(values.device),
        values.masked_fill(~mask, 0.0),
        mask,
        found.evidence.scored,
        verdicts_of(groups).to(values.device),
        found.evidence.unscorable,
    )
    return options.method_spec.token_advantages(inputs, options, step)
