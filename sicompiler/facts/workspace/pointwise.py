"""Workspace of pointwise operators on the CPU, measured as described in `workspace/cpu.py`."""

from __future__ import annotations

import torch

from sicompiler.facts.storages import TensorFact
from sicompiler.facts.workspace.layout import KernelCall, row_major_copy

NUMBER_BYTES = 16  # a Python number becomes a 0-dim tensor of 8 bytes, and one of the dtype computed in


def numbers(call: KernelCall) -> int:
    """Bytes of the Python numbers and 0-dim tensors among the arguments: kernels make 0-dim tensors of them."""
    count = sum(1 for t in call.operands if not t.shape)
    for argument in call.target._schema.arguments:
        value = call[argument.name]
        kind = str(argument.type)
        if ("Tensor" in kind or "number" in kind or "Scalar" in kind) and isinstance(value, (int, float, complex)):
            count += 1
    return NUMBER_BYTES * count


def pointwise(call: KernelCall) -> int:
    """Numbers, and a copy of each operand that is not of the dtype computed in (0-dim operands: free).

    Conditions and masks stay bool.
    """
    kept = [call.arguments.get(name) for name in ("condition", "mask")]
    full = [t for t in call.operands if t.shape and not any(t is mask for mask in kept)]
    common = computed_in(call, full)
    return sum(t.numel * common.itemsize for t in full if t.dtype != common) + numbers(call)


def computed_in(call: KernelCall, operands: list[TensorFact]) -> torch.dtype:
    """The dtype a pointwise kernel converts its operands to."""
    common = call.results[0].dtype
    if common == torch.bool or not (common.is_floating_point or common.is_complex):
        for tensor in operands:
            common = torch.promote_types(common, tensor.dtype)
        for dtype in _small_dtypes(call):  # those of numbers count only where they are of another kind
            if _kind(dtype) > _kind(common):
                common = torch.promote_types(common, dtype)
    return common


def _small_dtypes(call: KernelCall) -> list[torch.dtype]:
    numbers = [value for value in call.arguments.values() if isinstance(value, (float, complex))]
    dtypes = [torch.get_default_dtype() if isinstance(value, float) else torch.complex64 for value in numbers]
    return dtypes + [t.dtype for t in call.operands if not t.shape]


def _kind(dtype: torch.dtype) -> int:
    return 3 if dtype.is_complex else 2 if dtype.is_floating_point else 0 if dtype == torch.bool else 1


def scaled(call: KernelCall) -> int:
    """Pointwise operators that multiply with a constant of their own."""
    return pointwise(call) + NUMBER_BYTES


def some_numbers(call: KernelCall) -> int:
    """A complex number made of two parts, which is no conversion."""
    return NUMBER_BYTES


def buffer(call: KernelCall) -> int:
    """`isinf`: absolute values. `log_sigmoid`: a buffer like the operand, and a copy of one that is not row-major."""
    x = call.operands[0]
    copied = row_major_copy(x) if call.target is torch.ops.aten.log_sigmoid.default else 0
    return (x.nbytes if x.dtype.is_floating_point or x.dtype.is_complex else 0) + copied + NUMBER_BYTES
