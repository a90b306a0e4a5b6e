"""Workspace of matrix products on the CPU, measured as described in `workspace/cpu.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from sicompiler.facts.storages import TensorFact
from sicompiler.facts.strides import view_strides
from sicompiler.facts.workspace import onednn
from sicompiler.facts.workspace.layout import KernelCall, mergeable, row_major

aten = torch.ops.aten


def _as_batches(first: TensorFact, second: TensorFact) -> tuple[int, TensorFact, TensorFact]:
    """Factors as `matmul` and `linear` give them to `bmm`, [b, n, m] and [b, m, k], and bytes of the copies for that.

    What can't be viewed so is copied. A view computes strides of dims of one entry anew. Two matrices, vectors, and a
    batch that is one large matrix (`_is_one_matrix`) stay as they are.
    """
    if min(len(first.shape), len(second.shape)) < 2:
        return 0, first, second
    if len(second.shape) == 2 and _is_one_matrix(first):
        return 0, first, second
    batch = torch.broadcast_shapes(first.shape[:-2], second.shape[:-2])
    copied, made = 0, []
    for factor in (first, second):
        missing = len(batch) + 2 - len(factor.shape)
        own, steps = (*[1] * missing, *factor.shape[:-2]), (*[0] * missing, *factor.stride[:-2])
        expanded = [step if size == whole else 0 for size, step, whole in zip(own, steps, batch, strict=True)]
        rows, columns = factor.shape[-2:]
        shape = (math.prod(batch), rows, columns)
        strided = ((*batch, rows, columns), (*expanded, *factor.stride[-2:]))
        stride = view_strides(strided, shape) if math.prod(shape) else None
        if stride is None:
            copied, stride = copied + math.prod(shape) * factor.dtype.itemsize, (rows * columns, columns, 1)
        made.append(replace(factor, shape=shape, stride=stride))
    return copied, made[0], made[1]


def _is_one_matrix(tensor: TensorFact) -> bool:
    """Whether `matmul` takes a batch as one matrix, by `should_fold` in aten/src/ATen/native/LinearAlgebra.cpp.

    Strides of dims of one entry count, though they say nothing.
    """
    outer = zip(tensor.stride[:-2], tensor.stride[1:-1], tensor.shape[1:-1], strict=True)
    return all(step == inner * size for step, inner, size in outer)


def _is_taken(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether `addmm_impl_cpu_` in aten/src/ATen/native/LinearAlgebra.cpp takes a matrix as it lies.

    One of its strides has to be 1, the other no shorter than the row or column: of those of one entry too.
    """
    return (stride[0] == 1 and stride[1] >= shape[0]) or (stride[1] == 1 and stride[0] >= shape[1])


def _is_taken_in_batch(tensor: TensorFact) -> bool:
    """Whether MKL takes a factor of a batched product as it lies; rows and columns of one entry need no stride."""
    (rows, columns), (down, across) = tensor.shape[-2:], tensor.stride[-2:]
    return (across == 1 and (rows == 1 or down >= columns)) or (down == 1 and (columns == 1 or across >= rows))


def _merged_is_taken(tensor: TensorFact) -> bool:
    """Whether `addmm_impl_cpu_` takes the matrix that all dims but the last make as it lies; a number it may copy."""
    shape = (math.prod(tensor.shape[:-1]), tensor.shape[-1])
    stride = view_strides((tensor.shape, tensor.stride), shape) if tensor.numel else None
    return stride is None or (tensor.numel > 1 and _is_taken(shape, stride))


def product(call: KernelCall) -> int:
    """linear, matmul, mm, mv: nothing, but a copy of a factor whose strides MKL can't take, or that is broadcast.

    So linear takes a transposed or narrowed [b, n, c] as it is, unless the weight requires a gradient (`_folded`); a
    permuted [b, f, n, c] it copies. Half dtypes, where
    oneDNN takes them: see `_half`.
    """
    first, second, y = call.operands[0], call.operands[1], call.results[0]
    if call.target is aten.linear.default and len(second.shape) == 2:
        second = _turned(second)
        if first.is_contiguous and call["bias"] is not None:  # seen as one matrix before it is multiplied
            return _multiplied(first, second, y)
    return _folded(first, second, y, _multiplied)


def _multiplied(first: TensorFact, second: TensorFact, y: TensorFact) -> int:
    if first.dtype in onednn.HALF and onednn.takes(first.dtype):
        return _half(first, second, y)
    return _blas_copies(first, second)


def blas_copies(call: KernelCall) -> int:
    """Copies of the factors of a product that a BLAS library can't take as they lie."""
    return _folded(call.operands[0], call.operands[1], call.results[0], lambda a, b, _: _blas_copies(a, b))


