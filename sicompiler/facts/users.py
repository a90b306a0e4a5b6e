"""What users say of operators of their own, one row each: padding, workspace and time. The axis rule is in `axes`.

The tables of sicompiler's own operators ask here first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch._ops import OpOverload

from sicompiler.facts.workspace.layout import Formula, KernelCall

Unpad = Callable[[Mapping[str, Any], int], tuple[Mapping[str, Any], float]]
"""The arguments of a call, by name, without padding along a dim of its first operand; and the number it pads with."""

Flops = Callable[[KernelCall], float]
"""Floating point operations of one call of a matrix kernel."""


@dataclass(frozen=True)
class OperatorRow:
    """What is known of an operator of a user beside its axis rule.

    Attributes:
        unpad: takes the padding of its window out; None where it never pads.
        workspace: what its kernels allocate beside their results; None counts a copy of its operands.
        flops: operations for each element of its largest tensor, or a function where it is a matrix kernel.
    """

    unpad: Unpad | None = None
    workspace: Formula | None = None
    flops: float | Flops | None = None


_rows: dict[OpOverload, OperatorRow] = {}


def add_row(target: OpOverload, row: OperatorRow) -> None:
    """Keep what a user says of an operator."""
    _rows[target] = row


def user_rows() -> Mapping[OpOverload, OperatorRow]:
    """All that users have said, by operator."""
    return MappingProxyType(_rows)


def user_row(target: object) -> OperatorRow | None:
    """What a user has said of an operator; None for operators of torch and of sicompiler."""
    return _rows.get(target) if isinstance(target, OpOverload) else None
