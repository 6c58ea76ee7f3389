"""What CUDA kernels would compute on the device of `cuda_stub.c`, computed by the CPU on the same bytes."""

import ctypes
import logging
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache, wraps
from pathlib import Path
from typing import Any

import torch
import torchgen
import yaml
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

CEPO = "/src/cepo/"
# Operators that take tensors of several devices.
_CROSSING = {"copy_", "_to_copy", "_foreach_copy_", "_copy_from", "_pin_memory", "is_pinned", "record_stream", "set_"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
# Operators whose result the host waits for.
WAITING = {
    *("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive"),
    *("bincount", "is_nonzero"),
}
# Operators that torch's front end runs without a kernel.
_WITHOUT_KERNEL = {
    *("record_stream", "is_pinned", "_pin_memory", "set_", "resize_", "_resize_output_"),
    *("_has_compatible_shallow_copy_type", "empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided"),
}


class WrongDeviceError(RuntimeError):
    """An operation that CUDA refuses."""


@cache
def _rules() -> dict[str, tuple[bool, bool]]:
    """Of each operator: whether its CUDA kernel takes scalars on the CPU, and whether it has a CUDA kernel."""
    path = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    entries = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    return {
        entry["func"].split("(")[0]: (
            entry.get("device_check") == "NoCheck",
            "CUDA" in " ".join(entry.get("dispatch", {})) or "structured_delegate" in entry,
        )
        for entry in entries
    }


def on_host(tensor: Tensor) -> Tensor:
    """A CPU tensor on the bytes of a tensor of the device."""
    storage = tensor.untyped_storage()
    size = storage.nbytes() // tensor.dtype.itemsize * tensor.dtype.itemsize
    if size == 0 or tensor.numel() == 0:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    flat = torch.frombuffer((ctypes.c_char * size).from_address(storage.data_ptr()), dtype=tensor.dtype)
    return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def to_device(tensor: Tensor) -> Tensor:
    new = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")
    if tensor.numel():
        on_host(new).copy_(tensor)
    return new


def tensors_in(args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    for value in (*args, *kwargs.values()):
        for one in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(one, Tensor):
                yield one


def is_on_device(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cuda"


class SimulatedGPU(TorchDispatchMode):
    """Computes the operators of the device, and refuses what CUDA refuses.

    Attributes:
        waits: Points where the host waits for the device, by phase, operation and place in the code.
        refused: Refused operations, also those whose error was caught.
        kernels: Calls of each operator with a kernel.
        phase: Part of training under way.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[tuple[str, str, str]] = Counter()
        self.kernels: Counter[str] = Counter()
        self.refused: list[str] = []
        self.phase = "setup"
        self._stub_waits = ctypes.CDLL(None).cuda_stub_waits
        self._stub_waits.restype = ctypes.c_long
        self._seen = self._stub_waits()
        self._generator = torch.Generator().manual_seed(0)  # of the device

    def wait(self, operation: str) -> None:
        self.waits[self.phase, operation, _place()] += 1

    def refuse(self, func: Any, text: str) -> None:
        message = f"{func}: {text}, at {_place()}"
        self.refused.append(message)
        raise WrongDeviceError(message)

    def check(self, func: Any, name: str, args: Sequence[Any], cpu: Sequence[Tensor]) -> None:
        """Refuse CPU tensors beside those of the device, by the rules of native_functions.yaml."""
        if not cpu or name in _CROSSING:
            return
        if name in INDEXING:
            if args[0].device.type == "cpu":
                self.refuse(func, "indices on the device of a tensor on the CPU")
            if any(index is not None and index.device.type == "cpu" for index in args[1]):
                self.wait("index on the CPU")
            return
        overload = "" if func._overloadname == "default" else f".{func._overloadname}"
        lenient, has_kernel = _rules().get(name + overload, (True, False))
        takes_scalars = name not in ("stack", "index_fill", "index_fill_") and (lenient or not has_kernel)
        if not takes_scalars or any(tensor.dim() for tensor in cpu):
            self.refuse(func, f"CPU tensors of shapes {[tuple(tensor.shape) for tensor in cpu]} beside CUDA tensors")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if (unseen := self._stub_waits() - self._seen) > 0:  # by code that no mode sees: `torch.tensor`, list indices
            self._seen += unseen
            self.waits[self.phase, "host to device", _place()] += unseen
        tensors = list(tensors_in(args, kwargs))
        created = kwargs.get("device")
        if not any(map(is_on_device, tensors)) and (created is None or torch.device(created).type != "cuda"):
            if getattr(kwargs.get("generator"), "device", torch.device("cpu")).type != "cpu":
                self.refuse(func, "a generator of the device for a CPU tensor")
            return func(*args, **kwargs)
        schema, name = func._schema, func._schema.name.split("::")[1]
        self.check(func, name, args, [tensor for tensor in tensors if tensor.device.type == "cpu"])
        is_view = schema.returns and all(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
        if is_view or name in _WITHOUT_KERNEL:
            return func(*args, **kwargs)
        if name == "_unsafe_view":
            return args[0].view(args[1])
        self.kernels[name] += 1
        self._note_wait(func, name, args, kwargs)
        if name == "copy_":
            target, source = (on_host(tensor) if is_on_device(tensor) else tensor for tensor in args[:2])
            target.copy_(source)
            return args[0]
        if name == "_to_copy":
            found = func(*tree_map_only(Tensor, _host, args), **_without_device(kwargs))
            return to_device(found) if torch.device(kwargs.get("device") or args[0].device).type == "cuda" else found
        if "scaled_dot_product" in name:
            return _attention(name, schema, args, kwargs)
        if any(argument.name == "generator" for argument in schema.arguments):
            if getattr(kwargs.get("generator"), "device", torch.device("cuda")).type == "cpu":
                self.refuse(func, "a CPU generator for a tensor of the device")
            kwargs["generator"] = self._generator
        return _on_cpu(func, name, args, kwargs)

    def _note_wait(self, func: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        if name in WAITING:
            self.wait(name)
        elif name in INDEXING and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
            if name == "index" or len(args) < 3 or args[2].numel() != 1:
                self.wait("boolean index")
        elif name == "repeat_interleave" and func._overloadname == "Tensor" and kwargs.get("output_size") is None:
            self.wait(name)
        elif name in ("copy_", "_to_copy"):
            source = args[1] if name == "copy_" else args[0]
            target = args[0].device if name == "copy_" else torch.device(kwargs.get("device") or source.device)
            soft = kwargs.get("non_blocking", False) or (name == "copy_" and len(args) > 2 and args[2])
            if is_on_device(source) and target.type == "cpu":
                self.wait("device to host")
            elif source.device.type == "cpu" and target.type == "cuda" and not soft:
                self.wait("host to device")


def _place() -> str:
    """The innermost line outside of torch, and the innermost line of cepo."""
    frame, inner = sys._getframe(1), None
    while frame is not None:
        name = frame.f_code.co_filename
        if "/torch/" not in name and "/rehearsal/" not in name:
            place = f"{name.split('site-packages/')[-1].split('/src/')[-1]}:{frame.f_lineno}"
            inner = inner or place
            if CEPO in name:
                return inner if inner == place else f"{inner} < {place}"
        frame = frame.f_back
    return inner or "?"


def _host(value: Any) -> Any:
    return on_host(value) if is_on_device(value) else value


def _without_device(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: v for name, v in kwargs.items() if name not in ("device", "non_blocking", "pin_memory")}


def _on_cpu(func: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The operator's CPU kernel on the bytes of the device; tensors that it returns as they came stay the same."""
    views: dict[int, tuple[Tensor, Tensor]] = {}

    def host(value: Any) -> Any:
        view = _host(value)
        if view is not value:
            views[id(view)] = (view, value)  # the view stays alive, and its id with it
        return view

    flat, spec = tree_flatten((args, kwargs))
    args, kwargs = tree_unflatten([host(value) for value in flat], spec)
    if "device" in kwargs:
        kwargs["device"] = "cpu"
    if name in ("mm", "addmm") and func._overloadname in ("dtype", "dtype_out"):  # of half precision, in float32
        *plus, a, b = (tensor.float() for tensor in args[:3] if isinstance(tensor, Tensor))
        found = kwargs.get("alpha", 1) * (a @ b) + (kwargs.get("beta", 1) * plus[0] if plus else 0)
        result = kwargs["out"].copy_(found) if "out" in kwargs else found
    else:
        result = func(*args, **kwargs)
    return tree_map_only(Tensor, lambda t: views[id(t)][1] if id(t) in views else to_device(t), result)


def _attention(name: str, schema: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Fused attention, forward and backward, with the outputs of CUDA's kernels."""
    defaults = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    names = [a.name for a in schema.arguments]
    given = {n: _host(v) for n, v in {**defaults, **dict(zip(names, args, strict=False)), **kwargs}.items()}
    q, k, v, bias = given["query"], given["key"], given["value"], given.get("attn_bias")
    assert not given.get("dropout_p"), "dropout in attention is not simulated"

    def like_query(out: Tensor) -> Tensor:  # (B, H, S, D), laid out as (B, S, H, D)
        return to_device(out.to(q.dtype).transpose(1, 2).contiguous().transpose(1, 2))

    grad = given.get("grad_out", given.get("grad_out_"))
    found = _plain_attention(q, k, v, bias, bool(given.get("is_causal")), given.get("scale"), grad)
    nothing = torch.empty(0, device="cuda")
    efficient = "efficient" in name
    if grad is None:
        out, lse = like_query(found[0]), to_device(found[1].contiguous())
        seeds = torch.zeros(2, dtype=torch.long, device="cuda").unbind()
        wanted = given.get("compute_log_sumexp", given.get("compute_logsumexp", True))
        lse = lse if wanted else nothing
        return (out, lse, *seeds) if efficient else (out, lse, None, None, q.shape[2], k.shape[2], *seeds, None)
    grads = tuple(map(like_query, found[:3]))
    if not efficient:
        return grads
    wanted = len(found) > 3 and given.get("grad_input_mask", (True,) * 4)[3]
    return (*grads, to_device(found[3].to(q.dtype)) if wanted else nothing)


def _plain_attention(q, k, v, bias, causal, scale, grad):
    """Output and log-sum-exp; with `grad`, the gradients of query, key, value and, if there is one, bias."""
    shared = q.shape[1] // k.shape[1]
    q, k, v = q.float(), *(x.float().repeat_interleave(shared, 1) for x in (k, v))
    scale = scale if scale is not None else 1 / math.sqrt(q.shape[-1])
    scores = (q @ k.transpose(-1, -2)) * scale
    if bias is not None:
        scores = scores + bias.float()
    if causal:
        scores = scores.masked_fill(~torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(), -math.inf)
    lse = scores.logsumexp(-1)
    probabilities = (scores - lse.unsqueeze(-1)).exp().nan_to_num(0.0)
    out = probabilities @ v
    if grad is None:
        return out, lse
    grad = grad.float()
    of_scores = probabilities * (grad @ v.transpose(-1, -2) - (grad * out).sum(-1, keepdim=True))
    of_keys, of_values = of_scores.transpose(-1, -2) @ q * scale, probabilities.transpose(-1, -2) @ grad
    found = [of_scores @ k * scale, *(x.unflatten(1, (-1, shared)).sum(2) for x in (of_keys, of_values))]
    return found if bias is None else [*found, of_scores.sum_to_size(bias.shape)]


PHASES = {
    "_generate": "generation",
    "_find_evidence": "teachers",
    "_calculate_rewards": "rewards",
    "_generate_and_score_completions": "batch",
    "_compute_loss": "loss",
    "training_step": "update",
    "_get_grad_norm": "gradient norm",
    "log": "log",
}


def label_phases(gpu: SimulatedGPU, trainer_class: type) -> None:
    """Set `gpu.phase` within the methods of a trainer's class."""

    def labeled(method: Any, phase: str) -> Any:
        @wraps(method)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            before, gpu.phase = gpu.phase, phase
            try:
                return method(*args, **kwargs)
            finally:
                gpu.phase = before

        return wrapped

    for name, phase in PHASES.items():
        if hasattr(trainer_class, name):
            setattr(trainer_class, name, labeled(getattr(trainer_class, name), phase))


class Heard(logging.Handler):
    """Keeps the warnings of a logger."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
