"""Operators whose arguments bake in sizes, and how to change the size of one dim of their result.

A slice of `view(x, [2, 14, 320])` along the second dim is a view with other sizes. The table says for each
such operator which argument holds the sizes and how its entries line up with the dims of the result.

| align    | the argument holds                                                                        |
|----------|-------------------------------------------------------------------------------------------|
| all      | the sizes of all dims of the result                                                       |
| last     | the sizes of the last dims of the result, as many as there are entries                    |
| split    | the sizes of the dims that the dim named by `dim` is split into                           |
| dim      | the size of the dim named by `dim`                                                        |
| parts    | the equal sizes, one per result, of the dim named by `dim`                                |
| size     | the size of the dim `at`                                                                  |
| groups   | a number of equal groups of the dim `at`; it scales with the dim, which takes `old_size`  |
| copies   | how often each of the last dims is repeated; the size of a dim that is nothing but copies |

A row belongs to each operator with a free factor in a result dim whose size is baked in; the other operators with sizes
among their arguments are whole along these dims.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch._ops import OpOverload
from torch.fx import Node

import sicompiler.ops  # noqa: F401  (registers the operators)
from sicompiler.facts.calls import bind

aten = torch.ops.aten

Align = Literal["all", "last", "split", "dim", "parts", "size", "groups", "copies"]


@dataclass(frozen=True)
class Baked:
    """Where an operator bakes in sizes.

    Attributes:
        argument: name of the argument in the schema.
        align: how the argument's entries line up with the dims of the result; see the table above.
        at: for `size` and `groups`, the dim of the result, counted from either end.
    """

    argument: str
    align: Align
    at: int = 1


_ROWS: dict[Baked, list[OpOverload]] = {
    Baked("dims", "copies"): [aten.tile.default],
    Baked("groups", "groups", -2): [aten.conv1d.default, aten.conv1d.padding],
    Baked("groups", "groups", -3): [aten.conv2d.default, aten.conv2d.padding],
    Baked("groups", "groups", -4): [aten.conv3d.default, aten.conv3d.padding],
    Baked("groups", "size", 1): [torch.ops.sicompiler.group_stats.default],
    Baked("length", "dim"): [aten.narrow.default],
    Baked("num_groups", "groups", 1): [aten.group_norm.default],
    Baked("output_size", "dim"): [aten.repeat_interleave.self_int],
    Baked("output_size", "last"): [
        *(aten.upsample_nearest1d.default, aten.upsample_nearest1d.vec),
        *(aten.upsample_nearest2d.default, aten.upsample_nearest2d.vec),
        *(aten.upsample_nearest3d.default, aten.upsample_nearest3d.vec),
        *(aten._upsample_nearest_exact1d.default, aten._upsample_nearest_exact1d.vec),
        *(aten._upsample_nearest_exact2d.default, aten._upsample_nearest_exact2d.vec),
        *(aten._upsample_nearest_exact3d.default, aten._upsample_nearest_exact3d.vec),
    ],
    Baked("repeats", "copies"): [aten.repeat.default],
    Baked("shape", "all"): [aten.reshape.default],
    Baked("size", "all"): [
        *(aten.view.default, aten._unsafe_view.default, aten.expand.default, aten.broadcast_to.default),
        *(aten.empty.memory_format, aten.full.default, aten.ones.default, aten.zeros.default),
        *(aten.new_empty.default, aten.new_full.default, aten.new_ones.default, aten.new_zeros.default),
    ],
    Baked("sizes", "split"): [aten.unflatten.int],
    Baked("split_size", "dim"): [aten.split.Tensor, aten.unsafe_split.Tensor],
    Baked("split_size", "parts"): [aten.split.sizes],
    Baked("split_sizes", "parts"): [aten.split.default, aten.split_with_sizes.default],
}
_BAKED: Mapping[OpOverload, Baked] = MappingProxyType({op: row for row, targets in _ROWS.items() for op in targets})

# A slice is a strided view of the whole, which these may refuse; the twin takes the same arguments and copies.
_COPYING_TWIN: Mapping[OpOverload, OpOverload] = MappingProxyType(
    {
        aten._unsafe_view.default: aten.reshape.default,
        aten.view.default: aten.reshape.default,
        aten.view_as.default: aten.reshape_as.default,
    }
)


def bakes_sizes(target: OpOverload) -> bool:
    """Whether the operator's arguments hold sizes that change with a slice of its result."""
    return target in _BAKED


def copying_twin(target: OpOverload) -> OpOverload:
    """The operator to use on slices in place of `target`: one that doesn't insist on the strides of the whole."""
    return _COPYING_TWIN.get(target, target)


def resize(
    target: OpOverload,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    result_rank: int,
    dim: int,
    new_size: Any,
    *,
    old_size: int | None = None,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call whose result has another size along one dim.

    Sizes of -1 elsewhere stay right, for they are worked out from the sliced operand. Calls that bake in no size
    along `dim` come back as they are.

    Args:
        target: the operator.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
        result_rank: number of dims of the result (of any of them).
        dim: the dim of the result that changes, counted from the front.
        new_size: its new size: a number, or an fx node that holds it.
        old_size: its size in the unsliced call. Needed for the rows aligned by `groups` and `copies` alone.

    Raises:
        ValueError: `old_size` is needed and missing.
    """
    baked = _BAKED.get(target)
    if baked is None:
        return args, dict(kwargs)
    arguments = bind(target, args, kwargs)
    value = arguments[baked.argument]
    changed = _changed(baked, arguments, value, result_rank, dim, new_size, old_size)
    if changed is value:
        return args, dict(kwargs)
    names = [argument.name for argument in target._schema.arguments]
    position = names.index(baked.argument)
    if position < len(args):
        return (*args[:position], changed, *args[position + 1 :]), dict(kwargs)
    return args, {**kwargs, baked.argument: changed}


def _changed(
    baked: Baked, arguments: Mapping[str, Any], value: Any, rank: int, dim: int, new_size: Any, old_size: int | None
) -> Any:
    """The new value of the argument; the same object where nothing changes."""
    if value is None:
        return value
    if baked.align in ("all", "last", "split", "copies"):
        first = {"all": 0, "last": rank - len(value), "copies": rank - len(value)}.get(baked.align)
        if first is None:
            first = arguments["dim"] % (rank - len(value) + 1)
        entry = dim - first
        # A -1 keeps its meaning: worked out from the operand, or (expand) the size of the operand.
        if not 0 <= entry < len(value) or value[entry] == -1:
            return value
        if baked.align == "copies" and value[entry] != old_size:
            return value  # it is what is copied that changes its size
        return [*value[:entry], new_size, *value[entry + 1 :]]
    named = baked.at if baked.align in ("size", "groups") else arguments["dim"]
    if (named is not None and named % rank != dim) or (baked.align == "groups" and value == 1):
        return value
    if baked.align == "groups":
        if old_size is None:
            raise ValueError(f"{baked.argument} scales with dim {dim}: resize needs its old_size")
        return _scaled(value, new_size, old_size)
    return [new_size] * len(value) if baked.align == "parts" else new_size


def _scaled(count: int, new_size: Any, old_size: int) -> Any:
    """The number of groups in `new_size` channels; for an fx node, a node that works it out."""
    if not isinstance(new_size, Node):
        return new_size * count // old_size
    product = new_size.graph.call_function(operator.mul, (new_size, count))
    scaled = new_size.graph.call_function(operator.floordiv, (product, old_size))
    if "val" in new_size.meta:
        product.meta["val"] = new_size.meta["val"] * count
        scaled.meta["val"] = product.meta["val"] // old_size
    return scaled
