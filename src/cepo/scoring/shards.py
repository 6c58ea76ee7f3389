"""Weight layouts: whole weights, shards of FSDP2, shards of DeepSpeed's ZeRO-3.

A teacher with other weights runs in the policy's model, with its values swapped in. FSDP2 and ZeRO-3 gather weights
before use and may cache them, so a swap drops gathered weights; the next pass would use stale ones.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Partial, distribute_tensor


class WholeWeights:
    """Every process holds every weight: one process, DDP, ZeRO-1 and ZeRO-2."""

    def local(self, parameter: nn.Parameter) -> Tensor:
        """This process's part of a parameter; shares the parameter's memory."""
        return parameter.data

    def gathered(self, parameter: nn.Parameter, local: Tensor) -> Tensor:  # noqa: ARG002
        """A whole tensor from its local parts, which have the parameter's layout. All processes call it together."""
        return local

    def part(self, parameter: nn.Parameter, whole: Tensor) -> Tensor:  # noqa: ARG002
        """This process's part of a whole tensor."""
        return whole

    @contextmanager
    def all_gathered(self) -> Iterator[None]:
        """Gather every weight on every process, for passes that processes run independently."""
        yield

    @contextmanager
    def exchanged(self, values: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
        """Swap other local values into parameters."""
        live = {parameter: parameter.data for parameter in values}
        try:
            for parameter, value in values.items():
                parameter.data = value.to(live[parameter])
            yield
        finally:
            for parameter, own in live.items():
                parameter.data = own


class _Shards(WholeWeights):
    """Values are overwritten in place, since the engines hold pointers to them."""

    def drop_gathered(self) -> None:
        raise NotImplementedError

    @contextmanager
    @torch.no_grad()
    def exchanged(self, values: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
        self.drop_gathered()
        live = {parameter: self.local(parameter).clone() for parameter in values}
        try:
            self._write(values)
            yield
        finally:
            self.drop_gathered()
            self._write(live)

    def _write(self, values: Mapping[nn.Parameter, Tensor]) -> None:
        for parameter, value in values.items():
            self.local(parameter).copy_(value)


class FSDPShards(_Shards):
    """FSDP2: parameters are DTensors.

    Args:
        model: The model, wrapped by FSDP2.
    """

    def __init__(self, model: nn.Module):
        self._model = model
        self._dropped: list[Any] = []

    def local(self, parameter: nn.Parameter) -> Tensor:
        assert isinstance(parameter, DTensor)
        return parameter.to_local()

    def gathered(self, parameter: nn.Parameter, local: Tensor) -> Tensor:
        assert isinstance(parameter, DTensor)
        whole = DTensor.from_local(
            local, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
        )
        return whole.full_tensor()

    def part(self, parameter: nn.Parameter, whole: Tensor) -> Tensor:
        assert isinstance(parameter, DTensor)
        return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None).to_local()

    def _groups(self) -> list[Any]:
        """The parameter groups that FSDP gathers together."""
        states = [module._get_fsdp_state() for module in self._model.modules() if isinstance(module, FSDPModule)]
        return list({id(s._fsdp_param_group): s._fsdp_param_group for s in states if s._fsdp_param_group}.values())

    @contextmanager
    def all_gathered(self) -> Iterator[None]:
        assert isinstance(self._model, FSDPModule)
        self._model._get_fsdp_state()._lazy_init()  # done by the first forward pass otherwise
        groups = self._groups()
        sharded = [group for group in groups if not group.is_unsharded]
        after_forward = [group.post_forward_mesh_info for group in groups]
        for group in groups:
            group.post_forward_mesh_info = None  # stays gathered after a forward pass
        for group in sharded:
            group.unshard()
            group.wait_for_unshard()
        # Transformers' trainer wraps `generate` in a forward pass, which would reshard the outermost unit.
        generate = vars(self._model).pop("generate", None)
        try:
            yield
        finally:
            if generate is not None:
                self._model.generate = generate
            for group, info in zip(groups, after_forward, strict=True):
                group.post_forward_mesh_info = info
            for group in sharded:
                # The other groups stay gathered until the backward pass; the next forward pass may rely on it.
                if group.post_forward_mesh_info is not None:
                    group._to_sharded()

    def drop_gathered(self) -> None:
        # `FSDPModule.reshard` does nothing for a group that stays gathered after the forward pass, such as the group of
        # embedding and head.
        self._dropped = [group for group in self._groups() if group.is_unsharded]
        for group in self._dropped:
            group._to_sharded()

    def _write(self, values: Mapping[nn.Parameter, Tensor]) -> None:
        super()._write(values)
        # The next forward pass assumes that these groups are gathered.
        for group in self._dropped:
            group.unshard()
            group.wait_for_unshard()
        self._dropped.clear()


class ZeROShards(_Shards):
    """DeepSpeed's ZeRO-3: a parameter's data is empty; its shard is a flat piece of it.

    Args:
        engine: DeepSpeed's engine.
    """

    def __init__(self, engine: Any):
        self._offload = engine.optimizer.parameter_offload

    def local(self, parameter: nn.Parameter) -> Tensor:
        return parameter.ds_tensor.data  # type: ignore[attr-defined]

    def gathered(self, parameter: nn.Parameter, local: Tensor) -> Tensor:
        shards = [torch.empty_like(local) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(shards, local.contiguous())
        return torch.cat(shards)[: parameter.ds_numel].view(parameter.ds_shape)  # type: ignore[attr-defined]

    def part(self, parameter: nn.Parameter, whole: Tensor) -> Tensor:
        size, rank = self.local(parameter).numel(), torch.distributed.get_rank()
        flat = whole.flatten()[rank * size : (rank + 1) * size]
        return nn.functional.pad(flat, (0, size - flat.numel()))

    def drop_gathered(self) -> None:
        # DeepSpeed prefetches weights by its record of the module order, which is reset.
        coordinator = self._offload.get_param_coordinator()
        if not coordinator.is_invalid_trace():
            coordinator._invalidate_trace()
        self._offload.partition_all_parameters()

    def _write(self, values: Mapping[nn.Parameter, Tensor]) -> None:
        super()._write(values)
        # DeepSpeed assumes that small parameters are gathered.
        if persistent := self._offload.persistent_parameters:
            persistent[0].all_gather(persistent)


def is_shard(weight: Tensor) -> bool:
    """Whether this process holds a part of a weight (FSDP2, ZeRO-3)."""
    return isinstance(weight, DTensor) or hasattr(weight, "ds_id")


def whole_with_gradient(weight: Tensor) -> Tensor:
    """A weight gathered on every process, with gradient, for use outside of its layer's forward pass.

    An unsharded weight is returned unchanged.
    """
    if isinstance(weight, DTensor):
        # The gradient of a shard is the mean over processes.
        return weight.full_tensor(grad_placements=[Partial("avg")] * weight.device_mesh.ndim)
    if not hasattr(weight, "ds_id"):
        return weight
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters, ZeroParamStatus

    # A tied embedding may be gathered already, and must not be partitioned again here.
    gathers = getattr(weight, "ds_status") != ZeroParamStatus.AVAILABLE  # noqa: B009
    with GatheredParameters([weight]) if gathers else nullcontext():
        whole = weight.clone()
    whole.ds_status = ZeroParamStatus.AVAILABLE  # type: ignore[attr-defined]  # or TRL's kernels would gather shards
    return whole


def detached(weight: Tensor, *, copied: bool = False) -> Tensor:
    """A whole weight without gradient; if `copied`, in memory of its own."""
    result = weight.detach().clone() if copied else weight.detach()
    if (status := getattr(weight, "ds_status", None)) is not None:
        result.ds_status = status  # type: ignore[attr-defined]
    return result
