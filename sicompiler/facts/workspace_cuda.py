"""Workspace on CUDA: cautious ESTIMATES from sources and documentation; none of them was measured yet.

A measurement on the device replaces them (see the design: calibration).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch._ops import OpOverload

from sicompiler.facts import workspace_cpu as cpu
from sicompiler.facts import workspace_products as products
from sicompiler.facts.storages import TensorFact
from sicompiler.facts.workspace_layout import Formula, KernelCall, row_major_copy, strided_copy

aten = torch.ops.aten
ops = torch.ops.sicompiler

CUBLAS_BYTES = 32 * 2**20


def convolution(call: KernelCall) -> int:
    """Estimate: cuDNN runs half row-major convolutions channels-last, on copies of input, weight and result: X + W + Y.

    In float32 its algorithms take workspace of a similar size. An input that is not dense is copied first: X.
    """
    x, weight, y = call.operands[0], call.operands[1], call.results[0]
    return x.nbytes + weight.nbytes + y.nbytes + (0 if x.is_dense else x.nbytes)


def group_norm(call: KernelCall) -> int:
    """Estimate: a copy of an input that is not row-major; mean, rstd and two coefficients per channel, in float32."""
    x = call.operands[0]
    return row_major_copy(x) + 16 * math.prod(x.shape[:2])


def layer_norm(call: KernelCall) -> int:
    """Estimate: a copy of an input that is not row-major; mean and rstd of each row, in float32."""
    x = call.operands[0]
    return row_major_copy(x) + 8 * x.numel // max(x.shape[-1], 1)


def attention(call: KernelCall) -> int:
    """Estimate: logsumexp of b * h * q float32 in the fused kernels; heads not a multiple of 8 wide are padded.

    An input whose last stride is not 1 goes to the path without a fused kernel, as on the CPU.
    """
    operands, results = call.operands, call.results
    query, key, value = operands[:3]
    if any(len(t.shape) != 4 or t.stride[-1] != 1 for t in (query, key, value)):
        return cpu.attention(call)
    logsumexp = 4 * math.prod(query.shape[:-2]) * -(-query.shape[-2] // 32) * 32
    padded = 0 if query.shape[-1] % 8 == 0 else 2 * sum(t.nbytes for t in (query, key, value)) + results[0].nbytes
    mask = operands[3] if len(operands) > 3 else None
    return logsumexp + padded + (mask.numel * query.dtype.itemsize if mask is not None else 0)


def few_per_channel(call: KernelCall) -> int:
    """Estimate: some numbers per sample and channel."""
    return 128 * math.prod(call.operands[0].shape[:2])


ROWS: dict[OpOverload, Formula] = {
    aten.addmm.default: products.blas_copies_and_sum,
    aten.baddbmm.default: products.blas_copies_and_sum,
    aten.bmm.default: products.blas_copies,
    aten.conv1d.default: convolution,
    aten.conv1d.padding: convolution,
    aten.conv2d.default: convolution,
    aten.conv2d.padding: convolution,
    aten.conv3d.default: convolution,
    aten.conv3d.padding: convolution,
    aten.conv_transpose1d.default: convolution,
    aten.conv_transpose2d.input: convolution,
    aten.conv_transpose3d.input: convolution,
    aten.convolution.default: convolution,
    aten.group_norm.default: group_norm,
    aten.layer_norm.default: layer_norm,
    aten.linear.default: products.blas_copies,
    aten.matmul.default: products.blas_copies,
    aten.max_pool2d.default: cpu.max_pool,
    aten.max_pool3d.default: cpu.max_pool,
    aten.mm.default: products.blas_copies,
    aten.native_group_norm.default: group_norm,
    aten.native_layer_norm.default: layer_norm,
    aten.rms_norm.default: cpu.rms_norm,
    aten.scaled_dot_product_attention.default: attention,
    aten._softmax.default: strided_copy,
    aten.softmax.int: strided_copy,
    ops.group_apply.default: few_per_channel,
    ops.group_stats.default: few_per_channel,
}
"""Operators that are estimated to allocate workspace on CUDA."""