def _folded(
    first: TensorFact, second: TensorFact, y: TensorFact, count: Callable[[TensorFact, TensorFact, TensorFact], int]
) -> int:
    """Bytes of a product; a batch is made one matrix where the other factor is a matrix that requires a gradient.

    So does `should_fold` in aten/src/ATen/native/LinearAlgebra.cpp, with gradients off too: a batch that isn't one
    matrix as it lies is copied, and where it is the second factor, the result is turned back by a copy.
    """
    batch, matrix, after = first, second, 0
    if len(first.shape) == 2 < len(second.shape):
        batch, matrix, after = _turned(second), first, y.nbytes
    if len(batch.shape) < 3 or len(matrix.shape) != 2 or not matrix.requires_grad:
        before, first, second = _as_batches(first, second)
        return before + count(first, second, y)
    merged = mergeable(batch.shape[:-1], batch.stride[:-1])
    copied, rows = (0, batch) if merged else (batch.nbytes, row_major(batch))
    return copied + max(count(rows, matrix, _turned(y) if after else y), after)


def _turned(tensor: TensorFact) -> TensorFact:
    """Its last two dims transposed."""
    shape, stride = ((*of[:-2], of[-1], of[-2]) for of in (tensor.shape, tensor.stride))
    return replace(tensor, shape=shape, stride=stride)


def _blas_copies(first: TensorFact, second: TensorFact) -> int:
    if len(first.shape) < 2 or len(second.shape) < 2:
        return _vector_product(first, second)
    if len(second.shape) == 2:  # one large matrix
        return sum(0 if _merged_is_taken(t) else t.nbytes for t in (first, second))
    # MKL takes all matrices of the batch at once; or single ones are taken, or copied, one after the other.
    if all(map(_is_taken_in_batch, (first, second))):
        return 0
    single = [t for t in (first, second) if not _is_taken(t.shape[-2:], t.stride[-2:])]
    return sum(math.prod(t.shape[-2:]) * t.dtype.itemsize for t in single)


def _vector_product(first: TensorFact, second: TensorFact) -> int:
    """A matrix without a unit stride and a vector with gaps are copied; float32 sums of each row in half dtypes."""
    copied = 0
    rows = 0
    for tensor in (first, second):
        if len(tensor.shape) >= 2:
            rows = max(rows, math.prod(tensor.shape[:-1]), tensor.shape[-1])
            merged = mergeable(tensor.shape[:-1], tensor.stride[:-1])
            unit = any(step == 1 or size == 1 for size, step in zip(tensor.shape[-2:], tensor.stride[-2:], strict=True))
            copied += 0 if unit and merged else tensor.nbytes
        elif tensor.stride[-1:] != (1,):
            copied += tensor.nbytes
    return copied + (8 * rows + 512 if first.dtype in onednn.HALF else 0)


def plain_product(call: KernelCall) -> int:
    """addmm, bmm, baddbmm: as `product`, of the last two operands, which are taken as they lie."""
    return _multiplied(call.operands[-2], call.operands[-1], call.results[0])


def plain_blas_copies(call: KernelCall) -> int:
    """addmm, bmm, baddbmm: as `blas_copies`, of the last two operands, which are taken as they lie."""
    return _blas_copies(call.operands[-2], call.operands[-1])


def _half(first: TensorFact, second: TensorFact, y: TensorFact) -> int:
    """Copies of factors for oneDNN, and its scratchpad.

    One large matrix: copies as for MKL. A batch: oneDNN is given matrices dense in row-major or transposed order, so
    all of them are copied if any other order or a broadcast is met; also the weight of a linear whose input can't be
    seen as one matrix, once for each matrix of the batch.
    """
    if len(first.shape) < 2 or len(second.shape) < 2:
        return _vector_product(first, second)
    depth, rows = first.shape[-1], first.shape[-2]
    columns = y.shape[-1]
    total = y.numel * depth
    if total <= onednn.SMALL_PRODUCT:
        return _blas_copies(first, second)
    if len(second.shape) == 2:
        rows = math.prod(first.shape[:-1])
        steps = [step for size, step in zip(first.shape[:-1], first.stride[:-1], strict=True) if size > 1]
        transposed = depth > 1 and bool(steps) and steps[-1] == 1 and first.stride[-1] != 1
        scratchpad = onednn.product_scratchpad(rows, depth, columns, first.dtype, batch=1, transposed=transposed)
        return _blas_copies(first, second) + scratchpad
    many = first.shape[0]
    kept = [_dense_batch(factor) for factor in (first, second)]
    copied = 0 if kept[0] else many * rows * depth * first.dtype.itemsize
    copied += 0 if kept[1] else many * depth * columns * first.dtype.itemsize
    transposed = kept[0] and first.stride[-1] != 1
    scratchpad = onednn.product_scratchpad(rows, depth, columns, first.dtype, batch=many, transposed=transposed)
    return copied + scratchpad


def _dense_batch(factor: TensorFact) -> bool:
    """`is_mkldnn_optimized_format` in aten/src/ATen/native/mkldnn/Matmul.cpp: dense, each row-major or transposed.

    The stride between transposed matrices counts where there is one, too: `einsum` gives it one that says nothing.
    """
    rows, columns = factor.shape[-2:]
    return factor.is_contiguous or factor.stride == (rows * columns, 1, rows)
