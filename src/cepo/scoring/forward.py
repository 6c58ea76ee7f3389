"""Forward passes: how requests become log-probs.

`FullForward` runs every request whole: [prompt in its context + completion]. `fast/prefix_cache.py` runs each prompt
once where the model's cache allows it, with the same result.

Dimensions: n rows of a pass, S tokens of a row.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..acceleration import fast
from ..references.groups import Ids
from .head import Head, sampled_log_probs
from .requests import Prompt, Request, batches_of, length_of, spare_request

_logger = logging.getLogger(__name__)


# The most of each of these numbers over all processes.
ReduceMax = Callable[[Sequence[int]], list[int]]


def single_process(numbers: Sequence[int]) -> list[int]:
    """`ReduceMax` of a single process."""
    return list(numbers)


def _nothing(kind: str) -> None:
    """Before a pass nothing is to be done."""


@dataclass(frozen=True)
class ScoringModel:
    """A model, as the scorer calls it.

    Attributes:
        model: What is called, wrapped as training left it.
        unwrapped: The transformers model inside.
        autocast: Makes the context of mixed precision.
        fused: Whether the model has TRL's fused LM head (`trl.trainer.utils.add_fused_lm_head`), by which log-probs
            come through the wrapped model's own forward pass. Without it they are taken from hidden states here.
        temperature: Of the distributions; a fused head has its own.
        before_pass: Called before each pass with its kind: ``completions`` or ``cache``.
    """

    model: nn.Module
    unwrapped: PreTrainedModel
    autocast: Callable[[], AbstractContextManager] = nullcontext
    fused: bool = False
    temperature: float = 1.0
    before_pass: Callable[[str], None] = _nothing

    @property
    def device(self) -> torch.device:
        return self.unwrapped.device

    def log_probs(self, labels: Tensor, **inputs: Any) -> Tensor:
        """(n, S - 1) log-probs [nats] of the tokens after the first; 0 where the label is -100. No (n, S, V) logits."""
        self.before_pass("completions")
        with self.autocast():
            if self.fused:
                return self.model(labels=labels, fused_lm_head=True, **inputs).log_probs.float()
            hidden = self.unwrapped.base_model(use_cache=False, **inputs).last_hidden_state[:, :-1]
            wanted = labels[:, 1:] != -100
            found = sampled_log_probs(hidden[wanted], Head.of(self.unwrapped), labels[:, 1:][wanted], self.temperature)
        return found.new_zeros(wanted.shape).masked_scatter(wanted, found)


@dataclass(frozen=True)
class FullForward:
    """Every request whole, padded on the right. Works for any model.

    Attributes:
        model: The model.
        max_tokens: The most tokens of one pass, padding included; one request always fits.
        reduce_max: Brings processes to one number of passes: under FSDP and ZeRO-3 each has to take part in each pass
            of any other.
    """

    model: ScoringModel
    max_tokens: int
    reduce_max: ReduceMax = single_process

    def log_probs(self, prompts: Sequence[Prompt], requests: Sequence[Request]) -> list[Tensor]:
        """Log-probs [nats] of each request's completion, in the order of the requests."""
        order = sorted(range(len(requests)), key=lambda i: length_of(requests[i]))
        batches = [list(b) for b in batches_of(order, lambda i: length_of(requests[i]), self.max_tokens)]
        # Agreed before the first pass: a process without one must not gather numbers while another gathers weights.
        (calls,) = self.reduce_max([len(batches)])
        results: dict[int, Tensor] = {}
        for batch in batches:
            results |= dict(zip(batch, self._pass(prompts, [requests[i] for i in batch]), strict=True))
        for _ in range(calls - len(batches)):  # for the others' sake; nobody reads the result
            self._pass(prompts, [spare_request(prompts)])
        return [results[i] for i in range(len(requests))]

    def _pass(self, prompts: Sequence[Prompt], requests: list[Request]) -> list[Tensor]:
        inputs = _whole(prompts, requests, self.model.device)
        starts = [len(request.context) for request in requests]
        labels = labels_of(inputs["input_ids"], starts, [len(request.completion) for request in requests])
        return completions_of_rows(self.model.log_probs(labels, **inputs), starts, requests)


def hidden_states(model: PreTrainedModel, prompts: Sequence[Prompt], requests: Sequence[Request]) -> Tensor:
    """Hidden states before the LM head at the positions that predict the completions, every request whole.

    Args:
        model: The transformers model; gradient and mode are the caller's.
        prompts: The prompts.
        requests: What to read, in one pass.

    Returns:
        (N, H): the tokens of all completions, one request after the other.
    """
    output = model.base_model(use_cache=False, **_whole(prompts, requests, model.device))
    starts = [len(request.context) for request in requests]
    return torch.cat(completions_of_rows(output.last_hidden_state, starts, requests))


