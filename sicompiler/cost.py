"""Seconds of an operator, whole or in slices: a roofline with launches and a cache, pure functions only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

import sicompiler.ops  # noqa: F401  (registers the operators named below)
from sicompiler.device import Kernel, Machine
from sicompiler.facts.storages import GraphFacts, Origin, TensorFact

aten = torch.ops.aten
Floats = npt.NDArray[np.float64]


# Arithmetic of one element; what is not listed costs 2.
_ELEMENT_FLOPS: Mapping[object, float] = {
    aten.gelu.default: 30.0,
    aten.silu.default: 20.0,
    aten.sigmoid.default: 20.0,
    aten.exp.default: 15.0,
    aten.tanh.default: 25.0,
    aten.softmax.int: 20.0,
    aten.group_norm.default: 10.0,
    aten.layer_norm.default: 10.0,
    torch.ops.sicompiler.group_stats.default: 6.0,
    torch.ops.sicompiler.group_apply.default: 4.0,
}


def _linear_flops(operands: Sequence[TensorFact], result: TensorFact) -> float:
    return 2.0 * result.numel * operands[1].shape[-1]


def _conv_flops(operands: Sequence[TensorFact], result: TensorFact) -> float:
    weight = operands[1]
    return 2.0 * result.numel * weight.numel / weight.shape[0]


def _matmul_flops(operands: Sequence[TensorFact], result: TensorFact) -> float:
    return 2.0 * result.numel * operands[0].shape[-1]


def _addmm_flops(operands: Sequence[TensorFact], result: TensorFact) -> float:
    return 2.0 * result.numel * operands[1].shape[-1]


def _attention_flops(operands: Sequence[TensorFact], result: TensorFact) -> float:
    query, key = operands[0], operands[1]
    return 4.0 * query.numel * key.shape[-2]


_KERNELS: Mapping[object, tuple[Kernel, Callable[[Sequence[TensorFact], TensorFact], float]]] = {
    aten.addmm.default: (Kernel.PRODUCT, _addmm_flops),
    aten.bmm.default: (Kernel.PRODUCT, _matmul_flops),
    aten.conv1d.default: (Kernel.CONVOLUTION, _conv_flops),
    aten.conv2d.default: (Kernel.CONVOLUTION, _conv_flops),
    aten.conv3d.default: (Kernel.CONVOLUTION, _conv_flops),
    aten.linear.default: (Kernel.PRODUCT, _linear_flops),
    aten.matmul.default: (Kernel.PRODUCT, _matmul_flops),
    aten.mm.default: (Kernel.PRODUCT, _matmul_flops),
    aten.scaled_dot_product_attention.default: (Kernel.ATTENTION, _attention_flops),
}


@dataclass(frozen=True)
class Work:
    """The work of one operator call, whole.

    Attributes:
        matrix_flops: floating point operations of a matrix kernel.
        vector_flops: of an elementwise one.
        rows, columns: of the matrix product (for the efficiency of thin ones).
        activation_bytes: read and written activations.
        weight_bytes: read parameters, of matrix products and elementwise operators.
        kernel_bytes: read parameters of convolutions.
        itemsize: bytes per element of the result.
        kernel: what kind of matrix kernel, if it is one.
    """

    matrix_flops: float
    vector_flops: float
    rows: float
    columns: float
    activation_bytes: float
    weight_bytes: float
    kernel_bytes: float
    itemsize: int
    kernel: Kernel = Kernel.PRODUCT


NO_WORK = Work(0, 0, 1, 1, 0, 0, 0, 4)


@dataclass(frozen=True)
class TimeSlicing:
    """How an operator is cut, as far as its time goes.

    Attributes:
        whole_bytes: activations that every slice reads whole.
        columns: whether its weights are cut, and so the columns of its matrix product, rather than the rows.
    """

    whole_bytes: float = 0.0
    columns: bool = False


ROWS = TimeSlicing()


def _is_over_frames(weight: Sequence[int]) -> bool:
    """Whether a convolution weight [out, in, frames, height, width] covers one position of each frame."""
    return len(weight) == 5 and weight[2] > 1 and tuple(weight[3:]) == (1, 1)


def work_of(facts: GraphFacts, position: int, operands: Sequence[tuple[int, int]]) -> Work:
    """Count the work of a node; views are free."""
    node: fx.Node = facts.nodes[position]
    if not facts.makes_storage(position):
        return NO_WORK
    tensors = [facts.tensors[q][r] for q, r in operands]
    result = facts.tensors[position][0]
    weights = [t for t in tensors if facts.storages[t.storage].origin is Origin.WEIGHT]
    activations = [t for t in tensors if facts.storages[t.storage].origin is not Origin.WEIGHT]
    moved = sum(t.nbytes for t in activations) + sum(t.nbytes for t in facts.tensors[position])
    kernel, matrix = _KERNELS.get(node.target, (Kernel.PRODUCT, None))
    if kernel is Kernel.CONVOLUTION and _is_over_frames(tensors[1].shape):
        kernel = Kernel.TEMPORAL
    columns = tensors[1].shape[0] if matrix and len(tensors) > 1 and tensors[1].shape else 1
    return Work(
        matrix(tensors, result) if matrix else 0.0,
        0.0 if matrix else _ELEMENT_FLOPS.get(node.target, 2.0) * max(result.numel, *(t.numel for t in activations), 0),
        max(result.numel / max(columns, 1), 1.0),
        float(max(columns, 1)),
        moved,
        0.0 if matrix is _conv_flops else sum(t.nbytes for t in weights),
        sum(t.nbytes for t in weights) if matrix is _conv_flops else 0.0,
        result.dtype.itemsize,
        kernel,
    )


def slice_lengths(size: int) -> tuple[int, ...]:
    """The slice lengths a planner tries, longest first: all distinct ones of a short axis, halvings of a long one."""
    if size <= 32:
        found = {math.ceil(size / k) for k in range(2, size + 1)}
    else:
        found = {math.ceil(size / 2**m) for m in range(1, size.bit_length() + 1)} | {math.ceil(size / 3), 1}
    return tuple(sorted(found - {size}, reverse=True))


def waste(run_bytes: Floats, machine: Machine) -> Floats:
    """How many times the bytes of a slice are moved, by how many of them lie beside each other."""
    return np.asarray(np.maximum(1.0, machine.line_bytes / np.maximum(run_bytes, 1.0)))


def sliced_seconds(
    work: Work, size: int, lengths: Floats, machine: Machine, excess: Floats | float = 1.0, cut: TimeSlicing = ROWS
) -> Floats:
    """Seconds of one operator over all slices of an axis.

    Args:
        work: of the whole operator.
        size: length of the axis.
        lengths: slice lengths; `size` itself gives the time of the unsliced operator.
        machine: the device.
        excess: how many times the work is done, where slices overlap; per slice length.
        cut: what is cut of it.

    Returns:
        One time per slice length.
    """
    if work is NO_WORK:
        return np.zeros_like(lengths)
    count = np.ceil(size / lengths)
    fraction = lengths / size * excess
    rows = np.maximum(work.rows * (1.0 if cut.columns else fraction), 1.0)
    columns = np.maximum(work.columns * (fraction if cut.columns else 1.0), 1.0)
    narrow = (columns / (columns + machine.columns_at_half_speed)) * (1 + machine.columns_at_half_speed / work.columns)
    rate = machine.rate(work.kernel, work.itemsize) * narrow * rows / (rows + machine.rows_at_half_speed)
    compute = excess * (work.matrix_flops / rate + work.vector_flops / machine.vector_flops)
    sliced_bytes = max(work.activation_bytes - cut.whole_bytes, 0.0)
    fits = sliced_bytes * fraction + cut.whole_bytes <= machine.cache_bytes
    bandwidth = np.where(fits, machine.cache_bandwidth, machine.memory_bandwidth)
    parameters = work.weight_bytes + machine.kernel_passes * work.kernel_bytes
    traffic = (excess * sliced_bytes + count * cut.whole_bytes) / bandwidth
    overlapped = np.maximum(compute, traffic) + 0.3 * np.minimum(compute, traffic)
    return np.asarray(overlapped + count * (machine.launch_seconds + parameters / machine.memory_bandwidth))


def whole_seconds(work: Work, machine: Machine) -> float:
    """Seconds of an unsliced operator."""
    return float(sliced_seconds(work, 1, np.ones(1), machine)[0])
