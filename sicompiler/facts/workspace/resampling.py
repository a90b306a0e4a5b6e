"""Workspace of resampling, pooling and padding on the CPU, measured as described in `workspace/cpu.py`."""

from __future__ import annotations

import torch

from sicompiler.facts.strides import has_format
from sicompiler.facts.workspace.layout import KernelCall, channels_last, image_copy

aten = torch.ops.aten

# Interpolation in any number of dims that is given indices and weights of each.
INDEXED = frozenset(
    {
        *(aten._upsample_nearest_exact1d.default, aten._upsample_nearest_exact1d.vec),
        *(aten._upsample_nearest_exact3d.default, aten._upsample_nearest_exact3d.vec),
        *(aten.upsample_bicubic2d.default, aten.upsample_bicubic2d.vec),
        *(aten.upsample_linear1d.default, aten.upsample_linear1d.vec),
        *(aten.upsample_nearest1d.default, aten.upsample_nearest1d.vec),
        *(aten.upsample_nearest3d.default, aten.upsample_nearest3d.vec),
        *(aten.upsample_trilinear3d.default, aten.upsample_trilinear3d.vec),
    }
)


def upsample(call: KernelCall) -> int:
    """X + Y in channels-last, if height plus width of the result is at most 128 (else only indices).

    `_use_vectorized_kernel_cond_2d` in aten/src/ATen/native/cpu/UpSampleKernel.cpp. The stride of a batch of one says
    nothing about the layout, yet the kernel goes by it, and a sum may leave another there than its fake tensor tells.
    """
    x, y = call.operands[0], call.results[0]
    if channels_last(x) and x.shape[0] > 1:
        return 0
    return x.nbytes + y.nbytes if sum(y.shape[2:]) <= 128 else 2 * (8 + y.dtype.itemsize) * sum(y.shape[2:])


def max_pool(call: KernelCall) -> int:
    """Where each largest entry was found, as int64; X for an input that is neither row-major nor channels-last."""
    return 8 * call.results[0].numel + image_copy(call)


def resample_indices(call: KernelCall) -> int:
    """Indices and weights for each row and column of the result; Y where a channels-last input gives another layout.

    Volumes are read as channels-last where they lie so, whatever the strides of dims of one entry say
    (`upsample_nearest3d_kernel_impl` in aten/src/ATen/native/cpu/UpSampleKernel.cpp); the result goes by those too.
    """
    x, y = call.operands[0], call.results[0]
    copied = len(x.shape) == 5 and has_format((x.shape, x.stride), True) and not has_format((y.shape, y.stride), True)
    return 4 * (8 + y.dtype.itemsize) * sum(y.shape[2:]) + (y.nbytes if copied else 0)


def antialiased(call: KernelCall) -> int:
    """The input resampled along its width, if both change, and tables of weights."""
    x, y = call.operands[0], call.results[0]
    tables = 64 * (sum(x.shape[2:]) + sum(y.shape[2:]))
    if any(size == out for size, out in zip(x.shape[2:], y.shape[2:], strict=True)):
        return tables
    between = x.nbytes // max(x.shape[-1], 1) * y.shape[-1]
    return between + tables
