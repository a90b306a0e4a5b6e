"""Workspace: what a kernel allocates beside its results, and has released when it returns.

One row per operator, one column per device: `workspace_cpu.py` holds what was measured, `workspace_cuda.py` estimates.
An operator without a row allocates nothing worth counting: on the CPU that was checked for every operator of the
UNets and transformers among the presets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch._ops import OpOverload

from sicompiler.facts import workspace_cpu, workspace_cuda
from sicompiler.facts.storages import TensorFact
from sicompiler.facts.workspace_layout import Formula, kernel_call

FORMULAS: Mapping[str, Mapping[OpOverload, Formula]] = {"cpu": workspace_cpu.ROWS, "cuda": workspace_cuda.ROWS}


def workspace_bytes(
    target: OpOverload,
    operands: Sequence[TensorFact],
    results: Sequence[TensorFact],
    device_type: str,
    arguments: Mapping[str, Any] | None = None,
) -> int:
    """Most bytes that a kernel has allocated at any time, beyond its operands and its whole results.

    Args:
        target: the operator.
        operands: its tensors in schema order, lists flattened, None left out.
        results: its tensor results.
        device_type: "cpu" or "cuda"; anything else counts as "cuda".
        arguments: every argument by name (`bind`), of the unsliced call; None: all at their defaults.
    """
    rows = FORMULAS.get(device_type, workspace_cuda.ROWS)
    formula = rows.get(target)
    call = kernel_call(target, operands, results, arguments)
    if formula is not None:
        return formula(call) if operands else 0
    if device_type == "cpu":
        return workspace_cpu.promoted_copies(call)
    return 0


def standing_bytes(device_type: str) -> int:
    """Bytes that libraries take from torch's allocator at first use and keep: part of every measured peak.

    CUDA: an estimate, the workspace of cuBLAS: 32 MiB on Hopper, 8.1 MiB on older devices (`getChosenWorkspaceSize` in
    aten/src/ATen/cuda/CublasHandlePool.cpp; the environment variable CUBLAS_WORKSPACE_CONFIG changes it).
    """
    return workspace_cuda.CUBLAS_BYTES if device_type == "cuda" else 0
