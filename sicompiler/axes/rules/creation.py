"""Operators that create tensors: constants are free along every dim, ranges are whole."""

from __future__ import annotations

import torch

from sicompiler.axes.factor_map import FactorMap
from sicompiler.axes.registry import OpCall, rule
from sicompiler.axes.rules.building import described, letters
from sicompiler.axes.rules.pointwise import pointwise

aten = torch.ops.aten

# The operand lends its shape. What `empty` holds is arbitrary, so any slice of it is as good.
pointwise(aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.empty_like.default)


@rule(aten.zeros.default, aten.ones.default, aten.full.default, aten.empty.memory_format, aten.scalar_tensor.default)
@rule(aten.new_zeros.default, aten.new_ones.default, aten.new_full.default, aten.new_empty.default)
def constant(call: OpCall) -> FactorMap:
    """`() -> ([a, b])`; an operand lends its dtype only, so none of its dims is sliced."""
    names = letters(len(call.results[0].shape))
    lent = [[f"o{d}" for d in range(len(spec.shape))] for spec in call.operands]
    return described(call, lent, [names], whole=[name for dims in lent for name in dims])


@rule(aten.arange.default, aten.arange.start, aten.arange.start_step, aten.linspace.default, aten.eye.default)
@rule(aten.eye.m)
def ramp(call: OpCall) -> FactorMap:
    """`() -> ([a]) whole={a}`: the values depend on where the slice begins."""
    names = letters(len(call.results[0].shape))
    return described(call, [], [names], whole=names)
