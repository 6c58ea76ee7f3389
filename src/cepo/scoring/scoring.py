"""Teachers: the policy itself, re-reading rollouts with another prompt. Forward passes only.

`score` is the one way in: it takes rollouts and, for each, the contexts to re-read them in, and returns log-probs. How
the passes are made is in `passes.py`.

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

from ..methods.registry import STUDENT, Context
from ..references.hints import Messages
from .requests import TOKEN_TYPES, Ids, Prompt, Reading, common_length, end_of_images


@dataclass(frozen=True)
class PromptEncoder:
    """Token ids of a prompt with a hint, through the model's own chat template, exactly as TRL makes the student's.

    Attributes:
        processing_class: Tokenizer, or processor of a vision-language model.
        is_vlm: Whether it is a processor.
        options: Further arguments of `apply_chat_template` (tools, chat_template, ...).
    """

    processing_class: Any
    is_vlm: bool
    options: dict[str, Any] = field(default_factory=dict)

    def prompt(self, messages: Messages) -> Prompt:
        """A conversation as the model reads it, for rollouts that no trainer sampled."""
        encoded = self._encoded(messages, return_tensors="pt")
        fields = {name: value for name, value in encoded.items() if name not in ("input_ids", "attention_mask")}
        ids = tuple(encoded["input_ids"][0].tolist())
        token_types = {name: fields.pop(name)[0] for name in TOKEN_TYPES if name in fields}
        if not fields:
            return Prompt(ids, token_types=token_types)
        image_token = getattr(self.processing_class, "image_token_id", None)
        return Prompt(ids, fields, token_types, end_of_images(ids, token_types.values(), image_token))

    def with_hint(self, prompt: Prompt, plain: Messages, hinted: Messages) -> Ids:
        """Token ids of `hinted`, given the `prompt` that `plain` became.

        Images cost the processor far more than text, so the text alone is tokenised and grafted onto the prompt: what
        the two conversations share is the prompt's, images expanded.

        Raises:
            ValueError: If an image follows the hint.
        """
        before, after = self._text_ids(plain), self._text_ids(hinted)
        shared = common_length([before, after])
        tail = before[shared:]
        if tail and prompt.ids[-len(tail) :] == tail:
            ids = prompt.ids[: -len(tail)] + after[shared:]
        else:  # the template or the tokenizer treats text apart from images in another way than together with them
            ids = tuple(self._encoded(hinted)["input_ids"][0])
        if ids[: prompt.images_end] != prompt.ids[: prompt.images_end]:
            raise ValueError(
                "a prompt has an image after its last user turn's text, where the hint stands; put images first, or "
                "use method='grpo'"
            )
        return ids

    def _text_ids(self, messages: Messages) -> Ids:
        """Token ids with one placeholder for each image."""
        text = self.processing_class.apply_chat_template(
            self._typed(messages), add_generation_prompt=True, tokenize=False, **self.options
        )
        tokenizer = self.processing_class.tokenizer if self.is_vlm else self.processing_class
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    def _encoded(self, messages: Messages, **kwargs: Any) -> Any:
        return self.processing_class.apply_chat_template(
            [self._typed(messages)],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            **kwargs,
            **self.options,
        )

    def _typed(self, messages: Messages) -> Messages:
        return prepare_multimodal_messages(messages) if self.is_vlm else messages


def left_padding(processing_class: Any) -> dict[str, Any]:
    """Arguments of `apply_chat_template` that pad a batch on the left, for tokenizers and for processors."""
    padding = {"padding": True, "padding_side": "left"}
    return {"processor_kwargs": padding} if isinstance(processing_class, ProcessorMixin) else padding


@dataclass(frozen=True)
class Rollouts:
    """Completions as the student sampled them.

    Attributes:
        completion_ids: (B, T) token ids, padded on the right.
        wanted: (B, T) bool, the tokens whose log-probs are wanted. What follows the last of them is not run.
        prompts: For each rollout, the index of its prompt.
    """

    completion_ids: Tensor
    wanted: Tensor
    prompts: Sequence[int]

    def completions(self) -> list[Ids]:
        """Token ids of each rollout, up to its last wanted token."""
        # Masks have holes where a tool answered; the tokens there are read, but nobody asks how likely they were.
        after = torch.arange(1, self.wanted.shape[1] + 1, device=self.wanted.device)
        lengths = (self.wanted * after).amax(dim=1).tolist()
        return [tuple(ids[:length]) for ids, length in zip(self.completion_ids.tolist(), lengths, strict=True)]


# (prompts, readings) -> log-probs [nats] of each reading's completion: `Concatenated.read` or `SharedPrompt.read`.
Read = Callable[[Sequence[Prompt], Sequence[Reading]], list[Tensor]]


def score(
    contexts: Sequence[Sequence[Ids | None]], rollouts: Rollouts, prompts: Sequence[Prompt], read: Read
) -> Tensor:
    """Log-probs of the rollouts' own tokens under each of their contexts.

    The completion tokens are those that were sampled, never decoded and encoded again. A completion that several
    rollouts share is read once in each context.

    Args:
        contexts: C lists of B contexts, the token ids of a rollout's prompt as a teacher reads it; None where the
            rollout is not to be scored.
        rollouts: The B rollouts.
        prompts: The prompts that they answer.
        read: Makes the forward passes.

    Returns:
        (C, B, T) log-probs [nats]; NaN where there was no context, 0 after the last wanted token.
    """
    completions = rollouts.completions()
    readings = {
        (c, b): Reading(rollouts.prompts[b], context, completions[b])
        for c, row in enumerate(contexts)
        for b, context in enumerate(row)
        if context is not None and completions[b]
    }
    unique = list(dict.fromkeys(readings.values()))
    log_probs = dict(zip(unique, read(prompts, unique), strict=True))
    present = torch.tensor([[context is not None for context in row] for row in contexts])
    shape = (*present.shape, rollouts.completion_ids.shape[1])
    result = (
        torch.where(present.unsqueeze(-1), 0.0, torch.nan).expand(shape).to(rollouts.completion_ids.device, copy=True)
    )
    for (c, b), reading in readings.items():
        result[c, b, : len(reading.completion)] = log_probs[reading]
    return result


def score_contexts(
    contexts: Sequence[Sequence[Context]],
    rollouts: Rollouts,
    prompts: Sequence[Prompt],
    *,
    hinted: Callable[[int, str], Ids],
    read: Read,
    student: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probs of each rollout under a list of contexts of its own.

    Args:
        contexts: For each of the B rollouts its contexts; none for one that is not read.
        rollouts: The rollouts.
        prompts: The prompts that they answer.
        hinted: (index of a prompt, answer) -> the prompt's token ids with the hint.
        read: Makes the forward passes.
        student: (B, T) log-probs under STUDENT [nats] where they are known already; None: they are read.

    Returns:
        (C, B, T) log-probs [nats], anything where there was no context, and (C, B) bool, where there was one. C is at
        least 2, so that the stages after this one need no special case for an empty batch.
    """
    encoded: dict[tuple[int, Context], Ids] = {(index, STUDENT): prompt.ids for index, prompt in enumerate(prompts)}
    count = max(2, *map(len, contexts))
    present = torch.zeros(count, len(contexts), dtype=torch.bool)
    known = torch.zeros_like(present)
    table: list[list[Ids | None]] = [[None] * len(contexts) for _ in range(count)]
    for row, answers in enumerate(contexts):
        for position, answer in enumerate(answers):
            present[position, row] = True
            known[position, row] = answer is STUDENT and student is not None
            if not known[position, row]:
                key = (rollouts.prompts[row], answer)
                if answer is not STUDENT and key not in encoded:
                    encoded[key] = hinted(rollouts.prompts[row], answer)
                table[position][row] = encoded[key]
    logps = score(table, rollouts, prompts, read)
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
