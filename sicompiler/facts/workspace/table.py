"""Workspace: what a kernel allocates beside its results, and has released when it returns.

One row per operator, one column per device: `workspace/cpu.py` holds what was measured, `workspace/cuda.py` estimates.
Every operator with an axis rule has one, those that need nothing too (`workspace/families.py`). An operator without,
one of a user's library say, is taken to copy its operands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch._ops import OpOverload

from sicompiler.device import device_kind, rounded
from sicompiler.facts.storages import TensorFact
from sicompiler.facts.users import user_row
from sicompiler.facts.workspace import cpu, cuda
from sicompiler.facts.workspace.layout import Formula, kernel_call, nothing

COLUMNS: Mapping[str, Mapping[OpOverload, Formula]] = {
    "cpu": cpu.ROWS,
    "cuda": cuda.ROWS,
    "cuda-before-ampere": cuda.BEFORE_AMPERE,
}
_COUNTS = {
    "cpu": cpu.workspace,
    "cuda": cuda.workspace,
    "cuda-before-ampere": cuda.workspace_before_ampere,
}


def _rows(device_type: str) -> Mapping[OpOverload, Formula]:
    return COLUMNS[device_kind(device_type).workspace]


def has_row(target: OpOverload, device_type: str) -> bool:
    """Whether something is known of what an operator allocates; else a copy of its operands is counted."""
    return _of_user(target) is not None or target in _rows(device_type) or torch.Tag.pointwise in target.tags


def takes_workspace(target: OpOverload, device_type: str) -> bool:
    """Whether a kernel may allocate anything beside its results."""
    return _of_user(target) is not None or _rows(device_type).get(target) is not nothing


def _of_user(target: OpOverload) -> Formula | None:
    row = user_row(target)
    return None if row is None else row.workspace


def workspace_bytes(
    target: OpOverload,
    operands: Sequence[TensorFact],
    results: Sequence[TensorFact],
    device_type: str,
    arguments: Mapping[str, Any] | None = None,
) -> int:
    """Most bytes that a kernel has allocated at any time, beyond its operands and its whole results.

    Rounded up as the device's allocator does it, as if it were one block.

    Args:
        target: the operator.
        operands: its tensors in schema order, lists flattened, None left out.
        results: its tensor results.
        device_type: a row of `sicompiler.device`, which names its column.
        arguments: every argument by name (`bind`), of the unsliced call; None: all at their defaults.
    """
    kind, of_user = device_kind(device_type), _of_user(target)
    count = of_user or _COUNTS[kind.workspace]
    found = count(kernel_call(target, operands, results, arguments)) if operands or of_user else 0
    return rounded(found, kind.granule_bytes)
