"""Workspace of norms, softmax and reductions on the CPU, measured as described in `workspace/cpu.py`."""

from __future__ import annotations

import math

import torch

from sicompiler.facts.storages import TensorFact
from sicompiler.facts.strides import like_strides
from sicompiler.facts.workspace.families import REDUCTIONS
from sicompiler.facts.workspace.layout import KernelCall, channels_last, mergeable, row_major_copy
from sicompiler.facts.workspace.onednn import HALF
from sicompiler.ops import groupnorm

aten = torch.ops.aten


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
    """Mean and rstd of each row; X for an input that is not row-major."""
    x = call.operands[0]
    stats = call.operands[1].dtype.itemsize if len(call.operands) > 1 else x.dtype.itemsize
    return 2 * _rows(call) * stats + sum(row_major_copy(t) for t in call.operands)


def _rows(call: KernelCall) -> int:
    shape = call.operands[0].shape
    return math.prod(shape[: len(shape) - len(call["normalized_shape"])])


def rms_norm(call: KernelCall) -> int:
    """A chain of operators: the square of X, its mean and the root of that, X times it, and times the weight.

    They work in float32 where X is in a half dtype, on a copy. The square lives until the root is there; the products
    one beside the other, and as they are made row-major where they are in no memory format.
    """
    x, y = call.operands[0], call.results[0]
    dtype = torch.float32 if x.dtype in HALF else x.dtype
    weight = call.operands[1] if len(call.operands) > 1 else None
    rows, product = _rows(call) * dtype.itemsize, x.numel * dtype.itemsize
    copied = product if dtype != x.dtype else 0
    laid = TensorFact(x.shape, like_strides((x.shape, x.stride)), dtype, 0)
    moved = 0 if channels_last(laid) else row_major_copy(laid) or (product if x.is_expanded else 0)
    converted = weight.numel * dtype.itemsize if weight is not None and weight.dtype != dtype else 0
    again = max(moved, product + converted if weight is not None else 0)
    return copied + max(product + 2 * rows, product + rows + again) - y.nbytes + 64


def softmax(call: KernelCall) -> int:
    """X in the dtype of the result, if that is another; and once more if the input is permuted or narrowed."""
    x, y = call.operands[0], call.results[0]
    if x.dtype == y.dtype:
        return row_major_copy(x)
    return y.nbytes * (2 if x.is_dense and not x.is_contiguous else 1)


def mean(call: KernelCall) -> int:
    """A float32 copy of half input, and the result in float32."""
    x = call.operands[0]
    return 4 * (x.numel + call.results[0].numel) + 64 if x.dtype in HALF else 64


def total(call: KernelCall) -> int:
    """Sums: in half dtypes float32 copies of input and result, where the dims summed over can't be seen as one.

    `should_use_acc_buffer` in aten/src/ATen/native/ReduceOps.cpp.
    """
    x, y = call.operands[0], call.results[0]
    dims = call.arguments.get("dim") or range(len(x.shape))
    summed = sorted({d % len(x.shape) for d in dims} if x.shape else (), key=lambda d: -x.stride[d])
    if x.dtype in HALF and not mergeable([x.shape[d] for d in summed], [x.stride[d] for d in summed]):
        return 64 + 4 * (x.numel + y.numel)
    return few_bytes(call)


def extreme(call: KernelCall) -> int:
    """The largest or smallest of all entries: X for an input that is not row-major."""
    return 64 + row_major_copy(call.operands[0])


FEW_BYTES = REDUCTIONS - {
    *(aten.logsumexp.default, aten.max.default, aten.mean.default, aten.mean.dim, aten.min.default),
    *(aten.sum.default, aten.sum.dim_IntList),
}


_IN_INT64 = {aten.prod.default, aten.prod.dim_int, aten.sum.default, aten.sum.dim_IntList}


def few_bytes(call: KernelCall) -> int:
    """Other reductions: some numbers; the input as int64 where integers are summed up or multiplied."""
    x, y = call.operands[0], call.results[0]
    return 64 + (8 * x.numel if y.dtype == torch.int64 and x.dtype != y.dtype and call.target in _IN_INT64 else 0)


def logsumexp(call: KernelCall) -> int:
    """Exponentials of the whole input, and the largest entries."""
    x, y = call.operands[0], call.results[0]
    return x.nbytes + 3 * y.nbytes + 64


def batch_norm(call: KernelCall) -> int:
    """Scale and shift of each channel, and their statistics."""
    return 32 * call.operands[0].shape[1] + 64


# Our own operators


def group_stats(call: KernelCall) -> int:
    """The piece `sicompiler.ops.group_stats` copies at a time, and a few numbers per channel.

    Or what it takes to join the statistics to those of other slices: as much as they are.
    """
    return max(_taken_by_stats(call.operands[0], call.results[0]), call.results[0].nbytes)


def _taken_by_stats(x: TensorFact, stats: TensorFact) -> int:
    size = 8 if x.dtype == torch.float64 else 4
    channels = math.prod(x.shape[:2])
    rest = x.numel // max(channels, 1)
    if groupnorm.channels_innermost(x.shape, x.stride):
        sample = x.numel // max(x.shape[0], 1)
        pieces = 1 + 2 * sample // groupnorm.PIECE
        return min(sample, groupnorm.PIECE) * size + 64 * (channels + x.shape[1] * pieces)
    if x.numel <= groupnorm.PIECE:
        return x.numel * size + 32 * (stats.numel // 3)  # mean, sum of squares and count of each group
    few = 128 * channels * (1 + rest // groupnorm.FUSED_ROW)
    if x.dtype in HALF and x.is_contiguous:
        return few
    return min(max(1, groupnorm.PIECE // rest) * rest, x.shape[1] * rest, groupnorm.PIECE) * size + few


def group_apply(call: KernelCall) -> int:
    """A scale and a shift for each channel of each sample, in the dtype of the sums.

    BatchNorm, which takes row-major and half tensors, wants four times as much beside them: a mean and a variance, and
    the multiplier and addend it makes of all four. Scale and shift come from float64 statistics before there is a
    result: what that takes beyond the result matters where rows are short.
    """
    x = call.operands[0]
    size = 8 if x.dtype == torch.float64 else 4
    channels = math.prod(x.shape[:2])
    before = 8 * (3 * channels + x.shape[1]) - call.results[0].nbytes  # a weight in float64 too
    if x.is_contiguous:
        return max(before, 6 * size * channels)
    by_sample = 4 * size * x.shape[1] if x.dtype in HALF else 0
    return max(before, 2 * size * channels + by_sample)
