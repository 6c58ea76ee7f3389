"""The policy's entropy at the tokens that it sampled. Forward passes only.

Dimensions: T completion tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .forward import hidden_states
from .head import CHUNK, Head
from .requests import Prompt, Request, batches_of, length_of
from .score import evaluating


def token_entropies(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    requests: Sequence[Request],
    *,
    temperature: float = 1.0,
    max_tokens: int = 16384,
) -> list[Tensor]:
    """Entropy of the distribution from which each token of each completion was drawn.

    Args:
        model: The policy.
        prompts: The prompts.
        requests: The completions, each after its prompt.
        temperature: Of the distributions, above 0.
        max_tokens: The most tokens of a forward pass, padding included; one request always fits.

    Returns:
        (T,) entropies [nats] of each request, in their order.
    """
    order = sorted(range(len(requests)), key=lambda place: length_of(requests[place]))
    found: dict[int, Tensor] = {}
    with evaluating(model):
        head = Head.of(model)
        for batch in batches_of(order, lambda place: length_of(requests[place]), max_tokens):
            hidden = hidden_states(model, prompts, [requests[place] for place in batch])
            chunks = (head.log_probs(part, temperature) for part in hidden.split(CHUNK))
            values = torch.cat([-(logps.exp() * logps).sum(-1) for logps in chunks]).cpu()
            lengths = [len(requests[place].completion) for place in batch]
            found |= dict(zip(batch, values.split(lengths), strict=True))
    return [found[place] for place in range(len(requests))]
