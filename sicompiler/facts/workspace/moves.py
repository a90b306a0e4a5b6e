"""Workspace of operators that look up, sort and rearrange, on the CPU, measured as described in `workspace/cpu.py`."""

from __future__ import annotations

import math

import torch

from sicompiler.facts.workspace.layout import KernelCall, mergeable, row_major_copy, transposing_block
from sicompiler.facts.workspace.onednn import HALF
from sicompiler.facts.workspace.pointwise import NUMBER_BYTES, pointwise

aten = torch.ops.aten

JOINS = (aten.cat.default, aten.concat.default, aten.concatenate.default, aten.stack.default)


def roll(call: KernelCall) -> int:
    """One dim: nothing. No dims: X if it can't be seen as one dim. Several: one after the other, each a new tensor.

    `roll_common` in aten/src/ATen/native/TensorTransformations.h keeps the first of them until all are done.
    """
    x, count = call.operands[0], len(call["dims"])
    if count == 0:
        return row_major_copy(x)
    return x.nbytes * min(count - 1, 2)


def copied(call: KernelCall) -> int:
    """A block of entries where a transposed matrix is copied to row-major memory of its dtype."""
    y = call.results[0]
    blocks = [transposing_block(t) for t in call.operands if t.dtype == y.dtype]
    return max(blocks, default=0) if y.is_contiguous else 0


def filled(call: KernelCall) -> int:
    """`masked_fill`: its numbers, and what a row-major copy of its input takes."""
    return pointwise(call) + copied(call)


def strided_operands(call: KernelCall) -> int:
    """A copy of each operand that is not row-major."""
    return sum(row_major_copy(operand) for operand in call.operands)


def triangle(call: KernelCall) -> int:
    """X if the matrices of a batch don't lie one after the other."""
    x = call.operands[0]
    expected = math.prod(x.shape[-2:])
    for size, step in zip(reversed(x.shape[:-2]), reversed(x.stride[:-2]), strict=True):
        if step != expected:
            return row_major_copy(x)
        expected *= size
    return 0


def index_select(call: KernelCall) -> int:
    """A copy of an index that is not row-major, and along the second or the last dim of such an input."""
    x, dim = call.operands[0], call["dim"]
    rank = len(x.shape)
    moved = rank > 1 and dim % rank in (1, rank - 1)
    return index_copy(call) + (row_major_copy(x) if moved else 0)


def joined(call: KernelCall) -> int:
    """One operand at a time that is not of the dtype of the result."""
    return max((t.nbytes for t in call.operands if t.dtype != call.results[0].dtype), default=0)


def index_copy(call: KernelCall) -> int:
    """A copy of an index that is not row-major."""
    return row_major_copy(call.operands[1])


def gather(call: KernelCall) -> int:
    """Half dtypes: the result in float32."""
    y = call.results[0]
    return 4 * y.numel if y.dtype in HALF else 0


def along_dim(call: KernelCall) -> int:
    """`take_along_dim`: an index as large as the result, its negative entries wrapped, and what `gather` takes."""
    return 0 if call["dim"] is None else 8 * call.results[0].numel + NUMBER_BYTES + gather(call)


def fourier(call: KernelCall) -> int:
    """X, unless the dims that are not transformed can be seen as one, in the order they lie in memory."""
    x = call.operands[0]
    dims = {d % len(x.shape) for d in call["dim"]}
    rest = sorted((d for d in range(len(x.shape)) if d not in dims), key=lambda d: -x.stride[d])
    merged = mergeable([x.shape[d] for d in rest], [x.stride[d] for d in rest])
    if call.target is aten._fft_c2r.default:  # it destroys its input; several dims are done one after the other
        return 64 + x.nbytes * (2 if len(dims) > 1 else 1)
    return 64 + (0 if merged else x.nbytes)


def distances(call: KernelCall) -> int:
    """`cdist`: each set of points with two columns more."""
    return 64 + sum(t.nbytes + 2 * t.nbytes // max(t.shape[-1], 1) for t in call.operands)


def sort(call: KernelCall) -> int:
    """Entries of one row with their indices."""
    x = call.operands[0]
    return 32 * max(x.shape, default=1) + 64


def cumulated(call: KernelCall) -> int:
    """One row; and the input in the dtype of the result, if that is another (integers are summed up in int64)."""
    x, y = call.operands[0], call.results[0]
    return 16 * max(x.shape, default=1) + 64 + (y.nbytes if x.dtype != y.dtype else 0)


def repeat(call: KernelCall) -> int:
    """A list of sizes and strides."""
    return 32 * (len(call.results[0].shape) + 1)


def repeat_interleave(call: KernelCall) -> int:
    """X where no dim is named and the input can't be seen as one."""
    return 128 + (row_major_copy(call.operands[0]) if call["dim"] is None else 0)


def index(call: KernelCall) -> int:
    """Offsets of all indices, one int64 each for as many as are broadcast."""
    return 8 * sum(math.prod(t.shape) for t in call.operands[1:]) + 128
