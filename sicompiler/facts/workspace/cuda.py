"""Workspace on CUDA: cautious ESTIMATES from sources and documentation; none of them was measured yet.

A measurement on the device replaces them (see the design: calibration).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch._ops import OpOverload

from sicompiler.facts.workspace import attention as workspace_attention
from sicompiler.facts.workspace import moves as workspace_moves
from sicompiler.facts.workspace import norms, products, resampling
from sicompiler.facts.workspace.composite import composite, unknown
from sicompiler.facts.workspace.families import COMPOSITE, COPIES, NOTHING, POINTWISE, REDUCTIONS
from sicompiler.facts.workspace.layout import (
    Formula,
    KernelCall,
    nothing,
    row_major_copy,
    strided_copy,
)
from sicompiler.ops import groupnorm

aten = torch.ops.aten
ops = torch.ops.sicompiler


def workspace(call: KernelCall) -> int:
    """Bytes of one call; a copy of its operands where nothing is known of the operator."""
    return _workspace(ROWS, call)


def workspace_before_ampere(call: KernelCall) -> int:
    """Bytes of one call on a card of a compute capability below 8.0."""
    return _workspace(BEFORE_AMPERE, call)


def _workspace(rows: Mapping[OpOverload, Formula], call: KernelCall) -> int:
    formula = rows.get(call.target)
    if formula is None:
        formula = nothing if torch.Tag.pointwise in call.target.tags else _UNKNOWN
    return formula(call)


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

    An input whose last stride is not 1 goes to the path without a fused kernel, as on the CPU; so does float64, which
    neither the flash nor the memory-efficient kernel takes.
    """
    operands, results = call.operands, call.results
    query, key, value = operands[:3]
    if any(len(t.shape) != 4 or t.stride[-1] != 1 for t in (query, key, value)) or query.dtype == torch.float64:
        return workspace_attention.unfused(call)
    logsumexp = 4 * math.prod(query.shape[:-2]) * -(-query.shape[-2] // 32) * 32
    padded = 0 if query.shape[-1] % 8 == 0 else 2 * sum(t.nbytes for t in (query, key, value)) + results[0].nbytes
    mask = operands[3] if len(operands) > 3 else None
    return logsumexp + padded + (mask.numel * query.dtype.itemsize if mask is not None else 0)


def group_stats(call: KernelCall) -> int:
    """What `sicompiler.ops.group_stats` allocates: a piece that it copies, or all, where positions are not in a row.

    And some numbers per sample and channel, in some small blocks.
    """
    x = call.operands[0]
    size = 8 if x.dtype == torch.float64 else 4
    in_a_row = all(x.stride[d] == x.stride[d + 1] * x.shape[d + 1] for d in range(2, len(x.shape) - 1))
    return few_per_channel(call) + max(min(x.numel, groupnorm.PIECE) * size, 0 if in_a_row else x.nbytes)


def attention_before_ampere(call: KernelCall) -> int:
    """Estimate: bfloat16 has no fused kernel before compute capability 8.0; other dtypes have the memory-efficient one.

    The conditions are those of `sdp_utils.cpp` (aten/src/ATen/native/transformers/cuda): flash wants 8.0, the
    memory-efficient kernel takes bfloat16 from 8.0 on.
    """
    return workspace_attention.unfused(call) if call.operands[0].dtype == torch.bfloat16 else attention(call)


def few_per_channel(call: KernelCall) -> int:
    """Estimate: some numbers per sample and channel, in some small blocks."""
    return 128 * math.prod(call.operands[0].shape[:2]) + 16 * 512


def sort(call: KernelCall) -> int:
    """Estimate: keys and indices twice, as cub sorts from one pair of buffers to another."""
    x = call.operands[0]
    return 2 * x.nbytes + 16 * x.numel


# Estimate: a copy of an input that is not row-major.
RESAMPLED = frozenset(
    {
        *(aten._upsample_bicubic2d_aa.default, aten._upsample_bicubic2d_aa.vec, aten._upsample_bilinear2d_aa.default),
        *(aten._upsample_bilinear2d_aa.vec, aten._upsample_nearest_exact2d.default),
        *(aten._upsample_nearest_exact2d.vec, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default),
        *(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default, aten.max_pool1d.default),
        *(aten.pixel_shuffle.default, aten.pixel_unshuffle.default, aten.reflection_pad1d.default),
        *(aten.reflection_pad2d.default, aten.reflection_pad3d.default, aten.replication_pad1d.default),
        *(aten.replication_pad2d.default, aten.replication_pad3d.default, aten.upsample_bilinear2d.default),
        *(aten.upsample_bilinear2d.vec, aten.upsample_nearest2d.default, aten.upsample_nearest2d.vec),
    }
)
# Estimate: one row after the other along any dim.
SORTED = frozenset(
    {
        *(aten.sort.default, aten.sort.stable, aten.topk.default, aten.cumsum.default, aten.cumprod.default),
        aten.logcumsumexp.default,
    }
)

_UNKNOWN = unknown(workspace)

ROWS: dict[OpOverload, Formula] = {
    **dict.fromkeys((*NOTHING, *COPIES, *POINTWISE, *REDUCTIONS), nothing),
    **dict.fromkeys(COMPOSITE, composite(workspace)),
    **dict.fromkeys(resampling.INDEXED, nothing),
    **dict.fromkeys(RESAMPLED, strided_copy),
    **dict.fromkeys(SORTED, sort),
    **dict.fromkeys(workspace_moves.JOINS, nothing),
    aten.log_sigmoid.default: nothing,
    aten.log_softmax.int: strided_copy,
    aten._log_softmax.default: strided_copy,
    aten.dot.default: workspace_moves.strided_operands,
    aten.mv.default: workspace_moves.strided_operands,
    aten.embedding.default: nothing,
    aten.gather.default: nothing,
    aten.index.Tensor: workspace_moves.index,
    aten.index_select.default: nothing,
    aten.repeat.default: nothing,
    aten.repeat_interleave.self_int: workspace_moves.repeat_interleave,
    aten.roll.default: workspace_moves.roll,
    aten.tril.default: nothing,
    aten.triu.default: nothing,
    aten.addmm.default: products.plain_blas_copies,
    aten.baddbmm.default: products.plain_blas_copies,
    aten.bmm.default: products.plain_blas_copies,
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
    aten.max_pool2d.default: resampling.max_pool,
    aten.max_pool3d.default: resampling.max_pool,
    aten.mm.default: products.blas_copies,
    aten.native_group_norm.default: group_norm,
    aten.native_layer_norm.default: layer_norm,
    aten.rms_norm.default: norms.rms_norm,
    aten.scaled_dot_product_attention.default: attention,
    aten._softmax.default: strided_copy,
    aten.softmax.int: strided_copy,
    ops.group_apply.default: few_per_channel,
    ops.group_stats.default: group_stats,
}
"""Operators that are estimated to allocate workspace on CUDA."""

BEFORE_AMPERE: dict[OpOverload, Formula] = {
    **ROWS,
    aten.scaled_dot_product_attention.default: attention_before_ampere,
}
"""The same operators on cards of a compute capability below 8.0 (T4, V100, RTX 20, GTX 16)."""
