"""Selections of a decided size, written so that their size can be read from the graph.

`torch.export` traces a graph once more where it writes in place or casts by itself (`run_decompositions`), with fake
tensors that know nothing of what was decided: the size of `nonzero(mask)` would be a symbol again.
"""

from __future__ import annotations

from collections.abc import Callable
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


def _positions(graph: fx.Graph, mask: Any, size: int, like: fx.Node) -> fx.Node:
    node = graph.call_function(aten.nonzero_static.default, (mask,), {"size": size})
    node.meta.update(like.meta)
    return node


def _call(graph: fx.Graph, like: fx.Node, target: Any, *args: Any) -> fx.Node:
    node = graph.call_function(target, args)
    node.meta.update(like.meta)
    return node


_RULES: dict[object, Callable[[fx.Graph, fx.Node], None]] = {
    aten.index.Tensor: _index,
    aten.masked_select.default: _masked_select,
    aten.nonzero.default: _nonzero,
    aten.nonzero_numpy.default: _nonzero_numpy,
    aten.repeat_interleave.self_Tensor: _repeats,
}
