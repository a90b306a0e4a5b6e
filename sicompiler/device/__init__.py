"""One row for each kind of device: its allocator, kernels, streams, host memory, and what the cost model knows of it.

Everything else asks `device_kind`. A backend of its own (`torch.utils.rename_privateuse1_backend`) is added by
`register_device`. Reading the table does not import torch, as `sicompiler --help` lists it.
"""

from sicompiler.device.here import (
    accelerator,
    check_available,
    default_device,
    descriptions,
    free_bytes,
    planned_kind,
    random_rewinder,
    register_host,
    stream_in_use,
    synchronize,
    unregister_host,
)
from sicompiler.device.lookup import device_kind, device_kinds, granule_bytes, has_float64, register_device, rounded
from sicompiler.device.table import DOUBT, PLANNED_FOR, Device, DeviceKind, HostMemory, Kernel, Machine

__all__ = [
    "DOUBT",
    "PLANNED_FOR",
    "Device",
    "DeviceKind",
    "HostMemory",
    "Kernel",
    "Machine",
    "accelerator",
    "check_available",
    "default_device",
    "descriptions",
    "device_kind",
    "device_kinds",
    "free_bytes",
    "granule_bytes",
    "has_float64",
    "planned_kind",
    "random_rewinder",
    "register_device",
    "register_host",
    "rounded",
    "stream_in_use",
    "synchronize",
    "unregister_host",
]
