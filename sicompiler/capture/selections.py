"""Results of a decided size, written so that their size can be read from the graph.

`torch.export` traces a graph once more where it writes in place or casts by itself (`run_decompositions`), and a later
decision traces the operators that lead to it: both with fake tensors that know nothing of what was decided, so that the
size of `nonzero(mask)` would be a symbol again.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from sicompiler.capture.contexts import graphs

aten = torch.ops.aten

_MASKS = (torch.bool, torch.uint8)


def spell_out_sizes(graph_module: fx.GraphModule) -> None:
    """Give every selection whose size was decided an operator that has the size as an argument, in place.

    Before: `p = nonzero(mask)`, after: `p = nonzero_static(mask, size=3)`;
    before: `y = index(x, [None, mask])`, after: `y = index(x, [None, select(nonzero_static(mask, size=3), 1, 0)])`.
    Exact because `mask` has as many true entries, or the decision comes out otherwise and the graph is not run.
    """
    for graph in graphs(graph_module):
        for node in list(graph.nodes):
            rule = _RULES.get(node.target)
            if rule is not None:
                with graph.inserting_before(node):
                    rule(graph, node)
    graph_module.recompile()


def _nonzero(graph: fx.Graph, node: fx.Node) -> None:
    size = node.meta["val"].shape[0]
    if type(size) is int:
        node.replace_all_uses_with(_positions(graph, node.args[0], size, like=node))
        graph.erase_node(node)


def _nonzero_numpy(graph: fx.Graph, node: fx.Node) -> None:
    size = node.meta["val"][0].shape[0]
    if type(size) is int:
        positions = _positions(graph, node.args[0], size, like=node)
        node.target, node.args = aten.unbind.int, (positions, 1)


def _index(graph: fx.Graph, node: fx.Node) -> None:
    operands: Any = node.args
    table, indices = operands
    places = [dim for dim, index in enumerate(indices) if index is not None]
    if len(places) != 1 or indices[places[0]].meta["val"].dtype not in _MASKS:
        return
    (dim,), mask = places, indices[places[0]]
    size = node.meta["val"].shape[dim]
    if type(size) is not int:
        return
    positions = _positions(graph, mask, size, like=node)
    picked = [_call(graph, node, aten.select.int, positions, 1, d) for d in range(mask.meta["val"].dim())]
    node.args = (table, [*indices[:dim], *picked, *indices[dim + 1 :]])


def _masked_select(graph: fx.Graph, node: fx.Node) -> None:
    operands: Any = node.args
    table, mask = operands
    size = node.meta["val"].shape[0]
    if type(size) is not int:
        return
    shape = list(torch.broadcast_shapes(table.meta["val"].shape, mask.meta["val"].shape))
    table, mask = (_call(graph, node, aten.expand.default, each, shape) for each in (table, mask))
    positions = _positions(graph, mask, size, like=node)
    picked = [_call(graph, node, aten.select.int, positions, 1, d) for d in range(len(shape))]
    node.target, node.args = aten.index.Tensor, (table, picked)


def _repeats(graph: fx.Graph, node: fx.Node) -> None:
    value = node.meta["val"]
    dim: Any = 0 if len(node.args) < 3 or node.args[2] is None else node.args[2]
    if type(value.shape[dim]) is int:
        node.kwargs = {**node.kwargs, "output_size": value.shape[dim]}


def _unique_consecutive(graph: fx.Graph, node: fx.Node) -> None:
    """The first entry of each run of equal ones, which run each entry is in, and how long the runs are."""
    size = node.meta["val"][0].shape[0]
    if type(size) is not int or not size:
        return
    flat = _call(graph, node, aten.reshape.default, node.args[0], [-1])
    _replace(node, _runs(graph, node, flat, _shape(node.args[0]), size))


def _unique(graph: fx.Graph, node: fx.Node) -> None:
    """The runs of the sorted entries; which of them each entry is goes back to where it was sorted from."""
    size = node.meta["val"][0].shape[0]
    if type(size) is not int or not size:
        return
    shape = _shape(node.args[0])
    flat = _call(graph, node, aten.reshape.default, node.args[0], [-1])
    ordered = _call(graph, node, aten.sort.stable, flat, stable=True)
    entries, order = (_call(graph, node, operator.getitem, ordered, place) for place in (0, 1))
    values, runs, counts = _runs(graph, node, entries, [math.prod(shape)], size)
    back = _call(graph, node, aten.scatter.src, runs, 0, order, runs)
    _replace(node, (values, _call(graph, node, aten.view.default, back, shape), counts))


def _runs(
    graph: fx.Graph, like: fx.Node, flat: fx.Node, shape: list[int], size: int
) -> tuple[fx.Node, fx.Node, fx.Node]:
    """The first entry of each run, for each entry the number of its run, in some shape, and the lengths of the runs."""

    def call(target: Any, *args: Any) -> fx.Node:
        return _call(graph, like, target, *args)

    changed = call(aten.ne.Tensor, call(aten.slice.Tensor, flat, 0, 1), call(aten.slice.Tensor, flat, 0, 0, -1))
    after = call(aten.select.int, call(aten.add.Tensor, _positions(graph, changed, size - 1, like), 1), 1, 0)
    starts = call(aten.constant_pad_nd.default, after, [1, 0], 0)
    values = call(aten.index_select.default, flat, 0, starts)
    runs = call(aten.constant_pad_nd.default, call(aten.cumsum.default, changed, 0), [1, 0], 0)
    ends = call(aten.constant_pad_nd.default, after, [0, 1], math.prod(shape))
    return values, call(aten.view.default, runs, shape), call(aten.sub.Tensor, ends, starts)


def _bincount(graph: fx.Graph, node: fx.Node) -> None:
    size, values = node.meta["val"].shape[0], node.args[0]
    if (
        type(size) is not int
        or (len(node.args) > 1 and node.args[1] is not None)
        or node.kwargs.get("weights") is not None
    ):
        return
    ones = _call(graph, node, aten.ones_like.default, values, dtype=torch.int64)
    empty = _call(graph, node, aten.new_zeros.default, values, [size], dtype=torch.int64)
    node.target, node.args, node.kwargs = aten.scatter_add.default, (empty, 0, values, ones), {}


def _shape(value: Any) -> list[int]:
    return list(value.meta["val"].shape)


def _replace(node: fx.Node, results: Sequence[fx.Node]) -> None:
    """Put values in the place of the results of an operator that has several."""
    for user in list(node.users):
        assert user.target is operator.getitem
        place: Any = user.args[1]
        user.replace_all_uses_with(results[place])
        user.graph.erase_node(user)
    node.graph.erase_node(node)


def _positions(graph: fx.Graph, mask: Any, size: int, like: fx.Node) -> fx.Node:
    return _call(graph, like, aten.nonzero_static.default, mask, size=size)


def _call(graph: fx.Graph, like: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    node = graph.call_function(target, args, kwargs)
    node.meta.update(like.meta)
    return node


_RULES: dict[object, Callable[[fx.Graph, fx.Node], None]] = {
    aten._unique2.default: _unique,
    aten.bincount.default: _bincount,
    aten.index.Tensor: _index,
    aten.masked_select.default: _masked_select,
    aten.nonzero.default: _nonzero,
    aten.nonzero_numpy.default: _nonzero_numpy,
    aten.repeat_interleave.Tensor: _repeats,
    aten.repeat_interleave.self_Tensor: _repeats,
    aten.unique_consecutive.default: _unique_consecutive,
}
