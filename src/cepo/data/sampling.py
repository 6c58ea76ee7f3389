"""Sample and judge rollouts outside of the trainer, for `cepo evaluate`, `cepo explain` and custom training loops."""

import asyncio
import inspect
import logging
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from transformers import GenerationConfig, PreTrainedModel, ProcessorMixin, TrainerState

from ..acceleration import fast
from ..references.extraction import final_answer
from ..references.groups import Group, Ids, Messages, Rollout
from ..scoring.forward import evaluating
from ..scoring.prompts import left_padding, special_tokens, text_of, thinking_opening, tokenizer_of, with_parts
from ..scoring.requests import TOKEN_TYPES, distinct_prompts
from .errors import DatasetError
from .pixels import with_opaque_images
from .reward_validation import validated

_logger = logging.getLogger(__name__)

# As in TRL: keyword arguments (prompts, completions, columns, ...) -> rewards, None for no verdict. May be async.
RewardFunc = Callable[..., Any]


@dataclass(frozen=True)
class Sampling:
    """Options of sampling.

    Attributes:
        max_completion_length: Longest completion [tokens].
        temperature: 0 is greedy.
        top_p, top_k: 1.0 and 0 turn them off, as in TRL.
        chat_template_kwargs: Arguments of the chat template, as in training.
        batch_size: Completions sampled together.
    """

    max_completion_length: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    chat_template_kwargs: dict[str, Any] | None = None
    batch_size: int = 64


# Values that turn these options off; see `sample`.
_OFF = {"repetition_penalty": 1.0, "min_p": 0.0, "typical_p": 1.0, "no_repeat_ngram_size": 0}


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Sample with this seed; the caller's random state is restored."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def conversation_of(row: dict[str, Any], processing_class: Any) -> Messages:
    """The prompt of a row; with its images if the model has a processor."""
    if not isinstance(processing_class, ProcessorMixin):
        return row["prompt"]
    row = with_opaque_images(row)
    images = row.get("images") or ([row["image"]] if row.get("image") is not None else [])
    return with_parts(row["prompt"], images)


