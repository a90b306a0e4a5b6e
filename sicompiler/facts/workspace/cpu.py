"""Workspace on the CPU, measured by `measure_peak` on torch 2.13 with one and two threads.

Four kinds of CPU were measured: AVX2, where oneDNN is used in float32 only; AVX512, where it takes bfloat16; AVX512
that multiplies bfloat16, where channels-last convolutions have kernels of their own (`uses_small_products`); and AVX512
with AMX, where it takes both half dtypes. Formulas ask torch which it is. They are exact for the shapes
measured, up to a few hundred bytes, unless their docstring says otherwise. X, W and Y stand for the bytes of the
input, the weight and the result.
"""

from __future__ import annotations

import torch
from torch._ops import OpOverload

from sicompiler.facts.workspace import moves, norms, pointwise, resampling
from sicompiler.facts.workspace.attention import attention
from sicompiler.facts.workspace.composite import composite, unknown
from sicompiler.facts.workspace.conv import convolution, transposed_convolution
from sicompiler.facts.workspace.families import COMPOSITE, COPIES, NOTHING, POINTWISE
from sicompiler.facts.workspace.layout import Formula, KernelCall, image_copy, nothing, strided_copy
from sicompiler.facts.workspace.products import plain_product, product

aten = torch.ops.aten
ops = torch.ops.sicompiler


def workspace(call: KernelCall) -> int:
    """Bytes of one call; a copy of its operands where nothing is known of the operator."""
    formula = ROWS.get(call.target)
    if formula is None:
        formula = pointwise.pointwise if torch.Tag.pointwise in call.target.tags else _UNKNOWN
    return formula(call)


_UNKNOWN = unknown(workspace)

ROWS: dict[OpOverload, Formula] = {
    **dict.fromkeys(NOTHING, nothing),
    **dict.fromkeys(COPIES, moves.copied),
    **dict.fromkeys(POINTWISE, pointwise.pointwise),
    **dict.fromkeys(COMPOSITE, composite(workspace)),
    aten.addmm.default: plain_product,
    aten.avg_pool2d.default: image_copy,
    aten.avg_pool3d.default: strided_copy,
    aten.baddbmm.default: plain_product,
    aten.bmm.default: plain_product,
    aten.conv1d.default: convolution,
    aten.conv1d.padding: convolution,
    aten.conv2d.default: convolution,
    aten.conv2d.padding: convolution,
    aten.conv3d.default: convolution,
    aten.conv3d.padding: convolution,
    aten.conv_transpose1d.default: transposed_convolution,
    aten.conv_transpose2d.input: transposed_convolution,
    aten.conv_transpose3d.input: transposed_convolution,
    aten.convolution.default: convolution,
    aten.cummax.default: nothing,
    aten.cummin.default: nothing,
    aten.group_norm.default: norms.group_norm,
    aten.layer_norm.default: norms.layer_norm,
    aten.linear.default: product,
    aten.matmul.default: product,
    aten.max_pool1d.default: strided_copy,
    aten.max_pool2d.default: resampling.max_pool,
    aten.max_pool3d.default: resampling.max_pool,
    aten.mean.default: norms.mean,
    aten.mean.dim: norms.mean,
    aten.mm.default: product,
    aten.native_group_norm.default: norms.group_norm,
    aten.native_layer_norm.default: norms.layer_norm,
    aten.reflection_pad2d.default: image_copy,
    aten.replication_pad2d.default: image_copy,
    aten.replication_pad3d.default: image_copy,
    aten.rms_norm.default: norms.rms_norm,
    aten.scaled_dot_product_attention.default: attention,
    aten._softmax.default: norms.softmax,
    aten.softmax.int: norms.softmax,
    aten.upsample_bilinear2d.default: resampling.upsample,
    aten.upsample_bilinear2d.vec: resampling.upsample,
    aten.upsample_nearest2d.default: resampling.upsample,
    aten.upsample_nearest2d.vec: resampling.upsample,
    aten._upsample_nearest_exact2d.default: resampling.upsample,
    aten._upsample_nearest_exact2d.vec: resampling.upsample,
    aten.masked_fill.Scalar: moves.filled,
    aten.masked_fill.Tensor: moves.filled,
    **dict.fromkeys(norms.FEW_BYTES, norms.few_bytes),
    **dict.fromkeys(resampling.INDEXED, resampling.resample_indices),
    aten._upsample_bicubic2d_aa.default: resampling.antialiased,
    aten._upsample_bicubic2d_aa.vec: resampling.antialiased,
    aten._upsample_bilinear2d_aa.default: resampling.antialiased,
    aten._upsample_bilinear2d_aa.vec: resampling.antialiased,
    aten._adaptive_avg_pool2d.default: image_copy,
    aten._adaptive_avg_pool3d.default: nothing,
    aten.reflection_pad1d.default: strided_copy,
    aten.reflection_pad3d.default: image_copy,
    aten.replication_pad1d.default: strided_copy,
    aten.native_batch_norm.default: norms.batch_norm,
    aten.logsumexp.default: norms.logsumexp,
    aten.cumsum.default: moves.cumulated,
    aten.cumprod.default: moves.cumulated,
    aten.logcumsumexp.default: moves.cumulated,
    aten.dot.default: nothing,
    aten.mv.default: product,
    **dict.fromkeys(moves.JOINS, moves.joined),
    aten.complex.default: pointwise.some_numbers,
    aten.deg2rad.default: pointwise.scaled,
    aten.polar.default: pointwise.some_numbers,
    aten.rad2deg.default: pointwise.scaled,
    aten._fft_c2c.default: moves.fourier,
    aten._fft_c2r.default: moves.fourier,
    aten._fft_r2c.default: moves.fourier,
    aten.cdist.default: moves.distances,
    aten.isinf.default: pointwise.buffer,
    aten.log_sigmoid.default: pointwise.buffer,
    aten.roll.default: moves.roll,
    aten.log_softmax.int: norms.softmax,
    aten._log_softmax.default: norms.softmax,
    aten.tril.default: moves.triangle,
    aten.triu.default: moves.triangle,
    aten.pixel_shuffle.default: image_copy,
    aten.pixel_unshuffle.default: image_copy,
    aten.max.default: norms.extreme,
    aten.min.default: norms.extreme,
    aten.sum.default: norms.total,
    aten.sum.dim_IntList: norms.total,
    aten.repeat.default: moves.repeat,
    aten.repeat_interleave.self_int: moves.repeat_interleave,
    aten.sort.default: moves.sort,
    aten.sort.stable: moves.sort,
    aten.topk.default: moves.sort,
    aten.embedding.default: moves.index_copy,
    aten.index_select.default: moves.index_select,
    aten.gather.default: moves.gather,
    aten.take_along_dim.default: moves.along_dim,
    aten.index.Tensor: moves.index,
    ops.group_apply.default: norms.group_apply,
    ops.group_stats.default: norms.group_stats,
}
"""Operators that allocate workspace on the CPU."""
