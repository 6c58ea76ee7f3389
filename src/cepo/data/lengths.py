"""Prompt lengths in tokens."""

from collections.abc import Callable
from typing import Any

from datasets import Dataset, IterableDataset

from ..scoring.prompts import PromptEncoder
from .sampling import conversation_of


def prompt_length(processing_class: Any, template_options: dict[str, Any]) -> Callable[[dict[str, Any]], int]:
    """A function that counts the tokens of a row's prompt, including those of its images."""
    encoder = PromptEncoder(processing_class, template_options)

    def count(row: dict[str, Any]) -> int:
        prompt = row["prompt"]
        if isinstance(prompt, str):
            return len(processing_class(text=prompt)["input_ids"])
        return len(encoder.prompt(conversation_of(row, processing_class)).ids)

    return count


def without_long_prompts(
    dataset: Dataset | IterableDataset, limit: int, length: Callable[[dict[str, Any]], int], notes: list[str]
) -> Dataset | IterableDataset:
    """Drop rows whose prompt is longer than `limit` tokens."""
    kept = dataset.filter(lambda row: length(row) <= limit)
    if isinstance(dataset, IterableDataset):
        notes.append(f"prompts longer than {limit} tokens are dropped when the stream reaches them")
        return kept
    if len(kept) == 0:
        raise ValueError(f"max_prompt_length={limit}: all {len(dataset)} prompts are longer")
    notes.append(f"{len(dataset) - len(kept)} of {len(dataset)} prompts dropped: longer than {limit} tokens")
    return kept
