"""Evidence in bfloat16 beside float32: sizes and signs, on rollouts of the shipped policy."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

import cepo.scoring.forward
from cepo import load_figures, policy_path
from cepo.data.sampling import Sampling, conversation_of, sample, seeded
from cepo.methods.registry import method_options
from cepo.references.extraction import final_answer
from cepo.scoring.forward import Scorer, ScoringModel, evaluating
from cepo.scoring.head import sampled_log_probs
from cepo.scoring.prompts import PromptEncoder
from cepo.scoring.requests import Prompt, Request

# Dtype of the weights, of the products if autocast, and whether logits are rounded to it as in a model's forward pass.
WAYS = [
    (torch.float32, False, False),
    (torch.bfloat16, False, False),
    (torch.bfloat16, False, True),
    (torch.float32, True, False),
    (torch.float32, True, True),
]
SIZES = (0.01, 0.1)  # of evidence whose sign is compared [nats]


def run(
    device: torch.device, *, prompts: int, rollouts: int, length: int, say: Callable[[Any], None]
) -> list[dict[str, Any]]:
    """One row of results for each precision, with prefix trees and without; the CPU in float32 is the truth."""
    batch = _requests(device, prompts, rollouts, length)
    truth = _evidence(torch.device("cpu"), *batch, torch.float32, autocast=False, rounded=False, shares=False)
    results = []
    for dtype, autocast, rounded in WAYS:
        for shares in (False, True):
            found = _evidence(device, *batch, dtype, autocast=autocast, rounded=rounded, shares=shares)
            off = (found - truth).abs()
            row = {
                "what": f"{'autocast' if autocast else str(dtype)[6:]}, {'rounded' if rounded else 'float32'} logits",
                "prefix_cache": shares,
                "tokens": truth.numel(),
                "mean_difference": float(off.mean()),
                "largest_difference": float(off.max()),
            }
            for size in SIZES:
                large = truth.abs() > size
                name = f"above_{size}".replace(".", "_")
                row[name] = int(large.sum())
                row[f"wrong_signs_{name}"] = int((found.sign() != truth.sign())[large].sum())
            results.append(row)
            say(row)
    return results


def _load(device: torch.device, dtype: torch.dtype) -> Any:
    return AutoModelForImageTextToText.from_pretrained(policy_path(), dtype=dtype).to(device)


def _requests(device: torch.device, number: int, rollouts: int, length: int) -> tuple[list[Prompt], list[Request]]:
    """Sampled rollouts, each in two contexts: with its own answer and with the next problem's."""
    processor = AutoProcessor.from_pretrained(policy_path(), padding_side="left")
    rows = list(load_figures("test", number))
    conversations = [conversation_of(row, processor) for row in rows]
    each = [conversation for conversation in conversations for _ in range(rollouts)]
    with seeded(0):
        completions = sample(_load(device, torch.float32), processor, each, Sampling(max_completion_length=length))
    encoder, options = PromptEncoder(processor), method_options("cepo")
    prompts = [encoder.prompt(conversation) for conversation in conversations]
    requests = []
    for index, completion in enumerate(completions):
        own = index // rollouts
        for row in (rows[own], rows[(own + 1) % number]):
            hint = options.hint(final_answer(row["solution"], "auto"))
            context = encoder.with_hint(prompts[own], conversations[own], hint)
            requests.append(Request(own, context, completion))
    return prompts, requests


def _evidence(
    device: torch.device,
    prompts: list[Prompt],
    requests: list[Request],
    dtype: torch.dtype,
    *,
    autocast: bool,
    rounded: bool,
    shares: bool,
) -> Tensor:
    """(tokens,) log P(y | own answer) - log P(y | other answer) [nats]."""
    model = _load(device, dtype)
    precision: Any = partial(torch.autocast, device.type, torch.bfloat16) if autocast else nullcontext
    scorer = Scorer(ScoringModel(model, model, precision), shares=shares)
    with evaluating(model), _rounded_logits() if rounded else nullcontext():
        distinct = list(dict.fromkeys(requests))
        found = dict(zip(distinct, scorer.log_probs(prompts, distinct, max_tokens=8192), strict=True))
    values = [found[request].float().cpu() for request in requests]
    return torch.cat(values[::2]) - torch.cat(values[1::2])


@contextmanager
def _rounded_logits() -> Iterator[None]:
    """Round logits of scoring passes as a model's forward pass does."""
    with mock.patch.object(cepo.scoring.forward, "sampled_log_probs", partial(sampled_log_probs, rounded=True)):
        yield
