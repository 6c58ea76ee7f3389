"""The policy's own log-probs, with gradient, of rows that share their prompts: the prompt once, not once per rollout.

TRL lays a micro-batch out as rows [prompt + completion]. Two ways run each distinct prompt once and give the same
log-probs and gradients. `branched` keeps the prompt's keys and values in the graph, from which completions select.
`packed` makes one row of a prompt and all of its completions, which do not see each other; it needs no cache, and
gradient checkpointing has none.

Dimensions: B rows, P prompt tokens (padded on the left), T completion tokens (padded on the right), U distinct prompts,
L tokens of a packed row.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel

from ..scoring.requests import distinct_prompts
from .prefix_cache import ExpandedCache, cache_argument, unsupported_reason

# Of log-probs and entropies.
Found = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Rows:
    """A micro-batch as TRL lays it out.

    Attributes:
        ids, mask: (B, P + T) token ids, and where they are no padding.
        width: P.
        owners: For each row, which of the U prompts it answers.
        firsts: For each prompt, a row that answers it.
        token_types: Per-token companions of the ids that the model takes, each (B, P + T).
        images: Of the U prompts, as the model takes them.
    """

    ids: Tensor
    mask: Tensor
    width: int
    owners: Tensor
    firsts: Tensor
    token_types: dict[str, Tensor] = field(default_factory=dict)
    images: dict[str, Tensor] = field(default_factory=dict)

    def unsupported_reason(self) -> str | None:
        """What keeps these prompts from being shared; None if nothing does."""
        last = self.width - 1
        if last < 1:
            return "its prompts have a single token"
        # The last token that is run with the prompt has to be text: from its position on, positions count by one.
        if any(types[:, last - 1 :].any() for types in self.token_types.values()):
            return "images reach to the end of its prompts, or into completions"
        return None

    def tokens(self) -> tuple[int, int]:
        """How many tokens run when prompts are shared, and when they are not, without padding."""
        prompts, all_of_them = self.mask[:, : self.width].sum(1), int(self.mask.sum())
        rest = int(self.mask[:, self.width :].sum()) + len(self.owners)
        return int(prompts[self.firsts].sum()) - len(self.firsts) + rest, all_of_them


def distinct(ids: Tensor, mask: Tensor, same: Callable[[int, int], bool]) -> tuple[list[int], list[int]]:
    """`distinct_prompts` of (B, P) ids and mask."""
    return distinct_prompts(ids.masked_fill(mask == 0, -1).tolist(), same)


def branched(model: PreTrainedModel, rows: Rows) -> Found:
    """(B, T) log-probs [nats] and entropies [nats] of the completions; the prompts' cache stays in the graph."""
    inputs, positions = _prompts(model, rows)
    cache = DynamicCache(config=model.config)
    called = cache_argument(model)
    model(**{called: cache}, use_cache=True, logits_to_keep=1, position_ids=positions, **inputs)
    owners, last = rows.owners, rows.width - 1
    ids, own = rows.ids[:, last:], rows.mask[:, last:]
    return _of_completions(
        model,
        labels=ids.masked_fill(own == 0, -100).index_fill(1, torch.zeros(1, dtype=torch.long, device=ids.device), -100),
        input_ids=ids,
        attention_mask=torch.cat([inputs["attention_mask"][owners], own], dim=1),
        position_ids=positions[..., owners, -1:] + 1 + torch.arange(ids.shape[1], device=ids.device),
        **{called: ExpandedCache(cache, owners)},
    )


