"""Workspace on the CPU, measured by `measure_peak` on torch 2.13 (AVX2: oneDNN in float32 only), one and two threads.

The formulas are exact for the shapes measured, up to a few hundred bytes, unless their docstring says otherwise. X, W
and Y stand for the bytes of the input, the weight and the result.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch._ops import OpOverload

from sicompiler.facts.storages import TensorFact
from sicompiler.ops import groupnorm

aten = torch.ops.aten
ops = torch.ops.sicompiler

_HALF = (torch.float16, torch.bfloat16)
Formula = Callable[[Sequence[TensorFact], Sequence[TensorFact]], int]


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _channels_last(tensor: TensorFact) -> bool:
    """Whether a tensor that is not row-major has the channels innermost: [n, h, w, c] or [n, t, h, w, c] in memory."""
    if tensor.is_contiguous or len(tensor.shape) not in (4, 5) or not tensor.is_dense:
        return False
    order = (1, *range(len(tensor.shape) - 1, 1, -1), 0)
    strides = [tensor.stride[d] for d in order if tensor.shape[d] > 1]
    return strides == sorted(strides)


def strided_copy(operands: Sequence[TensorFact], results: Sequence[TensorFact]) -> int:
    """X if the input is not row-major (the kernel works on a copy), else nothing."""
    return 0 if operands[0].is_contiguous else operands[0].nbytes


# Convolutions


@cache
def _onednn_block() -> int:
    """Channels per block in the layouts of oneDNN: 8 with AVX2 (measured), 16 with AVX512 (not measured)."""
    return 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8


@cache
def _onednn_takes(dtype: torch.dtype) -> bool:
    """Whether convolutions of a dtype may go to oneDNN on this machine (half dtypes need AVX512: not measured)."""
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype == torch.float32 and torch.backends.mkldnn.is_available()


def _goes_to_onednn(x: TensorFact, weight: TensorFact, result: TensorFact) -> bool:
    """The choice of `ConvParams::use_mkldnn` in aten/src/ATen/native/Convolution.cpp, confirmed by measurement.

    Small convolutions, and convolutions whose last two kernel sizes are 1 (also conv3d (3, 1, 1)) on one thread, go to
    the kernels that unfold their input.
    """
    if not _onednn_takes(x.dtype):
        return False
    if x.dtype in _HALF:
        return True
    sizes = x.shape if len(x.shape) != 3 else (x.shape[0], x.shape[1], 1, x.shape[2])
    kernel = weight.shape[-2:] if len(weight.shape) > 3 else (1, weight.shape[-1])
    strided = any(out < size for out, size in zip(result.shape[-2:], x.shape[-2:], strict=True))
    if kernel == (1, 1) and not strided and x.shape[0] < 16 and torch.get_num_threads() == 1:
        return False
    grouped = weight.shape[1] != x.shape[1]
    return grouped or min(kernel) > 3 or x.shape[0] > 1 or math.prod(sizes[:4]) > 20480


def convolution(operands: Sequence[TensorFact], results: Sequence[TensorFact]) -> int:
    """oneDNN: copies of input, weight and result in its layout. Else: the unfolded input, of the whole batch at once.

    - oneDNN, row-major input: X + W, then Y; channels filled up to a block of 8 (the input's not if it has less);
    - oneDNN, channels-last input or weight: W, and W again unless the weight is channels-last; an upper bound, as W is
      not always filled up. No copies of input or result;
    - unfolding: n * (channels * kernel) * (positions of the result); nothing for a kernel of 1 without stride;
    - unfolding with groups: one group after the other, then Y, as the parts are joined;
    - and X for an input that is neither row-major nor, in 2-D, channels-last.
    """
    x, weight, y = operands[0], operands[1], results[0]
    if len(x.shape) < len(weight.shape):  # no batch dim
        x, y = (TensorFact((1, *t.shape), (t.nbytes, *t.stride), t.dtype, t.storage) for t in (x, y))
    groups = x.shape[1] // weight.shape[1] if weight.shape[1] else 1
    if _goes_to_onednn(x, weight, y):
        if _channels_last(x) or _channels_last(weight):
            filled = weight.nbytes * _round_up(weight.shape[0], 24) // weight.shape[0] + 2**14
            copied = 0 if _channels_last(x) else x.nbytes
            return copied + filled + (0 if _channels_last(weight) else weight.nbytes)
        block = _onednn_block()
        x_filled = 0 if x.shape[1] < block else x.nbytes * _round_up(x.shape[1], block) // x.shape[1]
        y_filled = y.nbytes * _round_up(y.shape[1], block) // y.shape[1]
        inputs = 1 if x.shape[1] < block or groups > 1 else _round_up(weight.shape[1], block) / weight.shape[1]
        w_filled = math.ceil(weight.nbytes * inputs) * _round_up(weight.shape[0], block) // weight.shape[0]
        return strided_copy([x], []) + max(x_filled + w_filled + y_filled - y.nbytes, y_filled)
    last = len(x.shape) == 4 and _channels_last(x)
    copied = 0 if last else strided_copy([x], [])
    if math.prod(weight.shape[2:]) == 1 and x.shape[2:] == y.shape[2:]:
        unfolded = 0
    else:
        unfolded = x.shape[0] * math.prod(weight.shape[1:]) * math.prod(y.shape[2:]) * x.dtype.itemsize
        unfolded += weight.nbytes if last else 0
    return copied + (unfolded if groups == 1 else max(x.nbytes // groups + unfolded, y.nbytes))


def transposed_convolution(operands: Sequence[TensorFact], results: Sequence[TensorFact]) -> int:
    """The columns to fold: (output channels * kernel) * (positions of the input); in float32 an upper bound."""
    x, weight, y = operands[0], operands[1], results[0]
    columns = x.shape[0] * math.prod(weight.shape[1:]) * math.prod(x.shape[2:]) * x.dtype.itemsize
    return strided_copy(operands, results) + max(columns, x.nbytes + 2 * weight.nbytes + y.nbytes)


# Matrix products


def _copied_for_product(tensor: TensorFact, batch: Sequence[int]) -> int:
    """Bytes of a copy of one factor, [*batch, n, m] after broadcasting, if the kernel can't take it as it is.

    It can if the dims before the last two make one dim, and one of the last two has stride 1.
    """
    pairs = list(zip(tensor.shape, tensor.stride, strict=True))
    leading = [(1, 0)] * (len(batch) + 2 - len(pairs)) + pairs[:-2]
    expanded = [
        (size, stride if own == size else 0) for size, (own, stride) in zip(batch, leading, strict=True) if size != 1
    ]
    one_dim = all(outer == size * inner for (_, outer), (size, inner) in itertools.pairwise(expanded))
    unit = any(stride == 1 or size == 1 for size, stride in pairs[-2:])
    return 0 if one_dim and unit else math.prod([*batch, *tensor.shape[-2:]]) * tensor.dtype.itemsize


def product(operands: Sequence[TensorFact], results: Sequence[TensorFact]) -> int:
    """linear, matmul, mm, bmm: nothing, but a copy of a factor whose strides MKL can't take, or that is broadcast.

    So linear takes a transposed or narrowed [b, n, c] as it is; a permuted [b, f, n, c] it copies.
    """
    first, second = operands[0], operands[1]
    if len(first.shape) < 2 or len(second.shape) < 2:
        return 0
    if len(first.shape) == 2 or len(second.shape) == 2:
        return sum(_copied_for_product(t, t.shape[:-2]) for t in (first, second))
    batch = torch.broadcast_shapes(first.shape[:-2], second.shape[:-2])
    return sum(_copied_for_product(t, batch) for t in (first, second))


def product_and_sum(operands: Sequence[TensorFact], results: Sequence[TensorFact]) -> int:
    """addmm, baddbmm: as `product`, of the second and third operand."""
    return product(operands[1:], results)


def attention(operands: Sequence[TensorFact], results: Sequence[TensorFact]) -> int:
    """Flash kernel: logsumexp of all queries, and per thread a block of scores; else the whole matrix of scores twice.

    With A bytes per accumulator (float32 for half dtypes), aten/src/ATen/native/cpu/FlashAttentionKernel.cpp makes
    b * h * q * A, and per thread (bq * bk + 2 * bq + bq * d) * A and, for half dtypes, bq * bk * 2; bk is at most 512,
    bq is 32, from 192 queries on 64, from 768 on 256. A bool mask is converted to the dtype of the queries, as large
    as it is after `expand`.
    The other path is taken for other than 4 dims, value heads of another size, a mask of 3 dims or a last stride
    other than 1. Its peak: scaled queries (in half dtypes: and float32 copies of q, k, v), scores, their softmax, and
    a bool of their size.
    """
    query, key, value = operands[:3]
    mask = operands[3] if len(operands) > 3 else None
    size = 4 if query.dtype in _HALF else query.dtype.itemsize
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
        per_thread = (scores + 2 * block + block * width) * size + (2 * scores if query.dtype in _HALF else 0)
        return converted + rows * size + torch.get_num_threads() * per_thread
    copies = query.numel * size
    if query.dtype in _HALF:
        copies += (query.numel + key.numel + value.numel) * size
    matrix = rows * keys
    peak = copies + max(2 * matrix * size + matrix + rows, (matrix + query.numel + 2 * key.numel) * size)
    return converted + max(peak - results[0].nbytes, 0)


# Norms, softmax, reductions


def group_norm(operands: Sequence[TensorFact], results: Sequence[TensorFact]) -> int:
    """Mean and rstd of each group (at most 16 bytes); X for an input neither row-major nor channels-last.

    Channels-last: sums of each channel, per thread. The number of groups isn't known here: at most the channels.
    """
    x = operands[0]
    channels = x.shape[0] * x.shape[1]
    if _channels_last(x):
        return channels * (16 + 8 * (1 + torch.get_num_threads()))
    return min(channels, 32 * x.shape[0]) * 16 + strided_copy(operands, results)


def layer_norm(operands: Sequence[TensorFact], results: Sequence[TensorFact]) -> int:
    """Mean and rstd of each row, counting all dims but the last as rows; X for an input that is not row-major."""
    x = operands[0]
    stats = operands[1].dtype.itemsize if len(operands) > 1 else x.dtype.itemsize
    return 2 * x.numel // max(x.shape[-1], 1) * stats + strided_copy(operands, results)


def rms_norm(operands: Sequence[TensorFact], results: Sequence[TensorFact]) -> int:
    """A chain of operators: in float32 X for the product with the weight; in half dtypes float32 copies, up to 5 X."""
    x = operands[0]
    rows = 3 * x.numel // max(x.shape[-1], 1) * max(x.dtype.itemsize, 4) + 8 * x.shape[-1]
    more = len(operands) > 1 or not x.is_contiguous
    if x.dtype in _HALF:
        return (5 if more else 3) * x.nbytes + rows
    return (x.nbytes if more else 0) + rows


def softmax(operands: Sequence[TensorFact], results: Sequence[TensorFact]) -> int:
    """X in the dtype of the result, if that is another; and once more if the input is permuted or narrowed."""
    x, y = operands[0], results[0]
    if x.dtype == y.dtype:
        return strided_copy(operands, results)
    return y.nbytes * (2 if x.is_dense and not x.is_contiguous else 1)


def mean(operands: Sequence[TensorFact], results: Sequence[TensorFact]) -> int:
    """A float32 copy of half input, and the result in float32."""
    x = operands[0]
    return 4 * (x.numel + results[0].numel) if x.dtype in _HALF else 0


def upsample(operands: Sequence[TensorFact], results: Sequence[TensorFact]) -> int:
    """X + Y in channels-last, if height plus width of the result is at most 128 (else only indices).

    `_use_vectorized_kernel_cond_2d` in aten/src/ATen/native/cpu/UpSampleKernel.cpp.
    """
    x, y = operands[0], results[0]
    if _channels_last(x):
        return 0
    return x.nbytes + y.nbytes if sum(y.shape[2:]) <= 128 else 64 * sum(y.shape[2:])


def resample_indices(operands: Sequence[TensorFact], results: Sequence[TensorFact]) -> int:
    """Indices and weights for each row and column of the result."""
    return 64 * sum(results[0].shape[2:])


def promoted_copies(target: OpOverload, operands: Sequence[TensorFact], results: Sequence[TensorFact]) -> int:
    """Pointwise operators: a copy of each operand that is not of the dtype they compute in (0-dim operands: free)."""
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


def group_stats(operands: Sequence[TensorFact], results: Sequence[TensorFact]) -> int:
    """The piece `sicompiler.ops.group_stats` copies at a time, and a few numbers per channel."""
    x = operands[0]
    size = 8 if x.dtype == torch.float64 else 4
    channels = math.prod(x.shape[:2])
    rest = x.numel // max(channels, 1)
    if x.numel <= groupnorm.PIECE:
        return x.numel * size
    few = 128 * channels * (1 + rest // groupnorm.FUSED_ROW)
    if x.dtype in _HALF and x.is_contiguous:
        return few
    return min(max(1, groupnorm.PIECE // rest) * rest, x.shape[1] * rest, groupnorm.PIECE) * size + few


def group_apply(operands: Sequence[TensorFact], results: Sequence[TensorFact]) -> int:
    """A few numbers per channel."""
    return 64 * math.prod(operands[0].shape[:2])


ROWS: dict[OpOverload, Formula] = {
    aten.addmm.default: product_and_sum,
    aten.avg_pool2d.default: strided_copy,
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
