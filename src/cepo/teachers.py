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
from transformers import ProcessorMixin
from trl.data_utils import prepare_multimodal_messages

from .hints import Messages

# Per-token companions of `input_ids` that some processors return, padded like the prompt and 0 on completions.
_PER_TOKEN_FIELDS = {"mm_token_type_ids", "token_type_ids"}


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

    def encode(self, prompts: Sequence[Messages]) -> dict[str, Any]:
        """Model inputs of prompts, padded on the left: `input_ids` and `attention_mask` (n, P), and for images what
        the processor makes of them, with `num_images` per prompt.

        Raises:
            ValueError: For a processor that cuts images into tiles, which cannot yet be told apart by prompt.
        """
        if self.is_vlm:
            prompts = [prepare_multimodal_messages(prompt) for prompt in prompts]
        encoded = dict(
            self.processing_class.apply_chat_template(
                conversation=list(prompts),
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                **left_padding(self.processing_class),
                **self.options,
            )
        )
        if "pixel_values" in encoded:
            counts = [_count_images(prompt) for prompt in prompts]
            pixels = encoded["pixel_values"]
            if "spatial_shapes" in encoded or (pixels.ndim == 4 and pixels.shape[0] != sum(counts)):
                raise ValueError(
                    f"{type(self.processing_class).__name__} cuts images into tiles, which teachers cannot read yet; "
                    "switch its tiling off, or use method='grpo'"
                )
            encoded["num_images"] = counts
        return encoded


def left_padding(processing_class: Any) -> dict[str, Any]:
    """Arguments of `apply_chat_template` that pad a batch on the left, for tokenizers and for processors."""
    padding = {"padding": True, "padding_side": "left"}
    return {"processor_kwargs": padding} if isinstance(processing_class, ProcessorMixin) else padding


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
        scored = _score_batch(prompts, rollouts, rows, encoder, log_probs)
        result[[c for c, _ in batch], rows] = scored.to(result.dtype)
    for _ in range(equal_calls(len(batches)) - len(batches)):
        _score_batch([spare or []], rollouts, [0], encoder, log_probs)
    return result


def _score_batch(
    prompts: Sequence[Messages],
    rollouts: Rollouts,
    rows: list[int],
    encoder: PromptEncoder,
    log_probs: LogProbs,
) -> Tensor:
    """(n, T) log-probs of the completions `rows` after `prompts`, as plain concatenation."""
    completion_ids, completion_mask = rollouts.completion_ids[rows], rollouts.completion_mask[rows]
    inputs = {
        key: value.to(completion_ids.device) if isinstance(value, Tensor) else value
        for key, value in encoder.encode(prompts).items()
    }
    for key in _PER_TOKEN_FIELDS & inputs.keys():
        inputs[key] = torch.cat([inputs[key], inputs[key].new_zeros(completion_ids.shape)], dim=1)
    prompt_ids, prompt_mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
    return log_probs(
        torch.cat([prompt_ids, completion_ids], dim=1),
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
