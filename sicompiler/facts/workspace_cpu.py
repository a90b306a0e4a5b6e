"""Workspace on the CPU, measured by `measure_peak` on torch 2.13 with one and two threads.

Two kinds of CPU were measured: AVX2, where oneDNN is used in float32 only, and AVX512 with AMX, where it takes half
dtypes too. Formulas ask torch which it is. They are exact for the shapes measured, up to a few hundred bytes, unless
their docstring says otherwise. X, W and Y stand for the bytes of the input, the weight and the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch._ops import OpOverload

from sicompiler.facts.storages import TensorFact
from sicompiler.facts.workspace_conv import convolution, transposed_convolution
from sicompiler.facts.workspace_layout import Formula, KernelCall, channels_last, row_major_copy, strided_copy
from sicompiler.facts.workspace_onednn import HALF, has_amx
from sicompiler.facts.workspace_products import product, product_and_sum
from sicompiler.ops import groupnorm

aten = torch.ops.aten
ops = torch.ops.sicompiler


def attention(call: KernelCall) -> int:
    """Flash kernel: logsumexp of all queries, and per thread a block of scores; else the whole matrix of scores twice.

    With A bytes per accumulator (float32 for half dtypes), aten/src/ATen/native/cpu/FlashAttentionKernel.cpp makes
    b * h * q * A, and per thread (bq * bk + 2 * bq + bq * d) * A and, for half dtypes, bq * bk * 2; bk is at most 512,
    bq is 32, from 192 queries on 64, from 768 on 256. With AMX it packs keys and values: see `_packed`. A bool mask
    is converted to the dtype of the queries, as large as it is after `expand`.
    The other path is taken for other than 4 dims, value heads of another size, a mask of 3 dims or a last stride
    other than 1. Its peak: scaled queries (in half dtypes: and float32 copies of q, k, v), scores, their softmax, and
    a bool of their size.
    """
    operands, results = call.operands, call.results
    query, key, value = operands[:3]
    mask = operands[3] if len(operands) > 3 else None
    size = 4 if query.dtype in HALF else query.dtype.itemsize
    converted = mask.numel * query.dtype.itemsize if mask is not None and mask.dtype == torch.bool else 0
    flash = (
        all(len(t.shape) == 4 and t.stride[-1] == 1 for t in (query, key, value))
        and query.shape[-1] == key.shape[-1] == value.shape[-1]
        and (mask is None or len(mask.shape) in (2, 4))
    )
    queries, keys, width = query.shape[-2], key.shape[-2], query.shape[-1]
    rows = math.prod(query.shape[:-1])
    if flash:
        block = min(256 if queries >= 768 else 64 if queries >= 192 else 32, queries)
        scores = block * min(keys, 512)
        per_thread = (scores + 2 * block + block * width) * size + (2 * scores if query.dtype in HALF else 0)
        packed = _packed(query, key, block)
        return converted + rows * size + torch.get_num_threads() * per_thread + packed
    copies = query.numel * size
    if query.dtype in HALF:
        copies += (query.numel + key.numel + value.numel) * size
    matrix = rows * keys
    peak = copies + max(2 * matrix * size + matrix + rows, (matrix + query.numel + 2 * key.numel) * size)
    return converted + max(peak - results[0].nbytes, 0)


def _packed(query: TensorFact, key: TensorFact, block: int) -> int:
    """Copies of all keys and values in the layout of AMX tiles, and per thread a transposed block of keys.

    Made from 64 queries and 64 keys on (float16: 16, not measured), if a thread multiplies each of them with 4 queries
    or more.
    """
    if not has_amx(query.dtype):
        return 0
    least, worth = (64, 4) if query.dtype == torch.bfloat16 else (16, 1)
    threads, heads = torch.get_num_threads(), math.prod(query.shape[:2])
    queries, keys, width = query.shape[-2], key.shape[-2], query.shape[-1]
    blocks = -(-heads * -(-queries // block) // threads)
    if min(queries, keys) < least or blocks * block < worth * heads:
        return 0
    even, odd_keys = width + width % 2, keys % 2
    scores = torch.get_num_threads() * block * 2 if odd_keys and keys < 512 else 0  # rows of scores are made even
    padded = 2 * (heads * (keys * even + (keys + odd_keys) * width) + threads * even * min(keys, 512))
    return padded + scores + (2 * threads * block * even if width % 2 else 0)


# Norms, softmax, reductions


def group_norm(call: KernelCall) -> int:
    """Mean and rstd of each group (at most 16 bytes); X for an input neither row-major nor channels-last.

    Channels-last: sums of each channel, per thread. The number of groups isn't known here: at most the channels.
    """
    x = call.operands[0]
    channels = x.shape[0] * x.shape[1]
    if channels_last(x):
        return channels * (16 + 8 * (1 + torch.get_num_threads()))
    return min(channels, 32 * x.shape[0]) * 16 + row_major_copy(x)


def layer_norm(call: KernelCall) -> int:
    """Mean and rstd of each row, counting all dims but the last as rows; X for an input that is not row-major."""
    x = call.operands[0]
    stats = call.operands[1].dtype.itemsize if len(call.operands) > 1 else x.dtype.itemsize
    return 2 * x.numel // max(x.shape[-1], 1) * stats + row_major_copy(x)


def rms_norm(call: KernelCall) -> int:
    """A chain of operators: in float32 X for the product with the weight; in half dtypes float32 copies, up to 5 X."""
    x = call.operands[0]
    rows = 3 * x.numel // max(x.shape[-1], 1) * max(x.dtype.itemsize, 4) + 8 * x.shape[-1]
    more = len(call.operands) > 1 or not x.is_contiguous
    if x.dtype in HALF:
        return (5 if more else 3) * x.nbytes + rows
    return (x.nbytes if more else 0) + rows


def softmax(call: KernelCall) -> int:
    """X in the dtype of the result, if that is another; and once more if the input is permuted or narrowed."""
    x, y = call.operands[0], call.results[0]
    if x.dtype == y.dtype:
        return row_major_copy(x)
    return y.nbytes * (2 if x.is_dense and not x.is_contiguous else 1)


def mean(call: KernelCall) -> int:
    """A float32 copy of half input, and the result in float32."""
    x = call.operands[0]
    return 4 * (x.numel + call.results[0].numel) if x.dtype in HALF else 0


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
    """Where each largest entry was found, as int64; X for an input that is not row-major."""
    return 8 * call.results[0].numel + row_major_copy(call.operands[0])


def resample_indices(call: KernelCall) -> int:
    """Indices and weights for each row and column of the result."""
    y = call.results[0]
    return 4 * (8 + y.dtype.itemsize) * sum(y.shape[2:])


def promoted_copies(call: KernelCall) -> int:
    """Pointwise operators: a copy of each operand that is not of the dtype they compute in (0-dim operands: free)."""
    target, operands, results = call.target, call.operands, call.results
    if torch.Tag.pointwise not in target.tags or target in _CONVERSIONS or not results:
        return 0
    full = [t for t in operands if t.shape and t.dtype != torch.bool] or list(operands)
    common = results[0].dtype
    if common == torch.bool or not common.is_floating_point:
        for tensor in full:
            common = torch.promote_types(common, tensor.dtype)
    return sum(t.numel * common.itemsize for t in full if t.dtype != common)


_CONVERSIONS = {aten._to_copy.default, aten.copy.default, aten.copy_.default}


# Our own operators


def group_stats(call: KernelCall) -> int:
    """The piece `sicompiler.ops.group_stats` copies at a time, and a few numbers per channel."""
    x = call.operands[0]
    size = 8 if x.dtype == torch.float64 else 4
    channels = math.prod(x.shape[:2])
    rest = x.numel // max(channels, 1)
    if groupnorm.channels_innermost(x.shape, x.stride):
        sample = x.numel // max(x.shape[0], 1)
        pieces = 1 + 2 * sample // groupnorm.PIECE
        return min(sample, groupnorm.PIECE) * size + 64 * (channels + x.shape[1] * pieces)
    if x.numel <= groupnorm.PIECE:
        return x.numel * size + 32 * (call.results[0].numel // 3)  # mean, sum of squares and count of each group
    few = 128 * channels * (1 + rest // groupnorm.FUSED_ROW)
    if x.dtype in HALF and x.is_contiguous:
        return few
    return min(max(1, groupnorm.PIECE // rest) * rest, x.shape[1] * rest, groupnorm.PIECE) * size + few


def group_apply(call: KernelCall) -> int:
    """A few numbers per channel."""
    return 64 * math.prod(call.operands[0].shape[:2])


ROWS: dict[OpOverload, Formula] = {
    aten.addmm.default: product_and_sum,
    aten.avg_pool2d.default: strided_copy,
    aten.avg_pool3d.default: strided_copy,
    aten.baddbmm.default: product_and_sum,
    aten.bmm.default: product,
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
    aten.group_norm.default: group_norm,
    aten.layer_norm.default: layer_norm,
    aten.linear.default: product,
    aten.matmul.default: product,
    aten.max_pool1d.default: strided_copy,
    aten.max_pool2d.default: max_pool,
    aten.max_pool3d.default: max_pool,
    aten.mean.default: mean,
    aten.mean.dim: mean,
    aten.mm.default: product,
    aten.native_group_norm.default: group_norm,
    aten.native_layer_norm.default: layer_norm,
    aten.reflection_pad2d.default: strided_copy,
    aten.replication_pad2d.default: strided_copy,
    aten.replication_pad3d.default: strided_copy,
    aten.rms_norm.default: rms_norm,
    aten.scaled_dot_product_attention.default: attention,
    aten._softmax.default: softmax,
    aten.softmax.int: softmax,
    aten.upsample_bilinear2d.default: upsample,
    aten.upsample_bilinear2d.vec: upsample,
    aten.upsample_nearest2d.default: upsample,
    aten.upsample_nearest2d.vec: upsample,
    aten._upsample_nearest_exact2d.default: upsample,
    aten._upsample_nearest_exact2d.vec: upsample,
    aten.upsample_bicubic2d.vec: resample_indices,
    aten.upsample_nearest3d.default: resample_indices,
    aten.upsample_nearest3d.vec: resample_indices,
    aten.upsample_trilinear3d.vec: resample_indices,
    ops.group_apply.default: group_apply,
    ops.group_stats.default: group_stats,
}
"""Operators that allocate workspace on the CPU."""
