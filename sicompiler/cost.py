"""Seconds of an operator, whole or in slices: a roofline with launches and a cache, pure functions only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import fx
from torch._ops import OpOverload

import sicompiler.ops  # noqa: F401  (registers the operators named below)
from sicompiler.device import Kernel, Machine
from sicompiler.facts.calls import bind
from sicompiler.facts.storages import GraphFacts, Origin, TensorFact
from sicompiler.facts.users import Flops, user_row
from sicompiler.facts.workspace.layout import KernelCall, kernel_call

aten = torch.ops.aten
Floats = npt.NDArray[np.float64]


# Arithmetic of one element; what is not listed costs 2. Norms, softmax, pooling and resampling are all listed: what
# they take is a decision, not an oversight. Most of them are bound by memory, so 2 is as good as any number near it.
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
    **dict.fromkeys(
        (
            *(aten._log_softmax.default, aten._softmax.default, aten.log_softmax.int),
            *(
                aten.batch_norm.default,
                aten.instance_norm.default,
                aten.native_layer_norm.default,
                aten.rms_norm.default,
            ),
            *(aten.linalg_vector_norm.default, aten.norm.Scalar, aten.norm.ScalarOpt_dim),
            *(aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default),
            *(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default),
            *(aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default),
            *(aten.constant_pad_nd.default, aten.pad.default, aten.pixel_shuffle.default, aten.pixel_unshuffle.default),
            *(aten.reflection_pad1d.default, aten.reflection_pad2d.default, aten.reflection_pad3d.default),
            *(aten.replication_pad1d.default, aten.replication_pad2d.default, aten.replication_pad3d.default),
            *(aten._upsample_bicubic2d_aa.default, aten._upsample_bicubic2d_aa.vec),
            *(aten._upsample_bilinear2d_aa.default, aten._upsample_bilinear2d_aa.vec),
            *(aten._upsample_nearest_exact1d.default, aten._upsample_nearest_exact1d.vec),
            *(aten._upsample_nearest_exact2d.default, aten._upsample_nearest_exact2d.vec),
            *(aten._upsample_nearest_exact3d.default, aten._upsample_nearest_exact3d.vec),
            *(aten.upsample_bicubic2d.default, aten.upsample_bicubic2d.vec, aten.upsample_bilinear2d.default),
            *(aten.upsample_bilinear2d.vec, aten.upsample_linear1d.default, aten.upsample_linear1d.vec),
            *(aten.upsample_nearest1d.default, aten.upsample_nearest1d.vec, aten.upsample_nearest2d.default),
            *(aten.upsample_nearest2d.vec, aten.upsample_nearest3d.default, aten.upsample_nearest3d.vec),
            *(aten.upsample_trilinear3d.default, aten.upsample_trilinear3d.vec),
        ),
        2.0,
    ),
}


def _linear_flops(call: KernelCall) -> float:
    return 2.0 * call.results[0].numel * call.operands[1].shape[-1]


def _conv_flops(call: KernelCall) -> float:
    weight = call.operands[1]
    return 2.0 * call.results[0].numel * weight.numel / weight.shape[0]


def _transposed_conv_flops(call: KernelCall) -> float:
    source, weight = call.operands[:2]
    return 2.0 * source.numel * weight.numel / weight.shape[0]


def _matmul_flops(call: KernelCall) -> float:
    return 2.0 * call.results[0].numel * call.operands[0].shape[-1]


def _addmm_flops(call: KernelCall) -> float:
    return 2.0 * call.results[0].numel * call.operands[1].shape[-1]


def _einsum_flops(call: KernelCall) -> float:
    """Two operations for every combination of what is summed; an ellipsis stands for dims of the result."""
    inputs, arrow, output = call["equation"].replace(" ", "").partition("->")
    if not arrow:
        output = "".join(letter for letter in inputs if inputs.count(letter) == 1)
    summed: dict[str, int] = {}
    for term, operand in zip(inputs.split(","), call.operands, strict=True):
        for letter, size in zip(term, operand.shape, strict=False) if "." not in term else ():
            if letter not in output:
                summed[letter] = max(size, summed.get(letter, 1))
    return 2.0 * call.results[0].numel * math.prod(summed.values())


def _attention_flops(call: KernelCall) -> float:
    query, key, value = call.operands[:3]
    pairs = query.numel // max(query.shape[-1], 1) * key.shape[-2]
    return 2.0 * pairs * (query.shape[-1] + value.shape[-1])


_KERNELS: Mapping[object, tuple[Kernel, Flops]] = {
    aten.addmm.default: (Kernel.PRODUCT, _addmm_flops),
    aten.baddbmm.default: (Kernel.PRODUCT, _addmm_flops),
    aten.bmm.default: (Kernel.PRODUCT, _matmul_flops),
    aten.conv1d.default: (Kernel.CONVOLUTION, _conv_flops),
    aten.conv1d.padding: (Kernel.CONVOLUTION, _conv_flops),
    aten.conv2d.default: (Kernel.CONVOLUTION, _conv_flops),
    aten.conv2d.padding: (Kernel.CONVOLUTION, _conv_flops),
    aten.conv3d.default: (Kernel.CONVOLUTION, _conv_flops),
    aten.conv3d.padding: (Kernel.CONVOLUTION, _conv_flops),
    aten.conv_transpose1d.default: (Kernel.CONVOLUTION, _transposed_conv_flops),
    aten.conv_transpose2d.input: (Kernel.CONVOLUTION, _transposed_conv_flops),
    aten.conv_transpose3d.input: (Kernel.CONVOLUTION, _transposed_conv_flops),
    aten.einsum.default: (Kernel.PRODUCT, _einsum_flops),
    aten.linear.default: (Kernel.PRODUCT, _linear_flops),
    aten.matmul.default: (Kernel.PRODUCT, _matmul_flops),
    aten.mm.default: (Kernel.PRODUCT, _matmul_flops),
    aten.scaled_dot_product_attention.default: (Kernel.ATTENTION, _attention_flops),
}


def has_cost(target: object) -> bool:
    """Whether something is known of what an operator computes; else 2 operations an element are counted."""
    return target in _KERNELS or target in _ELEMENT_FLOPS


def flops_of_call(call: KernelCall) -> float | None:
    """Floating point operations of a call of a matrix kernel; None for other operators."""
    _, matrix, _ = _kernel_of(call.target)
    return None if matrix is None else matrix(call)


def _kernel_of(target: object) -> tuple[Kernel, Flops | None, float]:
    """What a matrix kernel is and computes, None for others; and what they compute for each element."""
    row = user_row(target)
    if row is not None and row.flops is not None:
        if isinstance(row.flops, int | float):
            return Kernel.PRODUCT, None, row.flops
        return Kernel.PRODUCT, row.flops, 0.0
    kernel, matrix = _KERNELS.get(target, (Kernel.PRODUCT, None))
    return kernel, matrix, element_flops(target)


def element_flops(target: object) -> float:
    """Floating point operations of one element of an operator of ours or torch's that is no matrix kernel."""
    return _ELEMENT_FLOPS.get(target, 2.0)


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
    kernel, matrix, each = _kernel_of(node.target)
    if kernel is Kernel.CONVOLUTION and _is_over_frames(tensors[1].shape):
        kernel = Kernel.TEMPORAL
    columns = tensors[1].shape[0] if matrix and len(tensors) > 1 and tensors[1].shape else 1
    return Work(
        matrix(_call(facts, position, tensors)) if matrix else 0.0,
        0.0 if matrix else each * max(result.numel, *(t.numel for t in activations), 0),
        max(result.numel / max(columns, 1), 1.0),
        float(max(columns, 1)),
        moved,
        0.0 if matrix is _conv_flops else sum(t.nbytes for t in weights),
        sum(t.nbytes for t in weights) if matrix is _conv_flops else 0.0,
        result.dtype.itemsize,
        kernel,
    )


def _call(facts: GraphFacts, position: int, operands: Sequence[TensorFact]) -> KernelCall:
    node: fx.Node = facts.nodes[position]
    assert isinstance(node.target, OpOverload)
    return kernel_call(node.target, operands, facts.tensors[position], bind(node.target, node.args, node.kwargs))


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
