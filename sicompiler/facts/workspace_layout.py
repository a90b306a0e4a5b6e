"""Memory layouts, as far as kernels care: row-major, channels-last, other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sicompiler.facts.storages import TensorFact

Formula = Callable[[Sequence[TensorFact], Sequence[TensorFact]], int]
"""Bytes from the facts of operands and results."""


def channels_last(tensor: TensorFact) -> bool:
    """Whether a tensor that is not row-major has the channels innermost: [n, h, w, c] or [n, t, h, w, c] in memory.

    Strides of dims of one entry count, though they say nothing: kernels go by `is_channels_last_strides_2d` in
    c10/core/MemoryFormat.h, and take a batch of one whose stride is too small for row-major.
    """
    if tensor.is_contiguous or len(tensor.shape) not in (4, 5) or not tensor.is_dense:
        return False
    least = 0
    for d in (1, *range(len(tensor.shape) - 1, 1, -1), 0):
        if tensor.stride[d] < least:
            return False
        least = tensor.stride[d] * tensor.shape[d]
    return True


def strided_copy(operands: Sequence[TensorFact], results: Sequence[TensorFact]) -> int:
    """X if the input is not row-major (the kernel works on a copy), else nothing."""
    return 0 if operands[0].is_contiguous else operands[0].nbytes
