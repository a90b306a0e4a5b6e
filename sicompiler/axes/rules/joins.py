"""Operators that put tensors together: the dim they join along is whole, the other dims are free."""

from __future__ import annotations

import torch

from sicompiler.axes.factor_map import FactorMap
from sicompiler.axes.registry import OpCall, rule
from sicompiler.axes.rules.building import described, letters, without_dim, wrap

aten = torch.ops.aten


@rule(aten.cat.default, aten.concat.default, aten.concatenate.default)
def cat(call: OpCall) -> FactorMap:
    """`([a, c0], [a, c1]) -> ([a, c]) whole={c0, c1, c}`."""
    rank = len(call.results[0].shape)
    names, dim = letters(rank, avoid="c"), wrap(call["dim"], rank)
    pieces = [f"c{i}" for i in range(len(call.operands))]

    def joined(name: str, length: int) -> list[str]:
        # A 1-d tensor of no elements may be joined to tensors of any rank; it has only the dim joined along.
        return [name] if length != rank else [*names[:dim], name, *names[dim + 1 :]]

    operands = [joined(piece, len(spec.shape)) for piece, spec in zip(pieces, call.operands, strict=True)]
    return described(call, operands, [joined("c", rank)], whole=[*pieces, "c"])


@rule(aten.stack.default)
def stack(call: OpCall) -> FactorMap:
    """`([a], [a]) -> ([a, s]) whole={s}`."""
    rank = len(call.results[0].shape)
    names = letters(rank - 1, avoid="s")
    dim = wrap(call["dim"], rank)
    return described(call, [names] * len(call.operands), [[*names[:dim], "s", *names[dim:]]], whole="s")


@rule(aten.meshgrid.default, aten.meshgrid.indexing)
def meshgrid(call: OpCall) -> FactorMap:
    """`([a], [b]) -> ([a, b], [a, b])`; with indexing "xy" the first two dims of the results swap."""
    names = letters(len(call.operands))
    grid = list(names)
    if call.arguments.get("indexing") == "xy" and len(names) > 1:
        grid[:2] = [names[1], names[0]]
    vectors = [[name] if spec.shape else [] for name, spec in zip(names, call.operands, strict=True)]
    return described(call, vectors, [grid] * len(call.results))


@rule(aten.select_scatter.default)
def select_scatter(call: OpCall) -> FactorMap:
    """`([a, s], [a]) -> ([a, s]) whole={s}`."""
    names, rest = without_dim(call, len(call.results[0].shape))
    return described(call, [names, rest], [names], whole="s")


@rule(aten.slice_scatter.default)
def slice_scatter(call: OpCall) -> FactorMap:
    """`([a, s], [a, p]) -> ([a, s]) whole={s, p}`; free along the dim where the whole of it is overwritten."""
    rank = len(call.results[0].shape)
    names, dim = letters(rank, avoid="sp"), wrap(call["dim"], rank)
    target, source = list(names), list(names)
    if call.operands[0].shape[dim] == call.operands[1].shape[dim] and call["step"] == 1:
        return described(call, [names, names], [names])
    target[dim], source[dim] = "s", "p"
    return described(call, [target, source], [target], whole="sp")
