"""Prompts by their length in tokens."""

from collections.abc import Callable
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import ProcessorMixin

from ..scoring.prompts import PromptEncoder
from .sampling import conversation_of


def prompt_length(processing_class: Any, template_options: dict[str, Any]) -> Callable[[dict[str, Any]], int]:
    """Counts the tokens of a row's prompt, those of its images among them.

    Args:
        processing_class: The model's tokenizer or processor.
        template_options: Further arguments of the chat template, as in training.
    """
    encoder = PromptEncoder(processing_class, isinstance(processing_class, ProcessorMixin), template_options)

    def count(row: dict[str, Any]) -> int:
        prompt = row["prompt"]
        if isinstance(prompt, str):
            return len(processing_class(text=prompt)["input_ids"])
        return len(encoder.prompt(conversation_of(row, processing_class)).ids)

    return count


def without_long_prompts(
    dataset: Dataset | IterableDataset, limit: int, length: Callable[[dict[str, Any]], int], notes: list[str]
) -> Dataset | IterableDataset:
    """The rows whose prompt has at most `limit` tokens.

    Args:
        dataset: In TRL's columns.
        limit: [tokens]
        length: As `prompt_length` makes it.
        notes: Takes a line that says how many were left out. A stream leaves them out as they come, uncounted.

    Raises:
        ValueError: If none is left.
    """
    kept = dataset.filter(lambda row: length(row) <= limit)
    if isinstance(dataset, IterableDataset):
        notes.append(f"prompts of more than {limit} tokens are left out as the stream brings them")
        return kept
    if len(kept) == 0:
        raise ValueError(f"max_prompt_length={limit}: every one of {len(dataset)} prompts is longer")
    notes.append(f"{len(dataset) - len(kept)} of {len(dataset)} prompts left out, of more than {limit} tokens")
    return kept