def _whole(prompts: Sequence[Prompt], requests: Sequence[Request], device: torch.device) -> dict[str, Tensor]:
    """The model's inputs for whole requests, padded on the right."""
    rows = [prompts[request.prompt] for request in requests]
    return inputs_of(rows, [request.context + request.completion for request in requests], device)


def inputs_of(
    rows: Sequence[Prompt], sequences: Sequence[Ids], device: torch.device, *, left: bool = False
) -> dict[str, Tensor]:
    """The model's inputs for sequences that begin as these prompts do, padded on a side."""
    ids, mask = padded(sequences, device, left=left)
    types = _token_types(rows, [len(tokens) for tokens in sequences], device, left=left)
    return {"input_ids": ids, "attention_mask": mask, **types, **_images(rows, device)}


class Scorer:
    """Makes the passes, with shared prompts where `fast/` is there and the model's cache allows it.

    Args:
        model: The model.
        reduce_max: As in `FullForward`.
        shares: Whether to share prompts; None: as the model's structure and a trial on the first requests say.
        warns: Whether to warn where prompts are not shared; one process is enough.
    """

    def __init__(
        self,
        model: ScoringModel,
        *,
        reduce_max: ReduceMax = single_process,
        shares: bool | None = None,
        warns: bool = True,
    ):
        self.model, self.reduce_max, self.shares, self.warns = model, reduce_max, shares, warns

    def log_probs(self, prompts: Sequence[Prompt], requests: Sequence[Request], *, max_tokens: int) -> list[Tensor]:
        """Log-probs [nats] of each request's completion, in the order of the requests.

        Args:
            prompts: The prompts.
            requests: What to score; equal ones once.
            max_tokens: The most tokens of a pass, padding included.
        """
        if self.reduce_max([len(requests)]) == [0]:
            return []
        quick = fast()
        if quick is None or self.shares is False:
            return FullForward(self.model, max_tokens, self.reduce_max).log_probs(prompts, requests)
        passes = (self.model, max_tokens, self.reduce_max)
        forward, reason = quick.forward_for(*passes, prompts, requests, tried=self.shares)
        self.shares = reason is None
        if reason is not None and self.warns:
            _logger.warning(
                "teachers run every prompt anew for each context and rollout, because %s cannot branch from a "
                "prompt's cache: %s. This is slower and gives the same numbers.",
                type(self.model.unwrapped).__name__,
                reason,
            )
        return forward.log_probs(prompts, requests)


def padded(rows: Sequence[Ids], device: torch.device, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """(n, S) ids and attention mask; padding is token 0, which nothing attends to."""
    width = max(map(len, rows))
    ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long).unbind()
    for row, tokens in enumerate(rows):
        where = slice(width - len(tokens), width) if left else slice(0, len(tokens))
        ids[row, where] = torch.tensor(tokens, dtype=torch.long)
        mask[row, where] = 1
    return ids.to(device), mask.to(device)


def labels_of(ids: Tensor, starts: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """The ids where a completion stands, -100 elsewhere."""
    labels = torch.full_like(ids, -100)
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        labels[row, start : start + length] = ids[row, start : start + length]
    return labels


def completions_of_rows(log_probs: Tensor, starts: Sequence[int], requests: Sequence[Request]) -> list[Tensor]:
    """The log-probs (or hidden states) of each completion; those of a token stand one place before it."""
    return [
        row[start - 1 : start - 1 + len(request.completion)]
        for row, start, request in zip(log_probs, starts, requests, strict=True)
    ]


def _token_types(
    prompts: Sequence[Prompt], lengths: Sequence[int], device: torch.device, *, left: bool = False
) -> dict[str, Tensor]:
    """The token types of sequences that begin as the prompts do, up to the end of their images, and go on as text."""
    result = {}
    for name in prompts[0].token_types:
        begun = [tuple(prompt.token_types[name][: prompt.images_end].tolist()) for prompt in prompts]
        rows = [types + (0,) * (length - len(types)) for types, length in zip(begun, lengths, strict=True)]
        result[name], _ = padded(rows, device, left=left)
    return result


def _images(prompts: Sequence[Prompt], device: torch.device) -> dict[str, Tensor]:
    """The images of several prompts, one after the other."""
    names = {name: None for prompt in prompts for name in prompt.images}
    return {
        name: torch.cat([prompt.images[name] for prompt in prompts if name in prompt.images]).to(device)
        for name in names
    }
