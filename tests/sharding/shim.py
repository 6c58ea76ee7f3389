"""Enables FSDP and DeepSpeed on CPUs, which accelerate silently disables. Imported before any trainer.

accelerate 1.15 makes processes on CPUs plain data parallel: its list of devices for FSDP lacks CPUs, and it enables
DeepSpeed only without a process group. The engines themselves run on CPUs.
"""

import os

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

_plain = AcceleratorState.__init__


def _sharded(self, *args, fsdp_plugin=None, deepspeed_plugin=None, **kwargs):
    fresh = not AcceleratorState._shared_state
    _plain(self, *args, fsdp_plugin=fsdp_plugin, deepspeed_plugin=deepspeed_plugin, **kwargs)
    if not fresh or self.distributed_type is not DistributedType.MULTI_CPU:
        return
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        assert fsdp_plugin is not None
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
    elif os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        from deepspeed import comm

        plugin = next(iter(deepspeed_plugin.values())) if isinstance(deepspeed_plugin, dict) else deepspeed_plugin
        self.distributed_type, self._mixed_precision = DistributedType.DEEPSPEED, "no"
        plugin.set_mixed_precision("no")
        plugin.select(_from_accelerator_state=True)
        self.deepspeed_plugins = deepspeed_plugin
        comm.init_distributed(dist_backend=self.backend, auto_mpi_discovery=False)
    PartialState._shared_state["distributed_type"] = self.distributed_type


AcceleratorState.__init__ = _sharded
