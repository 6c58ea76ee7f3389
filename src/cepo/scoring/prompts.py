"""Token ids of prompts with and without hints, by the model's chat template, equal to those of TRL."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import ProcessorMixin

from ..references.extraction import opens_thinking
from ..references.groups import Ids, Messages
from ..references.hint_content import Part
from ..references.hints import MARK, add_hint
from .requests import TOKEN_TYPES, Prompt, common_length, end_of_images


def typed(processing_class: Any, messages: Messages) -> Messages:
    """A conversation for the chat template: a processor requires texts as typed parts."""
    if not isinstance(processing_class, ProcessorMixin):
        return messages
    return [
        {**turn, "content": [{"type": "text", "text": turn["content"]}]}
        if isinstance(turn.get("content"), str)
        else turn
        for turn in messages
    ]


def with_parts(messages: Messages, images: Sequence[Any] = ()) -> Messages:
    """A conversation in typed parts with its images in place, equal to TRL's `prepare_multimodal_messages`.

    Images fill the placeholders in order. Without placeholders they go before the text of the first user turn.

    Args:
        messages: Conversation whose `content` is text or a list of typed parts.
        images: Images that are not yet in the conversation.

    Raises:
        ValueError: If the numbers of placeholders and images differ.
    """
    remaining, typed, placed = list(images), [], False
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            placeholders = [{"type": "image"} for _ in images] if message["role"] == "user" and not placed else []
            placed = placed or message["role"] == "user"
            content = [*placeholders, {"type": "text", "text": content}]
        typed.append({**message, "content": content} if "content" in message else message)

    def empty(part: dict[str, Any]) -> bool:
        return part["type"] == "image" and "image" not in part

    turns = [message for message in typed if message.get("content") and message["role"] != "tool"]
    count = sum(empty(part) for message in turns for part in message["content"])
    if count != len(remaining):
        raise ValueError(f"a conversation has {count} image placeholders, got {len(remaining)} images")
    for message in turns:
        parts = message["content"]
        message["content"] = [{**part, "image": remaining.pop(0)} if empty(part) else part for part in parts]
    return typed


def special_tokens(processing_class: Any) -> list[str]:
    """All special tokens of a tokenizer, including those for images and turns, longest first."""
    tokenizer = tokenizer_of(processing_class)
    added = [token.content for token in getattr(tokenizer, "added_tokens_decoder", {}).values() if token.special]
    return sorted({*tokenizer.all_special_tokens, *added}, key=lambda token: (-len(token), token))


def with_texts(messages: Messages, change: Callable[[str], str]) -> Messages:
    """A conversation with a function applied to its texts."""

    def changed(content: Any) -> Any:
        if isinstance(content, str):
            return change(content)
        parts = content or []
        return [{**part, "text": change(part["text"])} if isinstance(part.get("text"), str) else part for part in parts]

    return [{**turn, "content": changed(turn["content"])} if turn.get("content") else turn for turn in messages]


def without_marks(text: str) -> str:
    """A hint for a processor that tokenizes whole conversations: a space splits each special token of an answer."""
    return text.replace(MARK, " ")


@dataclass(frozen=True)
class PromptEncoder:
    """Encodes prompts with hints by the model's chat template, with the token ids of TRL.

    Attributes:
        processing_class: Tokenizer, or processor of a vision-language model.
        options: Further arguments of `apply_chat_template` (tools, chat_template, ...).
    """

    processing_class: Any
    options: dict[str, Any] = field(default_factory=dict)

    def prompt(self, messages: Messages) -> Prompt:
        """The prompt of a conversation, for rollouts sampled outside a trainer."""
        encoded = self._encoded(messages, return_tensors="pt")
        fields = {name: value for name, value in encoded.items() if name not in ("input_ids", "attention_mask")}
        ids = tuple(encoded["input_ids"][0].tolist())
        token_types = {name: fields.pop(name)[0] for name in TOKEN_TYPES if name in fields}
        if not fields:
            return Prompt(ids, token_types=token_types)
        image_token = getattr(self.processing_class, "image_token_id", None)
        return Prompt(ids, fields, token_types, end_of_images(ids, token_types.values(), image_token))

    def with_hint(self, prompt: Prompt, messages: Messages, hint: str) -> Ids:
        """Token ids of a conversation with a hint.

        Only text is tokenized again, since processing images is slow: the hinted text after the common prefix replaces
        the end of the prompt, whose images are expanded.

        Args:
            prompt: The prompt of the conversation.
            messages: The conversation.
            hint: The hint, from `fill_hint`.

        Raises:
            ValueError: If an image follows the hint.
        """
        hinted = add_hint(messages, hint)
        before, after = self._text_ids(messages), self._text_ids(hinted)
        shared = common_length([before, after])
        tail = before[shared:]
        if tail and prompt.ids[-len(tail) :] == tail:
            ids = prompt.ids[: -len(tail)] + after[shared:]
        else:  # the processor tokenizes the text differently
            ids = tuple(self._encoded(with_texts(hinted, without_marks))["input_ids"][0])
        if ids[: prompt.images_end] != prompt.ids[: prompt.images_end]:
            raise ValueError(
                "a prompt has an image after the text of its last user turn, where the hint is added; put images "
                "first, or use method='grpo'"
            )
        return ids

    def _text_ids(self, messages: Messages) -> Ids:
        """Token ids with one placeholder per image."""
        tokenizer = tokenizer_of(self.processing_class)
        text = self.processing_class.apply_chat_template(
            typed(self.processing_class, messages), add_generation_prompt=True, tokenize=False, **self.options
        )
        if MARK not in text:
            return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        marked = {token[0] + MARK + token[1:]: token for token in special_tokens(tokenizer)}
        ids: list[int] = []
        for piece in re.split(f"({'|'.join(map(re.escape, marked))})", text):
            if piece in marked:  # tokenize as text
                ids += tokenizer(marked[piece], add_special_tokens=False, split_special_tokens=True)["input_ids"]
            elif piece:
                ids += tokenizer(piece.replace(MARK, ""), add_special_tokens=False)["input_ids"]
        return tuple(ids)

    def _encoded(self, messages: Messages, **kwargs: Any) -> Any:
        return self.processing_class.apply_chat_template(
            [typed(self.processing_class, messages)],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            **kwargs,
            **self.options,
        )


def thinking_opening(processing_class: Any, options: dict[str, Any]) -> str:
    """The thinking delimiter with which the chat template starts every completion, or "".

    Args:
        processing_class: Tokenizer or processor.
        options: Further arguments of the chat template.
    """
    if not (options.get("chat_template") or getattr(processing_class, "chat_template", None)):
        return ""
    messages = typed(processing_class, [{"role": "user", "content": "?"}])
    with_header, without = (
        processing_class.apply_chat_template(messages, add_generation_prompt=add, tokenize=False, **options)
        for add in (True, False)
    )
    return opens_thinking(with_header[common_length([with_header, without]) :])


def left_padding(processing_class: Any) -> dict[str, Any]:
    """Arguments of `apply_chat_template` that pad on the left."""
    padding = {"padding": True, "padding_side": "left"}
    return {"processor_kwargs": padding} if isinstance(processing_class, ProcessorMixin) else padding


def tokenizer_of(processing_class: Any) -> Any:
    """The tokenizer, or the tokenizer of a processor."""
    return getattr(processing_class, "tokenizer", processing_class)


def text_of(processing_class: Any, ids: Ids) -> str:
    """A completion as text, without special tokens."""
    return tokenizer_of(processing_class).decode(ids, skip_special_tokens=True)


def token_texts(processing_class: Any, ids: Ids) -> list[str]:
    """The text that each token adds. A character of several tokens belongs to the last of them."""
    if not ids:
        return []
    tokenizer = tokenizer_of(processing_class)
    beginnings = tokenizer.batch_decode([list(ids[:end]) for end in range(1, len(ids) + 1)], skip_special_tokens=False)
    texts, seen = [], ""
    for position, beginning in enumerate(beginnings):
        whole = position == len(ids) - 1 or not beginning.endswith("\ufffd")
        texts.append(beginning[len(seen) :] if whole else "")
        seen = beginning if whole else seen
    return texts


def cut_text(processing_class: Any, text: str, part: Part, tokens: int) -> str:
    """The first tokens (``prefix``) or last tokens (``suffix``) of a text."""
    tokenizer = tokenizer_of(processing_class)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokenizer.decode(ids[:tokens] if part == "prefix" else ids[-tokens:])
