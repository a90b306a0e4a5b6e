"""Seconds of a piece of code on a device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from sicompiler.device import device_kind

REPEATS = 5
LEAST_SECONDS = 4e-3  # of one repeat: clocks tick, and a device starts late


def seconds_of(run: Callable[[], object], device: torch.device, repeats: int = REPEATS) -> float:
    """Seconds of one run, the fastest of several: what else the machine does makes a run slower, never faster.

    Args:
        run: what to time; its first run is not counted.
        device: where it computes; waited for.
        repeats: how many.
    """
    run()
    wait(device)
    once = _timed(run, device, 1)
    count = max(1, math.ceil(LEAST_SECONDS / max(once, 1e-7)))
    return min(_timed(run, device, count) for _ in range(repeats))


def wait(device: torch.device) -> None:
    """Return once a device has done what it was asked for."""
    if device_kind(device).has_streams:
        torch.accelerator.synchronize(device)


def _timed(run: Callable[[], object], device: torch.device, count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        run()
    wait(device)
    return (time.perf_counter() - began) / count
