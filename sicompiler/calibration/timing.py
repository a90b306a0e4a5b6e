"""Seconds of a piece of code on a device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from sicompiler.device import synchronize

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
    synchronize(device)
    once = _timed(run, device, 1)
    count = max(1, math.ceil(LEAST_SECONDS / max(once, 1e-7)))
    return min(_timed(run, device, count) for _ in range(repeats))


def _timed(run: Callable[[], object], device: torch.device, count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        run()
    synchronize(device)
    return (time.perf_counter() - began) / count
