"""FSDP2 on CPUs, to try a sharded run where there is no GPU.

torch shards over gloo as over NCCL, but accelerate goes that way only for accelerators: on CPUs it drops the FSDP
plugin and trains with DDP. While `fsdp_on_cpus` holds, its state keeps the plugin there too. Only where the environment
says HF_ARCH_CPU_FSDP=1: this is not what accelerate supports.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from hf_arch.training.compat import mixed_precision, set_fsdp


@contextmanager
def fsdp_on_cpus() -> Iterator[None]:
    """An `Accelerator` that is made inside takes an FSDP plugin for CPU processes as it would for GPUs."""
    original = AcceleratorState.__init__

    def init(self: AcceleratorState, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        plugin = kwargs.get("fsdp_plugin")
        if plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            dtype = mixed_precision(self)
            if dtype is not None:
                plugin.set_mixed_precision(dtype)
            set_fsdp(self, plugin)

    AcceleratorState.__init__ = init
    try:
        yield
    finally:
        AcceleratorState.__init__ = original
