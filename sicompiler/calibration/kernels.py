"""Speeds of kernels: matrix products by rows and columns, convolutions, attention, elementwise operators, launches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from sicompiler.calibration.timing import seconds_of
from sicompiler.cost import element_flops

WIDTHS = {8: torch.float64, 4: torch.float32, 2: torch.bfloat16}
LENGTHS = (8, 32, 128, 512)  # rows, or columns, of thin products; the longest is LONG
LONG = 2048


@dataclass(frozen=True)
class Saturation:
    """How the rate of a kernel grows with the length of one of its dims: best * length / (length + half).

    Attributes:
        best: operations per second at any length that is long enough.
        half: the length at half of it.
    """

    best: float
    half: float

    @classmethod
    def fit(cls, lengths: Sequence[int], rates: Sequence[float]) -> Saturation:
        """Least squares of the relative error of the seconds: 1 / rate = 1 / best + half / best / length."""
        seconds = 1 / np.asarray(rates)
        design = np.stack([np.ones(len(lengths)), 1 / np.asarray(lengths, dtype=float)], axis=1)
        (fixed, slope), *_ = np.linalg.lstsq(design / seconds[:, None], np.ones(len(lengths)), rcond=None)
        if fixed <= 0:  # so steep that no end is in sight: the longest is the best that was seen
            return cls(float(max(rates)), 1.0)
        return cls(float(1 / fixed), float(max(slope / fixed, 1.0)))


def launch_seconds(device: torch.device) -> float:
    """Seconds of one operator call that has nothing to do, averaged over kinds that a rewritten graph calls."""
    x, weight = torch.zeros(1, 8, 8, device=device), torch.zeros(8, 8, device=device)
    acc = torch.zeros(1, 8, 8, device=device)
    runs = (
        lambda: F.silu(x),
        lambda: x + x,
        lambda: F.linear(x, weight),
        lambda: F.layer_norm(x, (8,)),
        lambda: torch.ops.sicompiler.copy_slice.default(x, 1, 1, 1, 2, 4),
        lambda: torch.ops.sicompiler.write_slice_.default(acc, x[:, :4], 1, 1, 1, 2, 4),
    )
    return float(np.mean([seconds_of(run, device) for run in runs]))


def products(device: torch.device, dtype: torch.dtype, size: int = 1024) -> tuple[Saturation, Saturation]:
    """Rates of `linear`, by rows and by columns.

    Args:
        device: where.
        dtype: of operands and result.
        size: of the dim that is summed over, and of columns while rows vary.
    """

    def rate(rows: int, columns: int) -> float:
        x, weight = (torch.randn(n, size, device=device).to(dtype) for n in (rows, columns))
        return 2.0 * rows * columns * size / seconds_of(lambda: F.linear(x, weight), device, 3)

    lengths = (*LENGTHS, LONG)
    by_rows = Saturation.fit(lengths, [rate(length, size) for length in lengths])
    return by_rows, Saturation.fit(lengths, [rate(size, length) for length in lengths])


def convolutions(device: torch.device, dtype: torch.dtype, channels: int = 128) -> float:
    """Operations per second of convolutions: the mean of 3x3 over images and of 3x3x3 over a video."""
    kernels = (((3, 3), (64, 64)), ((3, 3, 3), (8, 24, 24)))
    return float(np.mean([_convolution_rate(device, dtype, channels, *shape) for shape in kernels]))


def temporal_convolutions(device: torch.device, dtype: torch.dtype, channels: int = 128) -> float:
    """Operations per second of convolutions over frames alone: 3x1x1 over a video."""
    return _convolution_rate(device, dtype, channels, (3, 1, 1), (8, 24, 24))


def _convolution_rate(
    device: torch.device, dtype: torch.dtype, channels: int, kernel: tuple[int, ...], size: tuple[int, ...]
) -> float:
    padding = tuple(length // 2 for length in kernel)
    make: Any = (nn.Conv2d, nn.Conv3d)[len(kernel) - 2]
    convolution = make(channels, channels, kernel, padding=padding, device=device, dtype=dtype)
    x = torch.randn(1, channels, *size, device=device).to(dtype)
    flops = 2.0 * x.numel() * channels * math.prod(kernel)
    return flops / seconds_of(lambda: convolution(x), device, 3)


def weight_passes(device: torch.device, dtype: torch.dtype, conv_rate: float, bandwidth: float) -> float:
    """How often a convolution moves its weights: what a heavy one over few positions takes beyond computing.

    Args:
        device: where.
        dtype: of all tensors.
        conv_rate: operations per second of convolutions.
        bandwidth: bytes per second of memory.
    """
    convolution = nn.Conv2d(512, 512, 3, padding=1, device=device, dtype=dtype)
    x = torch.randn(1, 512, 4, 4, device=device).to(dtype)
    computing = 2.0 * x.numel() * 512 * 9 / conv_rate
    nbytes = convolution.weight.numel() * dtype.itemsize
    beyond = seconds_of(lambda: convolution(x), device, 3) - computing
    return float(np.clip(beyond * bandwidth / nbytes, 1.0, 12.0))


def attention(device: torch.device, dtype: torch.dtype, heads: int = 8, tokens: int = 2048, width: int = 64) -> float:
    """Operations per second of fused attention."""
    query, key, value = (torch.randn(1, heads, tokens, width, device=device).to(dtype) for _ in range(3))
    seconds = seconds_of(lambda: F.scaled_dot_product_attention(query, key, value), device, 3)
    return 4.0 * query.numel() * tokens / seconds


def elementwise(device: torch.device, launch: float) -> float:
    """Arithmetic operations per second of an elementwise kernel that stays in the cache."""
    x = torch.randn(2**18, device=device)
    flops = element_flops(torch.ops.aten.gelu.default) * x.numel()
    return flops / _without(launch, seconds_of(lambda: F.gelu(x), device))


def _without(launch: float, seconds: float) -> float:
    """Seconds of a kernel alone; at least half of what it took with its launch, which may overlap it."""
    return max(seconds - launch, seconds / 2)


def bandwidths(device: torch.device, launch: float, most_bytes: int) -> tuple[float, float, float]:
    """Bytes per second of an addition by the size of its working set.

    Args:
        device: where.
        launch: seconds of a call.
        most_bytes: the largest working set.

    Returns:
        (in memory, in the cache, the largest working set that goes at the speed of the cache).
    """
    sizes, rates = [], []
    nbytes = 2**20
    while nbytes <= most_bytes:
        x, y = (torch.ones(nbytes // 12, device=device) for _ in range(2))
        seconds = seconds_of(lambda x=x, y=y: x + y, device, 3)  # type: ignore[misc]
        sizes.append(nbytes)
        rates.append(nbytes / _without(launch, seconds))
        nbytes *= 2
    memory, cache = float(np.mean(rates[-2:])), max(rates)
    border = (memory * cache) ** 0.5
    fitting = [size for size, rate in zip(sizes, rates, strict=True) if rate >= border]
    return memory, cache, float(max(fitting))
