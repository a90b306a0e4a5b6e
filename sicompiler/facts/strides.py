"""Strides that ATen gives to views and to new results, computed from shapes and strides as its C++ code does."""

from __future__ import annotations

from collections.abc import Sequence

Strided = tuple[tuple[int, ...], tuple[int, ...]]  # shape and strides


def suggests_channels_last(tensor: Strided) -> bool:
    """What `suggest_memory_format` says of a tensor, as c10/core/MemoryFormat.h computes it from its strides.

    Args:
        tensor: shape and strides; those of dims of one entry count too.
    """
    shape, stride = tensor
    if len(shape) not in (4, 5) or stride[1] == 0:
        return False
    least = 0
    for d in (1, *range(len(shape) - 1, 1, -1), 0):
        if shape[d] == 0 or stride[d] < least or (d == 0 and least == stride[1]):
            return False
        least = stride[d] * (shape[d] if shape[d] > 1 else 1)
    return True


def dense_strides(shape: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """Strides of a dense tensor.

    Args:
        shape: its sizes.
        order: its dims, outermost first.
    """
    stride, step = [1] * len(shape), 1
    for dim in reversed(order):
        stride[dim] = step
        step *= max(shape[dim], 1)
    return tuple(stride)


def format_strides(shape: Sequence[int], channels: bool) -> tuple[int, ...]:
    """Strides of a dense tensor, row-major or with the channels innermost."""
    dims = range(len(shape))
    return dense_strides(shape, [0, *dims[2:], 1] if channels else dims)


def has_format(tensor: Strided, channels: bool) -> bool:
    """`is_contiguous` of a memory format: whether a tensor is dense, row-major or with the channels innermost."""
    dims = range(len(tensor[0]))
    return _lies(tensor, [0, *dims[2:], 1] if channels else dims)


def view_strides(tensor: Strided, shape: Sequence[int]) -> tuple[int, ...] | None:
    """Strides of a view of another shape, as `computeStride` in aten/src/ATen/TensorUtils.cpp finds them.

    Args:
        tensor: what is viewed, not empty.
        shape: of the view, with as many elements.

    Returns:
        The strides, those of dims of one entry too; None where no view has this shape.
    """
    old, strides = tensor
    made, d, chunk, count = [1] * len(shape), len(shape) - 1, 1, 1
    base = strides[-1] if old else 1
    for before in range(len(old) - 1, -1, -1):
        chunk *= old[before]
        if before and (old[before - 1] == 1 or strides[before - 1] == chunk * base):
            continue
        while d >= 0 and (count < chunk or shape[d] == 1):
            made[d] = count * base
            count *= shape[d]
            d -= 1
        if count != chunk:
            return None
        if before:
            base, chunk, count = strides[before - 1], 1, 1
    return tuple(made) if d < 0 or not old else None


def pointwise_strides(operands: Sequence[Strided]) -> tuple[int, ...]:
    """Strides of what `TensorIterator` allocates, as aten/src/ATen/TensorIterator.cpp chooses them.

    Operands of one shape that are all row-major, all channels-last or all dense with the same strides give a result
    like them. Else dims are sorted by the strides of the first operand that tells them apart.

    Args:
        operands: of one dtype, in the order of the call; numbers as tensors without dims.
    """
    shape = _broadcast([shape for shape, _ in operands])
    if all(own == shape for own, _ in operands):
        dims = range(len(shape))
        for order in (dims, (0, 2, 3, 1)) if len(shape) == 4 else (dims,):
            if all(_lies(operand, order) for operand in operands):
                return dense_strides(shape, order)
        if len({stride for _, stride in operands}) == 1 and _is_dense(operands[0]):
            return operands[0][1]
    return _sorted_strides(shape, operands)


def like_strides(tensor: Strided) -> tuple[int, ...]:
    """Strides of `empty_like`: those of what is dense, dims of one entry included; else as `TensorIterator` sorts."""
    return tensor[1] if _is_dense(tensor) else _sorted_strides(tensor[0], [tensor])


def _broadcast(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    rank = max(map(len, shapes))
    filled = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(next((size for size in sizes if size != 1), 1) for sizes in zip(*filled, strict=True))


def _lies(tensor: Strided, order: Sequence[int]) -> bool:
    """Whether a tensor is dense in an order of its dims, outermost first; strides of dims of one entry don't count."""
    pairs = zip(*tensor, dense_strides(tensor[0], order), strict=True)
    return all(size == 1 or stride == dense for size, stride, dense in pairs)


def _is_dense(tensor: Strided) -> bool:
    """`is_non_overlapping_and_dense`: whether a tensor is dense in some order of its dims."""
    shape, stride = tensor
    return _lies(tensor, sorted(range(len(shape)), key=lambda d: -stride[d]))


def _sorted_strides(shape: tuple[int, ...], operands: Sequence[Strided]) -> tuple[int, ...]:
    """`reorder_dimensions`: insertion sort, innermost dim first, where most pairs of dims may be left undecided."""
    rank = len(shape)
    strides = []
    for own, stride in operands:
        sizes = shape[rank - len(own) :]
        kept = (0 if size == 1 != whole else step for size, step, whole in zip(own, stride, sizes, strict=True))
        strides.append((*[0] * (rank - len(own)), *kept))
    order = list(range(rank - 1, -1, -1))
    for i in range(1, rank):
        later = i
        for earlier in range(i - 1, -1, -1):
            swap = _compared(shape, strides, order[earlier], order[later])
            if swap > 0:
                order[earlier], order[later] = order[later], order[earlier]
                later = earlier
            elif swap < 0:
                break
    return dense_strides(shape, order[::-1])


def _compared(shape: Sequence[int], strides: Sequence[Sequence[int]], inner: int, outer: int) -> int:
    """1 where two dims are to be swapped, -1 where they lie as they should, 0 where no operand tells."""
    for stride in strides:
        if stride[inner] == 0 or stride[outer] == 0:
            continue
        if stride[inner] != stride[outer]:
            return 1 if stride[inner] > stride[outer] else -1
        if shape[inner] > shape[outer]:
            return 1
    return 0
