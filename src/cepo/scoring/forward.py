"""Forward passes: from requests to log-probs.

`FullForward` runs each request whole: prompt, hint and completion. `fast/tree_forward.py` runs each prompt once, with
the same result, if the model's attention supports it.

Dimensions: n rows of a pass, S tokens of a row.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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


# The maximum of each number over all processes.
ReduceMax = Callable[[Sequence[int]], list[int]]


def single_process(numbers: Sequence[int]) -> list[int]:
    """`ReduceMax` of a single process."""
    return list(numbers)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode (no dropout, LoRA's included) without gradient. Restores the mode of each module."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def has_dropout(model: nn.Module) -> bool:
    """Whether a module of the model has a dropout rate above 0."""
    rates = (getattr(module, name, 0.0) for module in model.modules() for name in ("p", "attention_dropout"))
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


@dataclass(frozen=True)
class ScoringModel:
    """A model with its wrappers and precision, for scoring passes.

    Attributes:
        model: The model as training wraps it; forward passes call it.
        unwrapped: The transformers model inside.
        autocast: Context manager of mixed precision.
        temperature: Temperature of the distributions.
    """

    model: nn.Module
    unwrapped: PreTrainedModel
    autocast: Callable[[], AbstractContextManager] = nullcontext
    temperature: float = 1.0

    @property
    def device(self) -> torch.device:
        return self.unwrapped.device

    def log_probs(self, labels: Tensor, **inputs: Any) -> Tensor:
        """(n, S) log-probs [nats], without (n, S, V) logits.

        Logits are float32 in half precision too; see `Head.log_probs`.

        Args:
            labels: (n, S) the token that each position predicts; -100 for a result of 0.
            inputs: Inputs of the model.
        """
        with self.autocast(), self._forward_to_log_probs():  # in the wrappers' forward pass, which gathers shards
            return self.model(labels=labels, **inputs)

    @contextmanager
    def _forward_to_log_probs(self) -> Iterator[None]:
        model = self.unwrapped
        plain = vars(model).get("forward")

        def forward(labels: Tensor, **inputs: Any) -> Tensor:
            hidden = model.base_model(**inputs | {"use_cache": False}).last_hidden_state
            kept = labels != -100
            found = sampled_log_probs(hidden[kept], Head.of(model), labels[kept], self.temperature)
            return found.new_zeros(kept.shape).masked_scatter(kept, found)

        model.forward = forward
        try:
            yield
        finally:
            if plain is None:
                del model.forward
            else:
                model.forward = plain


@dataclass(frozen=True)
class FullForward:
    """Runs every request whole, padded on the right. Works for any model.

    Attributes:
        model: The model.
        max_tokens: Maximum tokens of a pass, padding included; one request always fits.
        reduce_max: Brings processes to the same number of passes, which FSDP and ZeRO-3 require.
    """

    model: ScoringModel
    max_tokens: int
    reduce_max: ReduceMax = single_process

    def log_probs(self, prompts: Sequence[Prompt], requests: Sequence[Request]) -> list[Tensor]:
        """Log-probs [nats] of each request's completion, in the order of the requests."""
        order = sorted(range(len(requests)), key=lambda i: length_of(requests[i]))
        batches = [list(b) for b in batches_of(order, lambda i: length_of(requests[i]), self.max_tokens)]
        # Reduce before the first pass: collective calls of numbers and of weights must have one order on all processes.
        (calls,) = self.reduce_max([len(batches)])
        results: dict[int, Tensor] = {}
        for batch in batches:
            results |= dict(zip(batch, self._pass(prompts, [requests[i] for i in batch]), strict=True))
        for _ in range(calls - len(batches)):  # join the passes of other processes
            self._pass(prompts, [spare_request(prompts)])
        return [results[i] for i in range(len(requests))]

    def _pass(self, prompts: Sequence[Prompt], requests: list[Request]) -> list[Tensor]:
        inputs = _full_inputs(prompts, requests, self.model.device)
        starts = [len(request.context) for request in requests]
        labels = labels_of(inputs["input_ids"], starts, [len(request.completion) for request in requests])
        return completions_of_rows(self.model.log_probs(labels, **inputs), starts, requests)


