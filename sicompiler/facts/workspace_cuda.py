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
from sicompiler.facts.workspace_layout import Formula, strided_copy

aten = torch.ops.aten
ops = torch.ops.sicompiler

CUBLAS_BYTES = 32 * 2**20


def convolution(operands: Sequence[TensorFact], results: Sequence[TensorFact]) -> int:
    """Estimate: cuDNN runs half row-major convolutions channels-last, on copies of input, weight and result: X + W + Y.

    In float32 its algorithms take workspace of a similar size. An input that is not dense is copied first: X.
    """
    x, weight, y = operands[0], operands[1], results[0]
    return x.nbytes + weight.nbytes + y.nbytes + (0 if x.is_dense else x.nbytes)


def group_norm(operands: Sequence[TensorFact], results: Sequence[TensorFact]) -> int:
    """Estimate: a copy of an input that is not row-major; mean, rstd and two coefficients per channel, in float32."""
    x = operands[0]
    return strided_copy(operands, results) + 16 * math.prod(x.shape[:2])


def layer_norm(operands: Sequence[TensorFact], results: Sequence[TensorFact]) -> int:
    """Estimate: a copy of an input that is not row-major; mean and rstd of each row, in float32."""
    x = operands[0]
    return strided_copy(operands, results) + 8 * x.numel // max(x.shape[-1], 1)


def attention(operands: Sequence[TensorFact], results: Sequence[TensorFact]) -> int:
    """Estimate: logsumexp of b * h * q float32 in the fused kernels; heads not a multiple of 8 wide are padded.

    An input whose last stride is not 1 goes to the path without a fused kernel, as on the CPU.
    """
    query, key, value = operands[:3]
    if any(len(t.shape) != 4 or t.stride[-1] != 1 for t in (query, key, value)):
        return cpu.attention(operands, results)
    logsumexp = 4 * math.prod(query.shape[:-2]) * -(-query.shape[-2] // 32) * 32
    padded = 0 if query.shape[-1] % 8 == 0 else 2 * sum(t.nbytes for t in (query, key, value)) + results[0].nbytes
    mask = operands[3] if len(operands) > 3 else None
    return logsumexp + padded + (mask.numel * query.dtype.itemsize if mask is not None else 0)


def few_per_channel(operands: Sequence[TensorFact], results: Sequence[TensorFact]) -> int:
    """Estimate: some numbers per sample and channel."""
    return 128 * math.prod(operands[0].shape[:2])


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