def packed(model: PreTrainedModel, rows: Rows) -> Found:
    """The same from rows [prompt, completion 1, completion 2, ...], each after a last prompt token of its own.

    The mask is dense, (U, 1, L, L): what attention costs grows with the square of L.
    """
    inputs, positions = _prompts(model, rows)
    last, device = rows.width - 1, rows.ids.device
    lengths = rows.mask[:, rows.width :].sum(1) + 1  # with the last prompt token, which predicts the first one
    places: list[list[Tensor]] = [[] for _ in rows.firsts]  # in `rows`, of what is packed, as row * (P + T) + column
    owned: list[list[Tensor]] = [[] for _ in rows.firsts]
    total = rows.ids.shape[1]
    for row, (owner, length) in enumerate(zip(rows.owners.tolist(), lengths.tolist(), strict=True)):
        places[owner].append(row * total + last + torch.arange(length, device=device))
        owned[owner].append(torch.full((length,), row + 1, device=device))
    place = pad_sequence([torch.cat(parts) for parts in places], batch_first=True, padding_value=-1)
    segment = pad_sequence([torch.cat(parts) for parts in owned], batch_first=True, padding_value=-1)
    there = place >= 0
    ids = torch.where(there, rows.ids.flatten()[place.clamp(min=0)], 0)
    column = torch.where(there, place % total, last) - last  # 0 for the last prompt token, 1 for the first completion's
    after = positions[..., -1:] + 1 + column
    prompt_mask = inputs.pop("attention_mask").bool()
    segments = torch.cat([torch.where(prompt_mask, 0, -1), segment], dim=1)
    # A token sees what stands before it of its prompt and its own completion; padding sees itself, not nothing.
    seen = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    seen &= (segments >= 0)[:, None, :]
    seen = seen.tril() | torch.eye(seen.shape[1], dtype=torch.bool, device=device)
    dtype = _dtype_of(model)
    dense = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, torch.finfo(dtype).min)
    types = {name: torch.cat([inputs.pop(name), torch.zeros_like(ids)], dim=1) for name in rows.token_types}
    prompt_ids = inputs.pop("input_ids")
    labels = torch.where(there & (column > 0), ids, -100)
    found = _of_completions(
        model,
        labels=torch.cat([torch.full_like(prompt_ids, -100), labels], dim=1),
        input_ids=torch.cat([prompt_ids, ids], dim=1),
        attention_mask=dense[:, None],
        position_ids=torch.cat([positions, after], dim=-1),
        **types,
        **inputs,
    )
    back = (place[there & (column > 0)], there & (column > 0), last)
    return _unpacked(found[0], rows, *back), None if found[1] is None else _unpacked(found[1], rows, *back)


def _unpacked(values: Tensor, rows: Rows, place: Tensor, kept: Tensor, last: int) -> Tensor:
    """(B, T) from the (U, L - 1) of packed rows."""
    own = values[:, last - 1 :]  # the value of a token stands one place before it
    whole = own.new_zeros(rows.ids.numel()).index_put((place,), own[kept])
    return whole.view_as(rows.ids)[:, rows.width :]


def _dtype_of(model: PreTrainedModel) -> torch.dtype:
    device = model.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype


def _prompts(model: PreTrainedModel, rows: Rows) -> tuple[dict[str, Any], Tensor]:
    """Inputs of the distinct prompts without their last token, which completions take with them; their positions."""
    last = rows.width - 1
    inputs = {
        "input_ids": rows.ids[rows.firsts, :last],
        "attention_mask": rows.mask[rows.firsts, :last],
        **{name: types[rows.firsts, :last] for name, types in rows.token_types.items()},
        **rows.images,
    }
    return inputs, model._prepare_position_ids_for_generation(inputs["input_ids"], dict(inputs))


def _of_completions(model: PreTrainedModel, **inputs: Any) -> Found:
    output = model(fused_lm_head=True, **inputs)
    return output.log_probs, output.entropy


def sharing_unsupported_reason(model: PreTrainedModel, *, checkpoints: bool) -> str | None:
    """What keeps a model's prompts from being shared, as far as its structure tells; None if nothing does.

    Args:
        model: The model.
        checkpoints: Whether its passes are checkpointed, which leaves `packed` alone.
    """
    if not checkpoints:
        return unsupported_reason(model)
    config = model.config.get_text_config()
    if not hasattr(model, "_prepare_position_ids_for_generation"):
        return "it does not tell its positions"
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(config, "sliding_window", None):
        return "with gradient checkpointing prompts are packed, and its layers do not all attend to everything"
    if config._attn_implementation not in ("sdpa", "eager"):
        return (
            f"with gradient checkpointing prompts are packed, and {config._attn_implementation} takes no mask for that"
        )
    return None


def packing_pays(model: PreTrainedModel, rows: Rows) -> bool:
    """Whether packed rows cost less than whole ones: in matrix products, and in attention, which reads dense masks."""
    config = model.config.get_text_config()
    few, many = rows.tokens()
    rest = rows.mask[:, rows.width :].sum(1) + 1
    longest = max(int(rest[rows.owners == index].sum()) for index in range(len(rows.firsts))) + rows.width - 1
    pairs_packed, pairs_whole = len(rows.firsts) * longest**2, rows.ids.numel() * rows.ids.shape[1]
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = config.num_attention_heads * head
    of_token = 4 * config.hidden_size * heads + 3 * config.hidden_size * config.intermediate_size
    return few * of_token + 2 * heads * pairs_packed < many * of_token + 2 * heads * pairs_whole


def difference(expected: Tensor, found: Tensor, mask: Tensor) -> Tensor:
    """Mean difference [nats] of two (B, T) log-probs over the tokens that count."""
    return ((expected - found).abs() * mask).sum() / mask.sum().clamp(min=1)
