"""Look-ups by an index tensor: the dim looked into is whole, the dims of the index are free."""

from __future__ import annotations

import torch

from sicompiler.axes.factor_map import FactorMap
from sicompiler.axes.registry import OpCall, TensorSpec, rule
from sicompiler.axes.rules.building import aligned, described, letters, opaque, wrap

aten = torch.ops.aten


@rule(aten.embedding.default)
def embedding(call: OpCall) -> FactorMap:
    """`([v, e], [a, b]) -> ([a, b, e]) whole={v}`."""
    names = letters(len(call.operands[1].shape), avoid="ve")
    return described(call, [["v", "e"], names], [[*names, "e"]], whole="v")


@rule(aten.gather.default)
def gather(call: OpCall) -> FactorMap:
    """`([a, s], [a, b]) -> ([a, b]) whole={s}`; a dim where the index is shorter than the operand is whole."""
    source, index = (spec.shape for spec in call.operands)
    if len(source) != len(index) or not index:
        return opaque(call)
    target, dim = letters(len(index)), wrap(call["dim"], len(index))
    labels, whole = list(target), []
    for d in range(len(index)):
        if d == dim or source[d] != index[d]:
            labels[d] = f"{target[d]}_in"
            whole += [labels[d]] if d == dim else [labels[d], target[d]]
    return described(call, [labels, target], [target], whole=whole)


@rule(aten.index.Tensor)
def index(call: OpCall) -> FactorMap:
    """`([s, a], [b]) -> ([b, a]) whole={s}`: the indices broadcast; a mask of booleans makes everything whole.

    The dims of the indices stand where the indexed dims stood, or in front where those are not neighbours.
    """
    source = call["self"].shape
    indices = list(call["indices"]) + [None] * (len(source) - len(call["indices"]))
    found = [d for d, entry in enumerate(indices) if entry is not None]
    tensors = [entry for entry in indices if isinstance(entry, TensorSpec)]
    if not found or any(entry.dtype in (torch.bool, torch.uint8) for entry in tensors):
        return opaque(call)
    count = max(len(entry.shape) for entry in tensors)
    picked, rest = letters(count, avoid="s"), letters(count + len(source), avoid="s")[count:]
    labels = [f"s{d}" if d in found else rest[d] for d in range(len(source))]
    neighbours = found == list(range(found[0], found[-1] + 1))
    position = found[0] if neighbours else 0
    kept = [rest[d] for d in range(len(source)) if d not in found]
    target = [*kept[:position], *picked, *kept[position:]]
    operands = [labels, *(aligned(picked, entry) for entry in tensors)]
    return described(call, operands, [target], whole=[labels[d] for d in found])


@rule(aten.index_select.default)
def index_select(call: OpCall) -> FactorMap:
    """`([a, s], [k]) -> ([a, k]) whole={s}`."""
    rank = len(call.operands[0].shape)
    if not rank or not call["index"].shape:
        return opaque(call)
    source, dim = letters(rank, avoid="sk"), wrap(call["dim"], rank)
    target = list(source)
    source[dim], target[dim] = "s", "k"
    return described(call, [source, ["k"]], [target], whole="s")
