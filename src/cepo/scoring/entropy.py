"""Entropy of the policy at sampled tokens.

Dimensions: T completion tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .forward import evaluating, hidden_states
from .head import CHUNK, Head
from .requests import Prompt, Request, batches_of, length_of


def token_entropies(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    requests: Sequence[Request],
    *,
    temperature: float = 1.0,
    max_tokens: int = 16384,
) -> list[Tensor]:
    """Entropy of the distribution from which each completion token was sampled.

    Args:
        model: The policy.
        prompts: The prompts.
        requests: The completions, each after its prompt.
        temperature: Temperature of the distributions, above 0.
        max_tokens: Maximum tokens of a forward pass, padding included; one request always fits.

    Returns:
        (T,) entropies [nats] of each request, in their order.
    """
    order = sorted(range(len(requests)), key=lambda index: length_of(requests[index]))
    found: dict[int, Tensor] = {}
    with evaluating(model):
        head = Head.of(model)
        for batch in batches_of(order, lambda index: length_of(requests[index]), max_tokens):
            hidden = hidden_states(model, prompts, [requests[index] for index in batch])
            chunks = (head.log_probs(part, temperature) for part in hidden.split(CHUNK))
            values = torch.cat([-(logps.exp() * logps).sum(-1) for logps in chunks]).cpu()
            lengths = [len(requests[index].completion) for index in batch]
            found |= dict(zip(batch, values.split(lengths), strict=True))
    return [found[index] for index in range(len(requests))]
