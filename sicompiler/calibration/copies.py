"""Copies between a device and its offload memory: how fast each way, and whether the device computes beside them."""

from __future__ import annotations

import torch

from sicompiler.calibration.timing import seconds_of
from sicompiler.ops import offloaded

OVERLAPPED = 0.75  # of the seconds of copy and computation one after the other: what takes less than this overlaps


def copy_bandwidth(device: torch.device, nbytes: int = 2**26) -> float:
    """Bytes per second between a device and its offload memory, the slower way.

    Raises:
        OffloadError: there is no room to offload to.
    """
    on_device = torch.ones(nbytes // 4, device=device)
    away = offloaded.spill(on_device)

    def load() -> None:
        offloaded.fetch(away, device)
        offloaded.wait_loads(device)

    def store() -> None:
        offloaded.store_slice_(away, on_device, 0, 1, 1, 0, on_device.shape[0])
        offloaded.wait_stores(device)

    return nbytes / max(seconds_of(run, device, 3) for run in (load, store))


def computes_beside(device: torch.device, size: int = 2048) -> bool:
    """Whether a device computes while a copy to it goes on."""
    weight = torch.randn(size, size, device=device)
    away = offloaded.spill(torch.ones(2**24, device=device))
    work = seconds_of(lambda: weight @ weight, device, 3)
    copy = seconds_of(lambda: offloaded.fetch(away, device), device, 3)
    count = max(1, round(copy / work))

    def both() -> None:
        offloaded.fetch(away, device)
        for _ in range(count):
            weight @ weight
        offloaded.wait_loads(device)

    return seconds_of(both, device, 3) < OVERLAPPED * (copy + count * work)
