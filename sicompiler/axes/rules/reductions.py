"""Reductions: a sum adds up from partial sums, anything else needs the reduced dims whole."""

from __future__ import annotations

import torch

from sicompiler.axes.factor_map import FactorMap
from sicompiler.axes.registry import OpCall, rule
from sicompiler.axes.rules.building import described, letters, wrap_all

aten = torch.ops.aten


def _reduced(call: OpCall) -> tuple[list[str], list[str], list[str]]:
    """Labels of the operand and of the results, and the reduced factors."""
    rank = len(call.operands[0].shape)
    names, dims = letters(rank), wrap_all(call.arguments.get("dim"), rank)
    kept = call.arguments.get("keepdim", False)
    result = ["" if d in dims else name for d, name in enumerate(names) if kept or d not in dims]
    return names, result, [names[d] for d in sorted(dims)]


@rule(aten.sum.default, aten.sum.dim_IntList)
def add_up(call: OpCall) -> FactorMap:
    """`([a, b]) -> ([a]) reduce={b}`."""
    names, result, reduced = _reduced(call)
    return described(call, [names], [result], reduce=reduced)


@rule(aten.mean.default, aten.mean.dim, aten.prod.default, aten.prod.dim_int, aten.logsumexp.default)
@rule(aten.amax.default, aten.amin.default, aten.max.default, aten.min.default, aten.max.dim, aten.min.dim)
@rule(aten.argmax.default, aten.argmin.default)
@rule(aten.any.default, aten.any.dim, aten.any.dims, aten.all.default, aten.all.dim, aten.all.dims)
@rule(aten.var.correction, aten.var.dim, aten.std.correction, aten.std.dim)
@rule(aten.var_mean.correction, aten.var_mean.dim, aten.std_mean.correction, aten.std_mean.dim)
@rule(aten.linalg_vector_norm.default, aten.norm.Scalar, aten.norm.ScalarOpt_dim)
def gather_all(call: OpCall) -> FactorMap:
    """`([a, b]) -> ([a]) whole={b}`, for every result."""
    names, result, reduced = _reduced(call)
    return described(call, [names], [result] * len(call.results), whole=reduced)
