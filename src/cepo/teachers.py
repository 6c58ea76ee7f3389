"""Teachers: the policy itself, re-reading rollouts with another prompt. Forward passes only.

`score` is the one way in: it takes rollouts and, for each, the prompts to re-read them with, and returns log-probs.

Dimensions: C contexts, B rollouts, T completion tokens, P prompt tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from trl.data_utils import prepare_multimodal_messages

from .hints import Messages

# Per-token companions of `input_ids` that some processors return, padded like the prompt and 0 on completions.
_PER_TOKEN_FIELDS = ("mm_token_type_ids", "token_type_ids")


@dataclass(frozen=True)
class Rollouts:
    """Completions as the student sampled them.

    Attributes:
        completion_ids: (B, T) token ids, padded on the right.
        completion_mask: (B, T), 1 on the tokens of the completion, 0 on padding.
    """

    completion_ids: Tensor
    completion_mask: Tensor


@dataclass(frozen=True)
class PromptEncoder:
    """Turns conversations into model inputs through the model's own chat template, exactly as TRL does.

    Attributes:
        processing_class: Tokenizer, or processor of a vision-language model.
        is_vlm: Whether it is a processor.
        options: Further arguments of `apply_chat_template` (tools, chat_template, ...).
    """

    processing_class: Any
    is_vlm: bool
    options: dict[str, Any] = field(default_factory=dict)

    def encode(self, prompts: Sequence[Messages]) -> tuple[list[list[int]], dict[str, Any]]:
        """Token ids of each prompt, and what else the model needs (pixels and their layout)."""
        if self.is_vlm:
            prompts = [prepare_multimodal_messages(prompt) for prompt in prompts]
        encoded = self.processing_class.apply_chat_template(
            conversation=list(prompts),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            **self.options,
        )
        fields = {key: value for key, value in encoded.items() if key not in ("input_ids", "attention_mask")}
        if "pixel_values" in fields:
            fields["num_images"] = [_count_images(prompt) for prompt in prompts]
        return encoded["input_ids"], fields


def _count_images(messages: Messages) -> int:
    parts = [part for message in messages for part in message["content"] if isinstance(part, dict)]
    return sum(part["type"] == "image" for part in parts)


# (input_ids (n, P+T), attention_mask (n, P+T), T, **fields) -> (n, T) log-probs of the last T tokens [nats]
LogProbs = Callable[..., Tensor]


def score(
    contexts: Sequence[Sequence[Messages | None]],
    rollouts: Rollouts,
    *,
    encoder: PromptEncoder,
    log_probs: LogProbs,
    pad_token_id: int,
    batch_size: int,
    equal_calls: Callable[[int], int] = lambda calls: calls,
    spare: Messages | None = None,
) -> Tensor:
    """Log-probs of the rollouts' own tokens under each of their contexts.

    The completion tokens are those that were sampled, never decoded and encoded again. What follows a completion is
    padding that is not attended to.

    Args:
        contexts: C lists of B prompts; None where a rollout is not to be scored.
        rollouts: The B rollouts.
        encoder: Turns prompts into model inputs.
        log_probs: The model's log-prob function, without (B, T, V) logits.
        pad_token_id: Fills prompts on the left.
        batch_size: Rows per forward pass.
        equal_calls: Told how many forward passes this process needs, says how many it must make: under FSDP and
            ZeRO-3 every process has to take part in each pass of any other.
        spare: The prompt of the passes that this process makes for the others' sake; nobody reads their result.

    Returns:
        (C, B, T) log-probs [nats]; NaN where there was no prompt, arbitrary on padding.
    """
    ids = rollouts.completion_ids
    result = torch.full((len(contexts), *ids.shape), torch.nan, device=ids.device)
    jobs = [(c, b) for c, row in enumerate(contexts) for b, prompt in enumerate(row) if prompt is not None]
    batches = [jobs[start : start + batch_size] for start in range(0, len(jobs), batch_size)]
    for batch in batches:
        prompts = [prompt for c, b in batch if (prompt := contexts[c][b]) is not None]
        rows = [b for _, b in batch]
        scored = _score_batch(prompts, rollouts, rows, encoder, log_probs, pad_token_id)
        result[[c for c, _ in batch], rows] = scored.to(result.dtype)
    for _ in range(equal_calls(len(batches)) - len(batches)):
        _score_batch([spare or []], rollouts, [0], encoder, log_probs, pad_token_id)
    return result


def _score_batch(
    prompts: Sequence[Messages],
    rollouts: Rollouts,
    rows: list[int],
    encoder: PromptEncoder,
    log_probs: LogProbs,
    pad_token_id: int,
) -> Tensor:
    """(n, T) log-probs of the completions `rows` after `prompts`, as plain concatenation."""
    completion_ids, completion_mask = rollouts.completion_ids[rows], rollouts.completion_mask[rows]
    device = completion_ids.device
    prompt_ids, fields = encoder.encode(prompts)
    width = max(len(ids) for ids in prompt_ids)

    def left_padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
        return torch.tensor([[value] * (width - len(row)) + list(row) for row in rows], device=device)

    prompt_mask = left_padded([[1] * len(ids) for ids in prompt_ids], 0)
    inputs = {}
    for key, value in fields.items():
        if key in _PER_TOKEN_FIELDS:
            values = left_padded([list(row) for row in value], 0)
            inputs[key] = torch.cat([values, values.new_zeros(completion_ids.shape)], dim=1)
        elif isinstance(value, Tensor):
            inputs[key] = value.to(device)
        else:
            inputs[key] = value
    return log_probs(
        torch.cat([left_padded(prompt_ids, pad_token_id), completion_ids], dim=1),
        torch.cat([prompt_mask, completion_mask.to(prompt_mask.dtype)], dim=1),
        completion_ids.shape[1],
        **inputs,
    )


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
