"""Where the part of each weight lies that a process holds: whole, or a shard of FSDP2's or of DeepSpeed's ZeRO-3.

Teachers whose weights differ from the policy's read with the policy's model, into which their values are put for the
time. Both engines gather weights before they use them and may keep what they gathered; so after any change of values
it is dropped, or the next pass would read the values of before.
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
        """The values that this process holds, sharing their memory with the parameter."""
        return parameter.data

    def gathered(self, parameter: nn.Parameter, local: Tensor) -> Tensor:  # noqa: ARG002
        """The whole of what every process holds of a tensor shaped like a parameter. All processes call it together."""
        return local

    def part(self, parameter: nn.Parameter, whole: Tensor) -> Tensor:  # noqa: ARG002
        """What this process holds of it."""
        return whole

    def before_pass(self, kind: str) -> None:
        """Called before a pass for `completions`, or for a `cache`."""

    @contextmanager
    def all_gathered(self) -> Iterator[None]:
        """Every weight whole on every process, for passes that processes do not make together."""
        yield

    @contextmanager
    def exchanged(self, values: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
        """The parameters with other local values, and then with their own again."""
        live = {parameter: parameter.data for parameter in values}
        try:
            for parameter, value in values.items():
                parameter.data = value.to(live[parameter])
            yield
        finally:
            for parameter, own in live.items():
                parameter.data = own


class _Shards(WholeWeights):
    """Values are written in place: the engines hold pointers to them."""

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
        model: As FSDP2 left it.
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
        """The units of weights that FSDP gathers together."""
        states = [module._get_fsdp_state() for module in self._model.modules() if isinstance(module, FSDPModule)]
        return list({id(s._fsdp_param_group): s._fsdp_param_group for s in states if s._fsdp_param_group}.values())

    @contextmanager
    def all_gathered(self) -> Iterator[None]:
        assert isinstance(self._model, FSDPModule)
        self._model._get_fsdp_state()._lazy_init()  # as the first forward pass does
        groups = self._groups()
        sharded = [group for group in groups if not group.is_unsharded]
        after_forward = [group.post_forward_mesh_info for group in groups]
        for group in groups:
            group.post_forward_mesh_info = None  # stays gathered after a forward pass
        for group in sharded:
            group.unshard()
            group.wait_for_unshard()
        # Transformers' trainer has wrapped it into a forward pass, after which the outermost unit would be laid off.
        generate = vars(self._model).pop("generate", None)
        try:
            yield
        finally:
            if generate is not None:
                self._model.generate = generate
            for group, info in zip(groups, after_forward, strict=True):
                group.post_forward_mesh_info = info
            for group in sharded:
                # The others stay gathered until the backward pass, and the next forward pass may take them to be there.
                if group.post_forward_mesh_info is not None:
                    group._to_sharded()

    def drop_gathered(self) -> None:
        # `FSDPModule.reshard` does nothing for a unit that stays gathered after the forward pass, as the one with
        # embedding and head does.
        self._dropped = [group for group in self._groups() if group.is_unsharded]
        for group in self._dropped:
            group._to_sharded()

    def _write(self, values: Mapping[nn.Parameter, Tensor]) -> None:
        super()._write(values)
        # Nor is it gathered again by the next forward pass, which takes it to be there.
        for group in self._dropped:
            group.unshard()
            group.wait_for_unshard()
        self._dropped.clear()


class ZeROShards(_Shards):
    """DeepSpeed's ZeRO-3: a parameter's own data is empty, its shard is a piece of it laid flat.

    Args:
        engine: DeepSpeed's.
    """

    def __init__(self, engine: Any):
        self._offload = engine.optimizer.parameter_offload
        self._kind: str | None = None

    def forget_order(self) -> None:
        """DeepSpeed gathers ahead by the order of modules that it saw in the pass before; let it look again."""
        coordinator = self._offload.get_param_coordinator()
        if not coordinator.is_invalid_trace():
            coordinator._invalidate_trace()

    def before_pass(self, kind: str) -> None:
        """Forget the order if the pass before was of another kind: one that runs the head's module, one that does not.

        TRL gathers the head on its own, and fails where it is being gathered already.
        """
        if kind != self._kind:
            self.forget_order()
        self._kind = kind

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
        self.forget_order()
        self._offload.partition_all_parameters()

    def _write(self, values: Mapping[nn.Parameter, Tensor]) -> None:
        super()._write(values)
        # Small ones are not gathered by the passes: DeepSpeed takes them to be there.
        if persistent := self._offload.persistent_parameters:
            persistent[0].all_gather(persistent)


def _mean_over_processes(weight: DTensor) -> list[Partial]:
    """How the gradient of a whole weight comes back to its shards."""
    return [Partial("avg")] * weight.device_mesh.ndim


def whole_with_gradient(weight: Tensor) -> Tensor:
    """A weight of a layer that is read without calling the layer, whole on every process; gradients come back to it.

    A weight that a process holds whole is given back as it is.
    """
    if isinstance(weight, DTensor):
        return weight.full_tensor(grad_placements=_mean_over_processes(weight))
    if not hasattr(weight, "ds_id"):
        return weight
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters, ZeroParamStatus

    # With tied embeddings it may be there, and must not be laid off again here.
    gathers = getattr(weight, "ds_status") != ZeroParamStatus.AVAILABLE  # noqa: B009
    with GatheredParameters([weight]) if gathers else nullcontext():
        whole = weight.clone()
    whole.ds_status = ZeroParamStatus.AVAILABLE  # type: ignore[attr-defined]  # or TRL's kernels would look for shards
    return whole


def detached(weight: Tensor, *, copied: bool = False) -> Tensor:
    """A whole weight without gradient, and, if `copied`, without what it shares its memory with."""
    result = weight.detach().clone() if copied else weight.detach()
    if (status := getattr(weight, "ds_status", None)) is not None:
        result.ds_status = status  # type: ignore[attr-defined]
    return result
