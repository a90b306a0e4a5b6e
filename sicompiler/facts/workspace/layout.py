"""Memory layouts, as far as kernels care: row-major, channels-last, other; and what a formula is told of a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from sicompiler.facts.calls import bind
from sicompiler.facts.storages import TensorFact
from sicompiler.facts.strides import suggests_channels_last


@dataclass(frozen=True)
class KernelCall:
    """One call of an operator, as a workspace formula sees it.

    Attributes:
        target: the operator.
        operands: its tensors in schema order, lists flattened, None left out.
        results: its tensor results.
        arguments: every argument by its schema name, defaults filled in. Tensors are the `TensorFact`s of `operands`.
            Sizes among the others (of a view, of a resampled image) are those of the unsliced call.
    """

    target: OpOverload
    operands: Sequence[TensorFact]
    results: Sequence[TensorFact]
    arguments: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]


Formula = Callable[[KernelCall], int]
"""Bytes a kernel allocates beside its results."""


def kernel_call(
    target: OpOverload,
    operands: Sequence[TensorFact],
    results: Sequence[TensorFact],
    arguments: Mapping[str, Any] | None = None,
) -> KernelCall:
    """Build a `KernelCall`.

    Args:
        target: the operator.
        operands: its tensors in schema order, lists flattened, None left out.
        results: its tensor results.
        arguments: from `bind`, with nodes or tensors in the places of the operands; None: all at their defaults.
    """
    if arguments is None:
        return KernelCall(target, operands, results, MappingProxyType(bind(target, tuple(operands), {})))
    rest = iter(operands)

    def swap(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [swap(item) for item in value]
        return next(rest, value) if isinstance(value, (fx.Node, torch.Tensor)) else value

    return KernelCall(target, operands, results, MappingProxyType({n: swap(v) for n, v in arguments.items()}))


def channels_last(tensor: TensorFact) -> bool:
    """Whether a tensor that is not row-major has the channels innermost: [n, h, w, c] or [n, t, h, w, c] in memory.

    Strides of dims of one entry count, though they say nothing: kernels go by `is_channels_last_strides_2d` in
    c10/core/MemoryFormat.h, and take a batch of one whose stride is too small for row-major.
    """
    return tensor.is_dense and not tensor.is_contiguous and suggested(tensor)


def suggested(tensor: TensorFact) -> bool:
    """Whether its memory format is channels-last, by what torch suggests: with gaps, or if it is row-major too."""
    return suggests_channels_last((tensor.shape, tensor.stride))


def mergeable(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether dims can be seen as one."""
    pairs = [(size, step) for size, step in zip(shape, stride, strict=True) if size != 1]
    return all(outer == size * inner for (_, outer), (size, inner) in pairwise(pairs))


def row_major(tensor: TensorFact) -> TensorFact:
    """What a copy of a tensor looks like that is dense in the order of its dims."""
    strides = [1]
    for size in reversed(tensor.shape[1:]):
        strides.insert(0, strides[0] * size)
    return TensorFact(tensor.shape, tuple(strides[: len(tensor.shape)]), tensor.dtype, tensor.storage)


def transposing_block(tensor: TensorFact) -> int:
    """What a row-major copy of a transposed matrix takes for a moment: a block of 60 * 60 entries.

    `copy_transpose_valid` and `copy_same_type_transpose_` in aten/src/ATen/native/Copy.cpp.
    """
    transposed = len(tensor.shape) == 2 and tensor.stride == (1, tensor.shape[0]) and tensor.numel >= 60 * 60
    return 60 * 60 * tensor.dtype.itemsize if transposed else 0


def row_major_copy(tensor: TensorFact) -> int:
    """Bytes of a tensor if it is not row-major (the kernel works on a copy), else nothing."""
    return 0 if tensor.is_contiguous else tensor.nbytes + transposing_block(tensor)


def strided_copy(call: KernelCall) -> int:
    """X if the input is not row-major (the kernel works on a copy), else nothing."""
    return row_major_copy(call.operands[0])


def image_copy(call: KernelCall) -> int:
    """X if the input is neither row-major nor channels-last, else nothing."""
    x = call.operands[0]
    return 0 if channels_last(x) else row_major_copy(x)


def nothing(call: KernelCall) -> int:
    """No workspace: said, rather than left out."""
    return 0


def operand_copies(call: KernelCall) -> int:
    """A copy of every operand: what an operator that nobody measured is taken to need."""
    return sum(t.nbytes for t in call.operands)
