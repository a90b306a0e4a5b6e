"""Operators that take parts of a tensor: along the dim they cut, only equal parts leave anything to slice."""

from __future__ import annotations

from typing import Any

import torch

from sicompiler.axes.factor_map import FactorMap
from sicompiler.axes.registry import OpCall, rule
from sicompiler.axes.rules.building import described, letters, without_dim, wrap

aten = torch.ops.aten


@rule(aten.chunk.default, aten.unsafe_chunk.default, aten.split.Tensor, aten.unsafe_split.Tensor)
@rule(aten.split.default, aten.split.sizes, aten.split_with_sizes.default)
@rule(aten.tensor_split.sections, aten.tensor_split.indices)
def split(call: OpCall) -> FactorMap:
    """`([a, m s]) -> ([a, s], [a, s]) whole={m}`: equal parts share s; unequal ones make the dim whole."""
    shape = call.operands[0].shape
    dim = wrap(call["dim"], len(shape))
    parts = [spec.shape[dim] for spec in call.results]
    names = letters(len(shape), avoid="ms")

    def along(name: str) -> list[str]:
        return [*names[:dim], name, *names[dim + 1 :]]

    # A single part of tensor_split by indices may be cut short; the indices would have to change with the slice.
    if len(set(parts)) == 1 and sum(parts) == shape[dim] and call.target is not aten.tensor_split.indices:
        sizes = {"m": len(parts), "s": parts[0]}
        return described(call, [along("m s")], [along("s")] * len(parts), sizes=sizes, whole="m")
    pieces = [f"s{i}" for i in range(len(parts))]
    return described(call, [along("s")], [along(piece) for piece in pieces], whole=["s", *pieces])


@rule(aten.unbind.int, aten.select.int)
def select(call: OpCall) -> FactorMap:
    """`([a, s]) -> ([a]) whole={s}`, for every result of unbind."""
    names, rest = without_dim(call, len(call.operands[0].shape))
    return described(call, [names], [rest] * len(call.results), whole="s")


@rule(aten.slice.Tensor)
def slice_tensor(call: OpCall) -> FactorMap:
    """`([a, s]) -> ([a, t]) whole={s, t}`; keeping all of the dim is free, and so is every m-th position.

    The latter is `([a, t m]) -> ([a, t]) whole={m}`: the real or the imaginary parts of rotary embeddings.
    """
    shape = call.operands[0].shape
    names, dim = letters(len(shape), avoid="mst"), wrap(call["dim"], len(shape))
    size, step, start, end = shape[dim], call["step"], call["start"] or 0, call["end"]
    to_the_end = end is None or (_is_int(end) and end >= size)
    source, target = list(names), list(names)
    if to_the_end and step == 1 and _is_int(start) and (start == 0 or start <= -size):
        return described(call, [source], [target])
    source[dim], target[dim] = "s", "t"
    if to_the_end and _is_int(start) and 0 <= start < step and size % step == 0:
        source[dim] = "t m"
        return described(call, [source], [target], sizes={"t": size // step, "m": step}, whole="m")
    return described(call, [source], [target], whole="st")


@rule(aten.narrow.default)
def narrow(call: OpCall) -> FactorMap:
    """`([a, s]) -> ([a, t]) whole={s, t}`; keeping all of the dim is free."""
    shape = call.operands[0].shape
    source, dim = letters(len(shape), avoid="st"), wrap(call["dim"], len(shape))
    target = list(source)
    if call.results[0].shape != shape:
        source[dim], target[dim] = "s", "t"
    return described(call, [source], [target], whole="st")


def _is_int(value: Any) -> bool:
    return isinstance(value, int)
