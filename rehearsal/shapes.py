"""A training step at its real size without its data: torch's host code for CUDA and its allocator, but no kernels.

Small tensors and integers are computed as in `device.py`, so that token ids, masks and rewards direct the step. Large
floating-point tensors are allocated and never written; their memory is reserved, not used.
"""

from collections import Counter, defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry
from trl.kernels import chunked_divergence, chunked_logprob

from rehearsal.device import INDEXING, WAITING, SimulatedGPU, is_on_device, on_host, tensors_in

# Numbers of a tensor that is not computed; of a bool tensor, such as a mask of attention.
LARGE, LARGE_BOOL = 1 << 16, 1 << 22
# Operators whose host code asks the device or cuDNN: their outputs are found on the meta device.
_BY_META = {
    *("embedding_dense_backward", "convolution", "convolution_backward", "topk"),
    *("_scaled_dot_product_cudnn_attention", "_scaled_dot_product_cudnn_attention_backward"),
}
# Bytes that a rank of n sends, in (n - 1) / n of the larger side, with ring algorithms.
_SENDS = {"_allgather_base_": 1, "_reduce_scatter_base_": 1, "allreduce_": 2, "broadcast_": 1, "reduce_": 1}


class ShapesOnly(SimulatedGPU):
    """A `SimulatedGPU` that does not compute large tensors.

    Attributes:
        flops: Operations of matrix products, attention and convolutions, by phase.
        peaks: Largest allocated memory [bytes], by phase.
        sent: Bytes that this rank sends to others, by phase.
        ranks: Number of ranks.
    """

    def __init__(self, ranks: int = 1) -> None:
        self.flops: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.peaks: dict[str, int] = defaultdict(int)
        self.ranks, self._phase = ranks, "setup"
        super().__init__()

    @property
    def phase(self) -> str:
        return self._phase

    @phase.setter
    def phase(self, name: str) -> None:
        self.mark()
        self._phase = name

    def mark(self) -> None:
        """Add the peak since the last mark to the phase."""
        if torch.cuda.is_initialized():
            self.peaks[self._phase] = max(self.peaks[self._phase], torch.cuda.max_memory_allocated())
            torch.cuda.reset_peak_memory_stats()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if any(issubclass(kind, (DTensor, AsyncCollectiveTensor)) for kind in types):
            return NotImplemented  # it comes back with the local tensors
        name = func._schema.name.split("::")[1]
        if func.namespace not in ("aten", "prims"):
            if factor := _SENDS.get(name):
                size = max(t.nbytes for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor))
                self.sent[self._phase] += factor * size * (self.ranks - 1) // self.ranks
            return func(*args, **kwargs)
        tensors = list(tensors_in(args, kwargs))
        on_device = [tensor for tensor in tensors if is_on_device(tensor)]
        if name == "equal" and _is_large(args, kwargs, on_device):
            self._note_wait(func, name, args, kwargs)
            return args[0].shape == args[1].shape  # images, which are all alike here
        if not _is_large(args, kwargs, on_device) or name == "_local_scalar_dense" or name in WAITING - INDEXING:
            found = super().__torch_dispatch__(func, types, args, kwargs)
        else:
            self.check(func, name, args, [tensor for tensor in tensors if tensor.device.type == "cpu"])
            self.kernels[name] += 1
            self._note_wait(func, name, args, kwargs)
            found = self._allocated(func, name, args, kwargs, on_device)
        if on_device:
            self.flops[self._phase] += _flops(func, name, args, kwargs, found)
        return found

    def _allocated(self, func: Any, name: str, args: Any, kwargs: dict[str, Any], on_device: list[Tensor]) -> Any:
        """The outputs of an operator, without their values."""
        if name in ("_to_copy", "copy_"):
            source = args[1] if name == "copy_" else args[0]
            to = args[0].device if name == "copy_" else torch.device(kwargs.get("device") or source.device)
            if source.device.type != to.type:
                if name == "copy_":
                    return args[0]
                dtype = kwargs.get("dtype") or source.dtype
                new = torch.empty_strided(source.shape, source.stride(), dtype=dtype, device=to)
                return new.zero_() if to.type == "cpu" else new
        if name in INDEXING:
            masks = [i is not None and i.dtype == torch.bool for i in args[1]]
            if masks == [True] and name == "index" and args[1][0].dim() == args[0].dim():
                count = int(on_host(args[1][0]).count_nonzero())
                return torch.empty(count, dtype=args[0].dtype, device="cuda")
            if any(masks):
                args = (args[0], [part for i in args[1] for part in _places(i)], *args[2:])
        if name == "masked_scatter_backward":
            return torch.empty(args[2], dtype=args[0].dtype, device="cuda")
        if name.startswith("masked_scatter"):
            return args[0] if name.endswith("_") else torch.empty_like(args[0])
        if name in _BY_META:
            meta = tree_map_only(Tensor, lambda t: _like(t, "meta"), (args, kwargs))
            found = tree_map_only(Tensor, lambda t: _like(t, "cuda"), func(*meta[0], **meta[1]))
        else:
            found = func(*args, **kwargs)
        known = {tensor.untyped_storage().data_ptr() for tensor in on_device}
        for out in tree_leaves(found):
            small = is_on_device(out) and (out.numel() <= LARGE or out.dtype == torch.long)
            if small and out.untyped_storage().data_ptr() not in known:
                on_host(out).fill_(name == "all")  # small results are used; compared images are all alike
        return found


