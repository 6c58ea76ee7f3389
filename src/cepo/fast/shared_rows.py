"""Log-probs and entropies of the policy, with gradient, for rows that share prompts: each distinct prompt runs once.

TRL lays out a micro-batch as rows [prompt + completion]. `branched` keeps the KV cache of the distinct prompts in the
graph, and expands it to the completions. `packed` puts a prompt and all its completions into one row, in which
completions do not attend to each other; it works with gradient checkpointing, which leaves no cache.

Dimensions: B rows, P prompt tokens (padded on the left), T completion tokens (padded on the right), U distinct prompts,
L tokens of a packed row.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel

from .prefix_cache import ExpandedCache, cache_argument, positions_of

# Log-probs and entropies.
Found = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Rows:
    """A micro-batch as TRL lays it out.

    Attributes:
        ids, mask: (B, P + T) token ids and attention mask.
        width: P.
        owners: (B,) index of each row's prompt.
        firsts: (U,) a row of each prompt.
        token_types: (B, P + T) each, further per-token inputs of the model.
        images: Image inputs of the U prompts.
    """

    ids: Tensor
    mask: Tensor
    width: int
    owners: Tensor
    firsts: Tensor
    token_types: dict[str, Tensor] = field(default_factory=dict)
    images: dict[str, Tensor] = field(default_factory=dict)

    def unsupported_reason(self) -> str | None:
        """Why these prompts cannot be shared; None if they can."""
        last = self.width - 1
        if last < 1:
            return "its prompts have a single token"
        # The last token that runs with the prompt has to be text: positions count by one from there on.
        if any(types[:, last - 1 :].any() for types in self.token_types.values()):
            return "images reach to the end of its prompts, or into completions"
        return None

    def tokens(self) -> tuple[int, int]:
        """Number of tokens that run with and without shared prompts, padding excluded."""
        prompts = self.mask[:, : self.width].sum(1)
        rest = int(self.mask[:, self.width :].sum()) + len(self.owners)
        return int(prompts[self.firsts].sum()) - len(self.firsts) + rest, int(self.mask.sum())


def branched(model: PreTrainedModel, rows: Rows) -> Found:
    """(B, T) log-probs and entropies of the completions [nats], from the cache of the distinct prompts."""
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
    """The same from rows [prompt, completion 1, completion 2, ...], with the last prompt token before each completion.

    The mask is dense, (U, 1, L, L), so the cost of attention grows with the square of L.
    """
    inputs, positions = _prompts(model, rows)
    last, device = rows.width - 1, rows.ids.device
    lengths = rows.mask[:, rows.width :].sum(1) + 1  # with the last prompt token
    places: list[list[Tensor]] = [[] for _ in rows.firsts]  # flat indices into `rows.ids`
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
    # A token attends to its prompt and to the tokens before it in its completion; padding attends to itself.
    seen = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    seen &= (segments >= 0)[:, None, :]
    seen = seen.tril() | torch.eye(seen.shape[1], dtype=torch.bool, device=device)
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else model.dtype
    dense = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, torch.finfo(dtype).min)
    types = {name: torch.cat([inputs.pop(name), torch.zeros_like(ids)], dim=1) for name in rows.token_types}
    prompt_ids = inputs.pop("input_ids")
    kept = there & (column > 0)
    labels = torch.where(kept, ids, -100)
    found = _of_completions(
        model,
        labels=torch.cat([torch.full_like(prompt_ids, -100), labels], dim=1),
        input_ids=torch.cat([prompt_ids, ids], dim=1),
        attention_mask=dense[:, None],
        position_ids=torch.cat([positions, after], dim=-1),
        **types,
        **inputs,
    )

    def unpacked(values: Tensor | None) -> Any:
        """(B, T) from the (U, L - 1) of packed rows."""
        if values is None:
            return None
        own = values[:, last - 1 :]  # a token's value is at the position that predicts it
        whole = own.new_zeros(rows.ids.numel()).index_put((place[kept],), own[kept])
        return whole.view_as(rows.ids)[:, rows.width :]

    return unpacked(found[0]), unpacked(found[1])


def _prompts(model: PreTrainedModel, rows: Rows) -> tuple[dict[str, Any], Tensor]:
    """Inputs and positions of the distinct prompts without their last token, which runs with the completions."""
    last = rows.width - 1
    inputs = {
        "input_ids": rows.ids[rows.firsts, :last],
        "attention_mask": rows.mask[rows.firsts, :last],
        **{name: types[rows.firsts, :last] for name, types in rows.token_types.items()},
        **rows.images,
    }
    return inputs, positions_of(model, inputs)


def _of_completions(model: PreTrainedModel, **inputs: Any) -> Found:
    output = model(fused_lm_head=True, **inputs)
    return output.log_probs, output.entropy


def packing_unsupported_reason(model: PreTrainedModel) -> str | None:
    """Why the structure of a model does not allow `packed` rows; None if it does."""
    config = model.config.get_text_config()
    if not hasattr(model, "_prepare_position_ids_for_generation"):
        return "it cannot prepare position ids"
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(config, "sliding_window", None):
        return "with gradient checkpointing prompts are packed, and not all of its layers have full attention"
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"with gradient checkpointing prompts are packed, and {config._attn_implementation} takes no 4D mask"
    return None


def packing_pays(model: PreTrainedModel, rows: Rows) -> bool:
    """Whether packed rows need fewer operations than whole ones, in matrix products and dense attention."""
    config = model.config.get_text_config()
    few, many = rows.tokens()
    rest = rows.mask[:, rows.width :].sum(1) + 1
    longest = max(int(rest[rows.owners == index].sum()) for index in range(len(rows.firsts))) + rows.width - 1
    pairs_packed, pairs_whole = len(rows.firsts) * longest**2, rows.ids.numel() * rows.ids.shape[1]
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = config.num_attention_heads * head
    of_token = 4 * config.hidden_size * heads + 3 * config.hidden_size * config.intermediate_size
    return few * of_token + 2 * heads * pairs_packed < many * of_token + 2 * heads * pairs_whole
