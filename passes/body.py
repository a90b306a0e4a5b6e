"""Emit the body of a region: its sliced operators, reading narrowed values, with baked sizes scaled to the slice."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

from torch import fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode

from sicompiler.axes.factor_map import Slicing
from sicompiler.axes.resize import bakes_sizes, copying_twin, resize
from sicompiler.axes.table import Operand, Transfer
from sicompiler.graph_view import GraphView
from sicompiler.passes.edit import evaluate, inherit
from sicompiler.region import Region

Length = int | fx.Node


class BodyEmitter:
    """Copies the sliced operators of a region into a graph.

    Args:
        view: the graph the region is of.
        region: what to copy.
        graph: where to.
        mode: the fake mode of the graph's values.
        length: length of the slice: a number, or the node that holds it.
        whole: gives the node that holds a whole value.
        narrowed: gives the node that holds one slice of a whole value.
    """

    def __init__(
        self,
        view: GraphView,
        region: Region,
        graph: fx.Graph,
        mode: FakeTensorMode,
        length: Length,
        whole: Callable[[Operand], fx.Node],
        narrowed: Callable[[Operand, Slicing], fx.Node],
    ) -> None:
        self.view, self.region, self.graph, self.mode = view, region, graph, mode
        self.length, self.whole, self.narrowed = length, whole, narrowed
        self.made: dict[int, fx.Node] = {}
        self._multiples: dict[int, Length] = {}

    def times(self, factor: int) -> Length:
        """`factor` slices' worth of entries."""
        if isinstance(self.length, int):
            return factor * self.length
        if factor == 1:
            return self.length
        if factor not in self._multiples:
            node = self.graph.call_function(operator.mul, (self.length, factor))
            node.meta["val"] = self.length.meta["val"] * factor
            self._multiples[factor] = node
        return self._multiples[factor]

    def emit(self, position: int) -> fx.Node:
        """Copy one sliced operator."""
        old, transfer = self.view.facts.nodes[position], self.region.sliced[position]
        occurrences = iter(self._operands(position, transfer))
        if old.target is operator.getitem and self.view.table.operands[position][0][0] not in self.made:
            self.made[position] = next(occurrences)  # one result of an operator outside, narrowed
            return self.made[position]
        args, kwargs = _ordered(old)
        args, kwargs = fx.node.map_arg((args, kwargs), lambda _: next(occurrences))
        target = old.target
        result = transfer.results[0]
        if isinstance(target, OpOverload) and result is not None and bakes_sizes(target):
            rank = len(self.view.facts.tensors[position][0].shape)
            size = self.times(result.outer * result.inner)
            old_size = result.outer * result.size * result.inner
            args, kwargs = resize(target, args, kwargs, rank, result.dim, size, old_size=old_size)
        if isinstance(target, OpOverload):
            target = copying_twin(target)  # a slice may not be viewable where the whole value is
        assert callable(target)
        node = self.graph.create_node("call_function", target, tuple(args), dict(kwargs), name=old.name)
        node.meta["val"] = evaluate(node, self.mode)
        self.made[position] = inherit(node, old)
        return node

    def _operands(self, position: int, transfer: Transfer) -> Iterator[fx.Node]:
        for (q, r), slicing in zip(self.view.table.operands[position], transfer.operands, strict=True):
            if q in self.made:
                yield self.made[q]
            elif slicing is None:
                yield self.whole((q, r))
            else:
                yield self.narrowed((q, r), slicing)


def _ordered(node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a call, the keyword ones in schema order, so that tensors occur as in the axis table."""
    if not isinstance(node.target, OpOverload):
        return node.args, dict(node.kwargs)
    names = [a.name for a in node.target._schema.arguments if a.name in node.kwargs]
    return node.args, {name: node.kwargs[name] for name in names}