def hidden_states(model: PreTrainedModel, prompts: Sequence[Prompt], requests: Sequence[Request]) -> Tensor:
    """Hidden states before the LM head at the positions that predict the completions.

    Args:
        model: The transformers model, run in its current mode, with gradient if enabled.
        prompts: The prompts.
        requests: The requests, run whole in one pass.

    Returns:
        (N, H): the tokens of all completions, one request after the other.
    """
    output = model.base_model(use_cache=False, **_full_inputs(prompts, requests, model.device))
    starts = [len(request.context) for request in requests]
    return torch.cat(completions_of_rows(output.last_hidden_state, starts, requests))


def _full_inputs(prompts: Sequence[Prompt], requests: Sequence[Request], device: torch.device) -> dict[str, Tensor]:
    rows = [prompts[request.prompt] for request in requests]
    return inputs_of(rows, [request.context + request.completion for request in requests], device)


def inputs_of(
    rows: Sequence[Prompt], sequences: Sequence[Ids], device: torch.device, *, left: bool = False
) -> dict[str, Tensor]:
    """Model inputs for sequences that start with the images of these prompts; padded on the right, or on the left."""
    ids, mask = padded(sequences, device, left=left)
    inputs = {"input_ids": ids, "attention_mask": mask}
    for name in rows[0].token_types:  # text, of type 0, follows the images
        types = [tuple(row.token_types[name][: row.images_end].tolist()) for row in rows]
        filled = [t + (0,) * (len(tokens) - len(t)) for t, tokens in zip(types, sequences, strict=True)]
        inputs[name], _ = padded(filled, device, left=left)
    for name in dict.fromkeys(name for row in rows for name in row.images):
        inputs[name] = torch.cat([row.images[name] for row in rows if name in row.images]).to(device)
    return inputs


class Scorer:
    """Runs requests, those of a prompt as a prefix tree if `fast/` is present and the model's attention supports it.

    Args:
        model: The model.
        reduce_max: As in `FullForward`.
        shares: Whether to use prefix trees; None: decide by the model and a trial on the first requests.
        warns: Whether this process warns if prefix trees cannot be used.
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
            requests: Distinct requests.
            max_tokens: Maximum tokens of a pass, padding included.
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
                "scoring runs each prompt again for every context and rollout, because %s does not support prefix "
                "trees: %s. This is slower; the numbers are the same.",
                type(self.model.unwrapped).__name__,
                reason,
            )
        return forward.log_probs(prompts, requests)


def padded(rows: Sequence[Ids], device: torch.device, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """(n, S) ids and attention mask; padding is token 0."""
    width = max(map(len, rows))
    ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long).unbind()
    for row, tokens in enumerate(rows):
        where = slice(width - len(tokens), width) if left else slice(0, len(tokens))
        ids[row, where] = torch.tensor(tokens, dtype=torch.long)
        mask[row, where] = 1
    return ids.to(device, non_blocking=True), mask.to(device, non_blocking=True)


def labels_of(ids: Tensor, starts: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """At the positions that predict completions the next token, -100 elsewhere."""
    labels = torch.full_like(ids, -100)
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        labels[row, start - 1 : start - 1 + length] = ids[row, start : start + length]
    return labels


def completions_of_rows(log_probs: Tensor, starts: Sequence[int], requests: Sequence[Request]) -> list[Tensor]:
    """Log-probs (or hidden states) of each completion. The values of a token are one position before it."""
    return [
        row[start - 1 : start - 1 + len(request.completion)]
        for row, start, request in zip(log_probs, starts, requests, strict=True)
    ]