def sample(
    model: PreTrainedModel, processing_class: Any, conversations: Sequence[Messages], sampling: Sampling
) -> list[Ids]:
    """One completion of each conversation: its token ids, including the end token if it was sampled. See `seeded`."""
    tokenizer = tokenizer_of(processing_class)
    random = {"do_sample": True, "temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    # Other options of the model's generation_config would change the distribution whose log-probs are used.
    config = model.generation_config
    off = {name: value for name, value in _OFF.items() if getattr(config, name, None) not in (None, value)}
    ends = end_tokens(model, processing_class)
    generation = GenerationConfig(
        max_new_tokens=sampling.max_completion_length,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=sorted(ends),
        suppress_tokens=placeholder_ids(model.config) or None,
        **off,
        **(random if sampling.temperature > 0 else {"do_sample": False}),
    )
    completions: list[Ids] = []
    with evaluating(model):
        for start in range(0, len(conversations), sampling.batch_size):
            part = conversations[start : start + sampling.batch_size]
            inputs = _inputs_of(part, processing_class, sampling).to(model.device)
            with _sharing_prompts(model, part, processing_class, sampling, ends):
                output = model.generate(**inputs, generation_config=generation)
            rows = output[:, inputs["input_ids"].shape[1] :].tolist()
            completions += [_until_end(row, ends) for row in rows]
    return completions


def end_tokens(model: PreTrainedModel, processing_class: Any) -> set[int]:
    """The end tokens of a completion, as in TRL: those of the model's generation_config and of its tokenizer."""
    declared = model.generation_config.eos_token_id
    ends = declared if isinstance(declared, list) else [declared]
    return {token for token in (tokenizer_of(processing_class).eos_token_id, *ends) if token is not None}


def check_special_tokens(prompts: Iterable[Any], processing_class: Any, name: str = "the training set") -> None:
    """Refuse prompts with a special token of the model as text, which the tokenizer would parse as the token."""
    special = special_tokens(processing_class)
    if not special:
        return
    pattern = re.compile("|".join(map(re.escape, special)))
    found: dict[int, str] = {}
    for row, prompt in enumerate(prompts):
        texts = [prompt] if isinstance(prompt, str) else [text for _, text in text_of_messages(prompt or [])]
        if match := pattern.search("\n".join(texts)):
            found[row] = match[0]
    if found:
        row, token = next(iter(found.items()))
        others = f" ({len(found)} rows have one)" if len(found) > 1 else ""
        raise DatasetError(
            f"row {row} of {name}: 'prompt' has the special token {token!r} as text{others}. Remove it from the text, "
            "or drop the row"
        )


def placeholder_ids(config: Any) -> list[int]:
    """Placeholder tokens of images and videos, which have no features when sampled. TRL suppresses them as well."""
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    return sorted({token for name in names if isinstance(token := getattr(config, name, None), int)})


def _inputs_of(conversations: Sequence[Messages], processing_class: Any, sampling: Sampling) -> Any:
    return processing_class.apply_chat_template(
        list(conversations),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        **left_padding(processing_class),
        **(sampling.chat_template_kwargs or {}),
    )


# Each model's generator, which tries once whether the model's prompts can be shared.
_GENERATORS: WeakKeyDictionary[PreTrainedModel, Any] = WeakKeyDictionary()


def _sharing_prompts(
    model: PreTrainedModel, conversations: Sequence[Messages], processing_class: Any, sampling: Sampling, ends: set[int]
) -> AbstractContextManager:
    """Run each distinct prompt once while sampling, if `fast/` is installed and the model allows it."""
    quick = fast()
    if quick is None:
        return nullcontext()
    generator = _GENERATORS.setdefault(model, quick.PrefixSharingGenerator(_logger.info))
    # The same object has the same prompt.
    firsts, owners = distinct_prompts([[id(conversation)] for conversation in conversations], lambda *_: True)
    prompts = None
    if len(firsts) < len(owners) and generator.shares is not False:
        inputs = _inputs_of([conversations[row] for row in firsts], processing_class, sampling).to(model.device)
        images = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask", *TOKEN_TYPES)}
        prompts = quick.SharedPrompts(firsts, owners, images)
    return generator.generating(model, ends, prompts)


def answer_texts(processing_class: Any, completions: Sequence[Ids], sampling: Sampling) -> list[str]:
    """Completions as text, after the delimiter with which the prompt opens their thinking, if it does."""
    opening = thinking_opening(processing_class, sampling.chat_template_kwargs or {})
    return [opening + text_of(processing_class, ids) for ids in completions]


def _until_end(ids: list[int], ends: set[int]) -> Ids:
    end = next((position for position, token in enumerate(ids) if token in ends), len(ids) - 1)
    return tuple(ids[: end + 1])


def verdicts(
    reward_func: RewardFunc,
    rows: Sequence[dict[str, Any]],
    texts: Sequence[str],
    completion_ids: Sequence[Ids],
    extractor: str = "auto",
) -> list[float | None]:
    """The rewards of one completion of each row, from a reward function called as in training.

    Values that the function logs by `log_extra` and `log_metric` are dropped.
    """
    if not rows:
        return []
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    columns = {
        key: [row[key] for row in rows] for key in rows[0] if key not in ("prompt", "completion", "completion_ids")
    }
    name = getattr(reward_func, "__name__", type(reward_func).__name__)
    found = validated(reward_func, name, extractor=extractor)(
        prompts=[row["prompt"] for row in rows],
        completions=completions,
        completion_ids=[list(ids) for ids in completion_ids],
        **columns,
        trainer_state=TrainerState(),
        log_extra=lambda *_, **__: None,
        log_metric=lambda *_, **__: None,
    )
    return asyncio.run(found) if inspect.iscoroutine(found) else found


def group_advantages(rewards: Sequence[float | None]) -> list[float]:
    """GRPO's advantages of a group as in TRL: (reward - mean) / (standard deviation + 1e-4).

    Rollouts without a reward (None) are left out of both, and get the advantage 0.
    """
    known = [reward for reward in rewards if reward is not None]
    mean = statistics.fmean(known) if known else 0.0
    deviation = statistics.stdev(known) if len(known) > 1 else 0.0
    return [0.0 if reward is None else (reward - mean) / (deviation + 1e-4) for reward in rewards]


def sampled_groups(
    model: PreTrainedModel,
    processing_class: Any,
    rows: Sequence[dict[str, Any]],
    num_generations: int,
    sampling: Sampling,
    reward_func: RewardFunc,
    *,
    threshold: float = 0.5,
    extractor: str = "auto",
) -> list[Group]:
    """Sample a group of rollouts for each row, judged as in training."""
    check_special_tokens((row["prompt"] for row in rows), processing_class, "the problems")
    each = [row for row in rows for _ in range(num_generations)]
    conversations = [conversation_of(row, processing_class) for row in rows]
    completions = sample(model, processing_class, [c for c in conversations for _ in range(num_generations)], sampling)
    texts = answer_texts(processing_class, completions, sampling)
    rewards = verdicts(reward_func, each, texts, completions, extractor)
    groups = []
    for index, (row, messages) in enumerate(zip(rows, conversations, strict=True)):
        own = slice(index * num_generations, (index + 1) * num_generations)
        advantages = group_advantages(rewards[own])
        rollouts = [
            Rollout(
                final_answer(text, extractor),
                reward or 0.0,
                None if reward is None else reward >= threshold,
                text,
                ids=ids,
                advantage=advantage,
            )
            for text, reward, ids, advantage in zip(texts[own], rewards[own], completions[own], advantages, strict=True)
        ]
        groups.append(Group(messages, row["solution"], rollouts, row, index))
    return groups


def text_of_messages(messages: Messages) -> list[tuple[str, str]]:
    """(role, text) of each message, without images."""
    result = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = "".join(part.get("text") or "" for part in content or [] if part.get("type") == "text")
        result.append((message["role"], content))
    return result


def images_of_messages(messages: Messages) -> list[Image.Image]:
    """The images of a conversation, in order."""
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    return [part["image"] for part in parts if isinstance(part.get("image"), Image.Image)]
