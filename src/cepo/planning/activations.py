"""What a forward pass keeps for its backward pass, counted on the meta device: nothing is computed, nothing is held."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .models import Skeleton

_PRODUCTS = (
    torch.nn.functional.linear,
    torch.matmul,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
    torch.bmm,
    torch.nn.functional.scaled_dot_product_attention,
)


class _Autocast(TorchFunctionMode):
    """Mixed precision for the meta device, which torch.autocast does not know: products are made in bfloat16."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in _PRODUCTS:
            args = tuple(_half(value) for value in args)
            kwargs = {name: _half(value) for name, value in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))


def _half(value: Any) -> Any:
    return value.bfloat16() if isinstance(value, Tensor) and value.dtype == torch.float32 else value


class _Attention(torch.autograd.Function):
    """Keeps what fused attention keeps: its inputs, its output, and a number for each query and head."""

    @staticmethod
    def forward(ctx, query, key, value):
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:3], dtype=torch.float32))
        return output


def _attend(module, query, key, value, attention_mask, **kwargs):  # noqa: ARG001
    return _Attention.apply(query, key, value).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register("cepo_counted", _attend)


def kept_bytes(run: Callable[[], Any], parameters: Any, *, autocast: bool = False) -> int:
    """Bytes that `run` keeps for a backward pass, beside the parameters themselves."""
    own = {p.untyped_storage()._cdata for p in parameters}
    kept: dict[int, torch.UntypedStorage] = {}  # the storages are held, so that no number is used twice

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    mode = _Autocast() if autocast else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), mode:
        run()
    return sum(storage.nbytes() for storage in kept.values())


@cache
def text_bytes(skeleton: Skeleton, autocast: bool) -> tuple[float, float]:
    """What the text part keeps: bytes a token, and bytes however many tokens (copies of weights in mixed precision)."""
    decoder = skeleton.model.get_decoder()
    before, decoder.config._attn_implementation = decoder.config._attn_implementation, "cepo_counted"

    def run(tokens: int) -> int:
        hidden = torch.empty(1, tokens, skeleton.text.hidden_size, device="meta", dtype=skeleton.dtype)
        hidden.requires_grad_(True)
        return kept_bytes(
            lambda: decoder(inputs_embeds=hidden, use_cache=False), skeleton.wrapped.parameters(), autocast=autocast
        )

    try:
        few, many = run(64), run(128)
    finally:
        decoder.config._attn_implementation = before
    each = (many - few) / 64
    return each, few - 64 * each


@cache
def tower_bytes(skeleton: Skeleton, autocast: bool) -> float | None:
    """What one block of the vision tower keeps a patch; None if the tower cannot be asked.

    The tower's own code computes with the sizes of images, which the meta device has not: one and two blocks of it run
    in earnest, at their real width.
    """
    tower = skeleton.tower
    if tower is None:
        return None
    if not any(p.requires_grad for p in tower.parameters()):
        return 0.0
    try:
        one, two = (_tower_slope(type(tower), tower.config, depth, skeleton.peft_config, autocast) for depth in (1, 2))
    except (AttributeError, TypeError, KeyError, RuntimeError, ValueError):
        return None
    return (two - one) * (1 if autocast else skeleton.dtype.itemsize / 4)


_SIDES = (4, 8)  # patches to a side


def _tower_slope(kind: type[nn.Module], config: Any, depth: int, peft_config: Any, autocast: bool) -> float:
    """Bytes a patch that a tower of so many blocks keeps."""
    shallow = type(config)(**{**config.to_dict(), "depth": depth, "deepstack_visual_indexes": []})
    shallow._attn_implementation = "cepo_counted"
    with torch.device("meta"):
        tower: nn.Module = kind(shallow).train()
    if peft_config is not None:
        from peft import LoraConfig, get_peft_model

        adapters = LoraConfig(r=peft_config.r, target_modules="all-linear")
        tower = get_peft_model(tower, adapters, low_cpu_mem_usage=True)
    tower = tower.to_empty(device="cpu")  # no matter what is in them

    def run(side: int) -> int:
        patches = torch.zeros(side**2, config.in_channels * config.temporal_patch_size * config.patch_size**2)
        grid = torch.tensor([[1, side, side]])
        return kept_bytes(lambda: tower(patches, grid_thw=grid), tower.parameters(), autocast=autocast)

    few, many = (run(side) for side in _SIDES)
    return (many - few) / (_SIDES[1] ** 2 - _SIDES[0] ** 2)