def _flops(func: Any, name: str, args: Any, kwargs: dict[str, Any], found: Any) -> int:
    """Operations of a matrix product, of attention (a causal one in full), or of a convolution; 0 for others."""
    if name in ("mm", "bmm", "addmm", "baddbmm"):
        a, b = args[:2] if name in ("mm", "bmm") else args[1:3]
        return 2 * a.numel() * b.shape[-1]
    if "scaled_dot_product" in name:
        q, k = args[1:3] if name.endswith("backward") else args[:2]
        return (10 if name.endswith("backward") else 4) * q.numel() * k.shape[2]
    if name in ("convolution", "convolution_backward"):
        return flop_registry[func._overloadpacket](*args, **kwargs, out_val=found)
    return 0


def _is_large(args: Any, kwargs: dict[str, Any], on_device: list[Tensor]) -> bool:
    if on_device:
        computed = [t for t in on_device if t.dtype != torch.long]
        return any(t.numel() > (LARGE if t.is_floating_point() else LARGE_BOOL) for t in computed)
    if torch.device(kwargs.get("device") or "cpu").type != "cuda" or not args:
        return False
    created = args[0] if isinstance(args[0], (list, tuple, torch.Size)) else ()
    is_float = kwargs.get("dtype") is None or kwargs["dtype"].is_floating_point
    return is_float and torch.Size(created).numel() > LARGE


def _places(index: Tensor | None) -> list[Tensor | None]:
    """A bool index as indices, from the values on the host."""
    if index is None or index.dtype != torch.bool:
        return [index]
    host = on_host(index) if is_on_device(index) else index
    return [part.to("cuda", non_blocking=True) for part in host.nonzero().unbind(1)]


def _like(tensor: Tensor, device: str) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)


class _NoKernel:
    """In place of a Triton kernel. Sets the (maximum, sum of exponentials) that it would leave to (0, 1)."""

    def __init__(self, *places: tuple[int, int]):
        self._places = places

    def __getitem__(self, grid: Any) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            for largest, total in self._places:
                args[largest].zero_()
                args[total].fill_(1.0)

        return launch


def without_triton_kernels() -> None:
    """TRL's code for Triton, with kernels that do nothing."""
    chunked_logprob._forward_kernel = _NoKernel((3, 4))
    chunked_divergence._stats_kernel = _NoKernel((4, 5), (7, 8))
    chunked_logprob._backward_kernel = chunked_divergence._backward_kernel = _NoKernel()
    chunked_divergence._jsd_kernel = _NoKernel()
