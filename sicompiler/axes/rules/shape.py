"""Views and other changes of shape: dims are split into common factors, reordered, expanded or repeated."""

from __future__ import annotations

import math

import torch

from sicompiler.axes.factor_map import FactorMap
from sicompiler.axes.registry import OpCall, rule
from sicompiler.axes.rules.building import aligned, described, letters, opaque, wrap
from sicompiler.axes.rules.pointwise import pointwise
from sicompiler.axes.rules.refinement import refine

aten = torch.ops.aten

# An expanded dim is a factor of the result only, and free: the operand is the same for each slice.
pointwise(aten.expand.default, aten.broadcast_to.default, aten.expand_as.default)


@rule(aten.reshape.default, aten.view.default, aten._unsafe_view.default, aten.flatten.using_ints)
@rule(aten.ravel.default, aten.unflatten.int, aten.unsqueeze.default, aten.reshape_as.default, aten.view_as.default)
def reshape(call: OpCall) -> FactorMap:
    """`([a b, c]) -> ([a, b, c])`: the common refinement; a second operand has the shape of the result."""
    if math.prod(call.results[0].shape) == 0:
        return opaque(call)
    found = refine(call.operands[0].shape, call.results[0].shape)
    operands = [found.source, *[found.target] * (len(call.operands) - 1)]
    return FactorMap.of(operands, [found.target], found.sizes, whole=sorted(found.whole))


@rule(aten.squeeze.dim, aten.squeeze.dims)
def squeeze(call: OpCall) -> FactorMap:
    """`([a, 1]) -> ([a])`; a named dim that is not of size 1 is whole, for a slice of length 1 would lose it."""
    rank = len(call.operands[0].shape)
    named = {wrap(dim, rank) for dim in ([call["dim"]] if isinstance(call["dim"], int) else call["dim"])}
    names = letters(rank)
    kept = [name for d, name in enumerate(names) if d not in named or call.operands[0].shape[d] != 1]
    return described(call, [names], [kept], whole=[names[d] for d in named])


@rule(aten.squeeze.default)
def squeeze_all(call: OpCall) -> FactorMap:
    """`([a, 1]) -> ([a]) whole={a}`: a slice of length 1 would lose its dim."""
    names = letters(len(call.operands[0].shape))
    kept = [name for name, size in zip(names, call.operands[0].shape, strict=True) if size != 1]
    return described(call, [names], [kept], whole=names)


@rule(aten.permute.default)
def permute(call: OpCall) -> FactorMap:
    """`([a, b, c]) -> ([c, a, b])`."""
    return _relabel(call, [wrap(dim, len(call["dims"])) for dim in call["dims"]])


@rule(aten.movedim.int, aten.movedim.intlist)
def movedim(call: OpCall) -> FactorMap:
    """`([a, b, c]) -> ([b, c, a])`."""
    rank = len(call.operands[0].shape)
    ends = ([end] if isinstance(end, int) else end for end in (call["source"], call["destination"]))
    sources, destinations = ([wrap(dim, rank) for dim in end] for end in ends)
    moved = dict(zip(destinations, sources, strict=True))
    rest = iter(d for d in range(rank) if d not in sources)
    return _relabel(call, [moved[d] if d in moved else next(rest) for d in range(rank)])


@rule(aten.transpose.int, aten.swapaxes.default, aten.swapdims.default)
def transpose(call: OpCall) -> FactorMap:
    """`([a, b, c]) -> ([a, c, b])`."""
    rank = len(call.operands[0].shape)
    first, second = (wrap(value, rank) for name, value in call.arguments.items() if name != "self")
    order = list(range(rank))
    if rank:
        order[first], order[second] = second, first
    return _relabel(call, order)


@rule(aten.t.default, aten.numpy_T.default)
def reverse(call: OpCall) -> FactorMap:
    """`([a, b]) -> ([b, a])`."""
    return _relabel(call, list(reversed(range(len(call.operands[0].shape)))))


@rule(aten.repeat.default, aten.tile.default)
def repeat(call: OpCall) -> FactorMap:
    """`([a, 1]) -> ([r0 a, r1]) whole={r0}`: the copies are the outer factor of the dim; free where they are all of it.

    As with an expanded dim, the operand is then the same for each slice.
    """
    counts = call["repeats"] if call.target is aten.repeat.default else call["dims"]
    rank = len(call.results[0].shape)
    names = letters(rank)
    counts = [1] * (rank - len(counts)) + list(counts)
    copies = [f"r{d}" for d in range(rank)]
    shape = (1,) * (rank - len(call.operands[0].shape)) + call.operands[0].shape
    sizes = dict(zip(copies, counts, strict=True)) | dict(zip(names, shape, strict=True))
    result = [f"{copy} {name}" for copy, name in zip(copies, names, strict=True)]
    whole = [copy for copy, size in zip(copies, shape, strict=True) if size != 1]
    return described(call, [aligned(names, call.operands[0])], [result], sizes=sizes, whole=whole)


@rule(aten.repeat_interleave.self_int)
def repeat_interleave(call: OpCall) -> FactorMap:
    """`([a, b]) -> ([a r, b]) whole={r}`: the copies are the inner factor; without a dim the operand is flattened."""
    shape = call.operands[0].shape
    names = letters(len(shape), avoid="r")
    if call["dim"] is None:
        result = [" ".join([*names, "r"])]
    else:
        dim = wrap(call["dim"], len(shape))
        result = [f"{name} r" if d == dim else name for d, name in enumerate(names)]
    sizes = dict(zip(names, shape, strict=True)) | {"r": call["repeats"]}
    return described(call, [names], [result], sizes=sizes, whole="r")


@rule(aten.view_as_complex.default)
def view_as_complex(call: OpCall) -> FactorMap:
    """`([a, b]) -> ([a]) whole={b}`."""
    names = letters(len(call.operands[0].shape))
    return described(call, [names], [names[:-1]], whole=names[-1])


@rule(aten.view_as_real.default)
def view_as_real(call: OpCall) -> FactorMap:
    """`([a]) -> ([a, b]) whole={b}`."""
    names = letters(len(call.results[0].shape))
    return described(call, [names[:-1]], [names], whole=names[-1])


def _relabel(call: OpCall, order: list[int]) -> FactorMap:
    names = letters(len(order))
    return described(call, [names], [[names[d] for d in order]])
