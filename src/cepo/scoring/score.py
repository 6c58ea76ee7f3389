"""Scoring: log-probs of rollouts' own tokens under other prompts. Forward passes only.

`score_contexts` is the one way in. How the passes are made is the caller's: a `Scorer` of `passes.py`, or any function
from prompts and requests to log-probs, as another engine has it.

Dimensions: C contexts, B rollouts, T completion tokens, P prompt tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..methods.stages import STUDENT, Context
from ..references.groups import Ids
from .requests import Prompt, Request


@dataclass(frozen=True)
class Completions:
    """Completions as the student sampled them.

    Attributes:
        completion_ids: (B, T) token ids, padded on the right.
        wanted: (B, T) bool, the tokens whose log-probs are wanted. What follows the last of them is not run.
        prompts: For each rollout, the index of its prompt.
    """

    completion_ids: Tensor
    wanted: Tensor
    prompts: Sequence[int]

    def until_last_wanted(self) -> list[Ids]:
        """Token ids of each rollout, up to its last wanted token."""
        # Masks have holes where a tool answered; the tokens there are read, but nobody asks how likely they were.
        after = torch.arange(1, self.wanted.shape[1] + 1, device=self.wanted.device)
        lengths = (self.wanted * after).amax(dim=1).tolist()
        return [tuple(ids[:length]) for ids, length in zip(self.completion_ids.tolist(), lengths, strict=True)]


# (prompts, requests) -> log-probs [nats] of each request's completion: a `Scorer`'s, or any engine's.
LogProbs = Callable[[Sequence[Prompt], Sequence[Request]], list[Tensor]]


def score(
    contexts: Sequence[Sequence[Ids | None]], completions: Completions, prompts: Sequence[Prompt], log_probs: LogProbs
) -> Tensor:
    """Log-probs of the rollouts' own tokens under each of their contexts.

    The completion tokens are those that were sampled, never decoded and encoded again. A completion that several
    rollouts share is read once in each context.

    Args:
        contexts: C lists of B contexts, the token ids of a rollout's prompt as a teacher reads it; None where the
            rollout is not to be scored.
        completions: Of the B rollouts.
        prompts: The prompts that they answer.
        log_probs: Makes the forward passes.

    Returns:
        (C, B, T) log-probs [nats]; NaN where there was no context, 0 after the last wanted token.
    """
    ids = completions.until_last_wanted()
    requests = {
        (c, b): Request(completions.prompts[b], context, ids[b])
        for c, row in enumerate(contexts)
        for b, context in enumerate(row)
        if context is not None and ids[b]
    }
    unique = list(dict.fromkeys(requests.values()))
    found = dict(zip(unique, log_probs(prompts, unique), strict=True))
    present = torch.tensor([[context is not None for context in row] for row in contexts])
    shape = (*present.shape, completions.completion_ids.shape[1])
    result = (
        torch.where(present.unsqueeze(-1), 0.0, torch.nan)
        .expand(shape)
        .to(completions.completion_ids.device, copy=True)
    )
    for (c, b), request in requests.items():
        result[c, b, : len(request.completion)] = found[request]
    return result


def score_contexts(
    contexts: Sequence[Sequence[Context]],
    completions: Completions,
    prompts: Sequence[Prompt],
    *,
    hinted: Callable[[int, Any], Ids],
    log_probs: LogProbs,
    student: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probs of each rollout under a list of contexts of its own.

    Args:
        contexts: For each of the B rollouts its contexts; none for one that is not read.
        completions: Of the rollouts.
        prompts: The prompts that they answer.
        hinted: (index of a prompt, hint) -> the prompt's token ids with the hint.
        log_probs: Makes the forward passes.
        student: (B, T) log-probs under STUDENT [nats] where they are known already; None: they are read.

    Returns:
        (C, B, T) log-probs [nats], anything where there was no context, and (C, B) bool, where there was one. C is at
        least 2, so that the stages after this one need no special case for an empty batch.
    """
    encoded: dict[tuple[int, Context], Ids] = {}
    count = max(2, *map(len, contexts))
    present = torch.zeros(count, len(contexts), dtype=torch.bool)
    known = torch.zeros_like(present)
    table: list[list[Ids | None]] = [[None] * len(contexts) for _ in range(count)]
    for row, hints in enumerate(contexts):
        for position, hint in enumerate(hints):
            present[position, row] = True
            known[position, row] = hint is STUDENT and student is not None
            if not known[position, row]:
                key = (completions.prompts[row], hint)
                if key not in encoded:
                    encoded[key] = hinted(*key) if isinstance(hint, str) else prompts[key[0]].ids
                table[position][row] = encoded[key]
    logps = score(table, completions, prompts, log_probs)
    if student is not None:
        logps = torch.where(known.to(logps.device).unsqueeze(-1), student, logps)
    return logps, present.to(logps.device)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a model as a teacher: eval mode (no dropout, in LoRA neither), no gradient; restores the modes."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def has_dropout(model: nn.Module) -> bool:
    """Whether a forward pass in train mode is another than in eval mode."""
    rates = (getattr(module, name, 0.0) for module in model.modules() for name in ("p", "attention_dropout"))
    return any(isinstance(rate, float) and rate > 0 for rate in rates)
