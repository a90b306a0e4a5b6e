"""Operators of users: one call says how they are sliced, and what slicing, counting and timing take beside that."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch._library.custom_ops import CustomOpDef
from torch._ops import OpOverload, OpOverloadPacket

import sicompiler.axes.rules  # noqa: F401  (registers the rules that are there already)
from sicompiler.axes.factor_map import Dims, FactorMap
from sicompiler.axes.registry import OpCall, Rule, TensorSpec, rules, rules_of_users
from sicompiler.axes.registry import rule as add_rule
from sicompiler.errors import BadInput
from sicompiler.facts.users import Flops, OperatorRow, Unpad, add_row, user_rows
from sicompiler.facts.workspace.layout import Formula

Operator = OpOverload | OpOverloadPacket | CustomOpDef


def rule(
    *operators: Operator,
    padding: Unpad | None = None,
    workspace: Formula | None = None,
    flops: float | Flops | None = None,
) -> Callable[[Rule], Rule]:
    """Register the axis rule of operators: which of their dims may be sliced, and what slicing takes.

    A decorator of a function from a call to its factor map ([the notation](axis-rules.md)):

        @sicompiler.rule(torch.ops.my_library.soft_cap)
        def soft_cap(call: sicompiler.OpCall) -> sicompiler.FactorMap:
            names = [f"n{dim}" for dim in range(len(call["x"].shape))]
            return sicompiler.FactorMap.of([names, names[-1:]], [names], dict(zip(names, call["x"].shape)))

    A rule has to be right: a wrong one is another output. Register before the first model that uses the operator is
    compiled. An argument that holds the size of a dim keeps its value in every slice, so such a dim is `whole`.

    Args:
        operators: what it is for, none of which has a rule: of `torch.library`, or of torch itself.
        padding: where the operator pads its first tensor along a `window` of its rule. A function of the arguments of
            the call by name, and of a dim of that tensor: gives the arguments that don't pad this dim, and the number
            that it is padded with.
        workspace: what the kernel allocates at most beside its results, in bytes, on any device: a function of a
            `KernelCall`. Without it a copy of all operands is counted.
        flops: what it computes: operations for each element of its largest tensor (2 if not given); or, where it is
            a matrix kernel, a function of a `KernelCall` (operands and results have `shape` and `numel`).

    Raises:
        BadInput: an operator has a rule, writes into its arguments or draws random numbers; or something is no
            operator.
    """
    targets = tuple(dict.fromkeys(_overload(operator) for operator in operators))
    if not targets:
        raise BadInput("sicompiler.rule takes the operators that a rule is for: @sicompiler.rule(torch.ops.library.op)")
    for target in targets:
        if target in rules():
            raise BadInput(f"{target} has an axis rule already")
        if target._schema.is_mutable or torch.Tag.nondeterministic_seeded in target.tags:
            raise BadInput(f"{target} writes into its arguments or draws random numbers: slices of it are another run")
    row = OperatorRow(padding, workspace, flops)

    def register(function: Rule) -> Rule:
        if not callable(function):
            raise BadInput(f"an axis rule is a function from a call to a FactorMap, got {type(function).__name__}")

        def checked(call: OpCall) -> FactorMap:
            return _checked_map(function, call)

        add_rule(*targets)(checked)
        for target in targets:
            add_row(target, row)
        return function

    return register


def code_of_users() -> tuple[object, ...]:
    """All that users have registered: answers that are kept depend on it."""
    rows = user_rows()
    found = sorted(rules_of_users().items(), key=lambda item: str(item[0]))
    return tuple(
        (str(target), function, row.unpad, row.workspace, row.flops)
        for target, function in found
        for row in [rows.get(target, OperatorRow())]
    )


def _overload(operator: Operator) -> OpOverload:
    """One overload of an operator.

    Raises:
        BadInput: it has several, or is no operator.
    """
    if isinstance(operator, CustomOpDef):
        return operator._opoverload
    if isinstance(operator, OpOverloadPacket):
        names = operator.overloads()
        if len(names) != 1:
            raise BadInput(f"{operator} has overloads with rules of their own, name one: {', '.join(names)}")
        found: OpOverload = getattr(operator, names[0])
        return found
    if not isinstance(operator, OpOverload):
        raise BadInput(
            "sicompiler.rule takes operators (torch.ops.library.op, or what torch.library.custom_op gives), "
            f"got {operator!r:.60}"
        )
    return operator


def _checked_map(function: Rule, call: OpCall) -> FactorMap:
    """The map that a user's rule gives for a call.

    Raises:
        BadInput: it does not fit the tensors of the call.
    """
    found: Any = function(call)
    if not isinstance(found, FactorMap):
        raise BadInput(f"the axis rule of {call.target} gave a {type(found).__name__}, not a FactorMap")
    for what, dims, specs in (("operands", found.operands, call.operands), ("results", found.results, call.results)):
        if len(dims) != len(specs):
            raise BadInput(f"the axis rule of {call.target} describes {len(dims)} {what}, this call has {len(specs)}")
        for number, (tensor, spec) in enumerate(zip(dims, specs, strict=True)):
            wrong = _misfit(found, tensor, spec)
            if wrong:
                raise BadInput(f"the axis rule of {call.target} gave {found}, but {what}[{number}] {wrong}")
    return found


def _misfit(found: FactorMap, dims: Dims, spec: TensorSpec) -> str:
    """What of a tensor its factors don't fit; empty where they do."""
    if len(dims) != len(spec.shape):
        return f"has shape {list(spec.shape)}"
    for dim, (names, size) in enumerate(zip(dims, spec.shape, strict=True)):
        unknown = [name for name in names if name not in found.sizes]
        if unknown:
            return f"names a factor {unknown[0]!r} without a size"
        sizes = [found.sizes[name] for name in names]
        if math.prod(sizes) != size and not any(name in found.windows for name in names):
            return f"has {size} entries in dim {dim}"
    return ""
