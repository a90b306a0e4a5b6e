"""Regions become loops: one `sliced_loop` node each, whose body is a GraphModule of its own."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from sicompiler.axes.factor_map import Slicing
from sicompiler.axes.table import Operand
from sicompiler.capture import Program
from sicompiler.facts.storages import fake_tensors
from sicompiler.graph_view import GraphView
from sicompiler.ops import sliced_loop
from sicompiler.passes.body import BodyEmitter, Length, narrowed_again
from sicompiler.passes.edit import inherit, insert_call
from sicompiler.passes.spans import SpanNodes
from sicompiler.region import Output, Read, Region

aten = torch.ops.aten
ops = torch.ops.sicompiler


def outline_loops(program: Program, view: GraphView, regions: Sequence[tuple[Region, int]]) -> Program:
    """Replace regions by loops.

    Before: `a = silu(x); y = linear(a, w)`
    After:  `y = empty_strided(...); sliced_loop(loop_0, size, slice_length, x, w, y)`, where the body narrows `x`,
    computes `a` and one slice of `y`, and writes it into `y`.
    Exact because every operator of the body commutes with slicing (its factor map says so).
    Refuses nothing: regions come from walks over this very graph.

    Args:
        program: the graph; left as it is.
        view: facts of it.
        regions: disjoint regions in schedule order, each with its slice length.
    """
    return _Outliner(program, view).run(regions)


class _Outliner:
    def __init__(self, program: Program, view: GraphView) -> None:
        self.program, self.view, self.mode = program, view, program.fake_mode
        self.graph = fx.Graph()
        self.root = torch.nn.Module()
        self.env: dict[Operand, fx.Node] = {}
        self.parts: dict[Operand, fx.Node] = {}  # what a loop wrote of an operator with several results
        self.position = view.facts.position

    def run(self, regions: Sequence[tuple[Region, int]]) -> Program:
        facts = self.view.facts
        for p in range(facts.num_placeholders):
            self.env[(p, 0)] = self.graph.node_copy(facts.nodes[p])
        p = facts.num_placeholders
        for number, (region, slice_length) in enumerate(regions):
            self._copy(range(p, region.start))
            self._loop(f"loop_{number}", region, slice_length)
            p = region.stop
        self._copy(range(p, len(facts.nodes)))
        old = self.program.graph_module.graph.output_node()
        output = self.graph.output(fx.node.map_arg(old.args[0], self._mapped))
        output.meta.update(old.meta)
        return self.program.with_graph(fx.GraphModule(self.root, self.graph))

    def _copy(self, positions: Any) -> None:
        for p in positions:
            self._whole(p)

    def lookup(self, value: Operand) -> fx.Node:
        """The node that holds a whole tensor, perhaps one of several results of an operator."""
        if isinstance(self.view.facts.nodes[value[0]].meta.get("val"), (list, tuple)):
            if value not in self.parts:
                self.parts[value] = self._result(value)
            return self.parts[value]
        return self._whole(value[0])

    def _result(self, value: Operand) -> fx.Node:
        """Take one result of an operator that no loop has written."""
        source = self._whole(value[0])
        node = self.graph.call_function(operator.getitem, (source, value[1]))
        node.meta["val"] = source.meta["val"][value[1]]
        return inherit(node, self.view.facts.nodes[value[0]])

    def _whole(self, p: int) -> fx.Node:
        """The node that stands for a node of the old graph; views of what a loop has written are made where needed."""
        if (p, 0) not in self.env:
            node = self.view.facts.nodes[p]
            if node.target is operator.getitem:
                self.env[(p, 0)] = self.lookup(self.view.table.operands[p][0])
            else:
                self.env[(p, 0)] = self.graph.node_copy(node, self._mapped)
        return self.env[(p, 0)]

    def _mapped(self, node: fx.Node) -> fx.Node:
        return self._whole(self.position[node])

    def _loop(self, name: str, region: Region, slice_length: int) -> None:
        self._copy(region.hoisted)
        buffers = {output: self._buffer(output) for output in region.outputs}
        body = _Body(self, region, slice_length, buffers)
        body.emit()
        self.root.add_module(name, fx.GraphModule(body.root, body.graph))
        loop = self.graph.get_attr(name)
        operands = list(body.operands)
        node = self.graph.call_function(sliced_loop, (loop, region.size, slice_length, *operands))
        inherit(node, self.view.facts.nodes[region.start])
        for output, buffer in buffers.items():
            whole = isinstance(self.view.facts.nodes[output.value[0]].meta["val"], torch.Tensor)
            (self.env if whole else self.parts)[output.value] = buffer

    def _buffer(self, output: Output) -> fx.Node:
        """Where a loop writes a value: fresh memory, zeroed statistics, or the memory of an input that dies in it."""
        tensor = self.view.tensor(output.value)
        origin = self.view.facts.nodes[output.value[0]]
        like = {"dtype": tensor.dtype, "device": fake_tensors(origin)[output.value[1]].device}
        if output.slicing is None:
            return inherit(insert_call(self.graph, self.mode, aten.zeros.default, (list(tensor.shape),), like), origin)
        if output.reuses is None:
            args = (list(tensor.shape), list(tensor.stride))
            return inherit(insert_call(self.graph, self.mode, aten.empty_strided.default, args, like), origin)
        source, facts = self.lookup(output.reuses), self.view.tensor(output.reuses)
        if (facts.shape, facts.stride) == (tensor.shape, tensor.stride):
            return source
        taken = (source, list(facts.stride), list(tensor.shape), list(tensor.stride))
        return inherit(insert_call(self.graph, self.mode, ops.take_over.default, taken), origin)


class _Body:
    """The body of one loop, with a placeholder for each whole value it reads or writes."""

    def __init__(self, outer: _Outliner, region: Region, slice_length: int, buffers: dict[Output, fx.Node]) -> None:
        self.outer, self.region, self.view = outer, region, outer.view
        self.graph = fx.Graph()
        self.root = torch.nn.Module()
        self.operands: dict[fx.Node, fx.Node] = {}
        self.reads: dict[tuple[Operand, Slicing], Read] = {(r.value, r.slicing): r for r in region.reads}
        self._narrowed: dict[tuple[Operand, Slicing], fx.Node] = {}
        values = [v for p in region.sliced for v, s in self._whole_operands(p) if s is None]
        for value in [*(r.value for r in region.reads), *values]:
            self._placeholder(outer.lookup(value))
        self.buffers = {output: self._placeholder(node) for output, node in buffers.items()}
        self.start = self._integer("start", 0)
        self.length = self._integer("length", slice_length)
        self.spans = SpanNodes(self.graph, self.start, self.length)
        self.emitter = BodyEmitter(
            self.view,
            region,
            self.graph,
            outer.mode,
            self.length,
            lambda v: self.operands[outer.lookup(v)],
            self._narrow,
            self.spans,
        )

    def _whole_operands(self, p: int) -> list[tuple[Operand, Slicing | None]]:
        transfer = self.region.sliced[p]
        pairs = zip(self.view.table.operands[p], transfer.operands, strict=True)
        return [(value, slicing) for value, slicing in pairs if value[0] not in self.region.sliced]

    def _placeholder(self, node: fx.Node) -> fx.Node:
        if node not in self.operands:
            self.operands[node] = self.graph.placeholder(node.name)
            self.operands[node].meta["val"] = node.meta["val"]
        return self.operands[node]

    def _integer(self, name: str, value: int) -> fx.Node:
        node = self.graph.placeholder(name)
        node.meta["val"] = value
        return node

    def emit(self) -> None:
        last = []
        for p in self.region.sliced:
            node = self.emitter.emit(p)
            for output, buffer in self.buffers.items():
                if output.value[0] == p:
                    if output.reuses is None:
                        self._write(output, buffer, node)
                    else:
                        last.append((output, buffer, node))
        for output, buffer, node in last:  # only now has the slice below been read for the last time
            self._write(output, buffer, node)
        self.spans.drop_unused()
        self.graph.output(None)

    def _write(self, output: Output, buffer: fx.Node, node: fx.Node) -> None:
        if not isinstance(node.meta["val"], torch.Tensor):
            part = self.graph.call_function(operator.getitem, (node, output.value[1]))
            part.meta["val"] = node.meta["val"][output.value[1]]
            node = part
        if output.slicing is None:
            insert_call(self.graph, self.outer.mode, ops.merge_stats_.default, (buffer, node))
            return
        s, halos = output.slicing, self.region.halos
        args: tuple[Any, ...] = (s.dim, s.outer, s.inner, self.start, self.length)
        if halos is not None:
            own, held = halos.own[output.value], halos.held[output.value]
            if own != held:  # the halo is the part of other slices
                node = narrowed_again(self.graph, self.outer.mode, self.spans, node, s, held, own, s.outer > 1)
            if not own.is_own_part(s.size * s.inner) or own.limit != s.size * s.inner:
                args = (s.dim, s.outer, 1, self.spans.begin(own), self.spans.count(own))
        insert_call(self.graph, self.outer.mode, ops.write_slice_.default, (buffer, node, *args))

    def _narrow(self, value: Operand, slicing: Slicing) -> fx.Node:
        """One slice of a whole value: a view, or a dense copy where an operator would copy it anyway."""
        key = (value, slicing)
        if key not in self._narrowed:
            whole, mode = self.operands[self.outer.lookup(value)], self.outer.mode
            s, halos = slicing, self.region.halos
            if halos is not None:
                held = halos.reads[key]
                begin, count = self.spans.begin(held), self.spans.count(held)
                if self.reads[key].copies:
                    cut = (whole, s.dim, s.outer, 1, begin, count)
                    self._narrowed[key] = insert_call(self.graph, mode, ops.copy_slice.default, cut)
                else:
                    self._narrowed[key] = insert_call(
                        self.graph, mode, aten.narrow.default, (whole, s.dim, begin, count)
                    )
            elif self.reads[key].copies:
                args = (whole, s.dim, s.outer, s.inner, self.start, self.length)
                self._narrowed[key] = insert_call(self.graph, mode, ops.copy_slice.default, args)
            else:
                start: Length = self.start
                if s.inner != 1:
                    start = self.graph.call_function(operator.mul, (self.start, s.inner))
                    start.meta["val"] = 0
                view = (whole, s.dim, start, self.emitter.times(s.inner))
                self._narrowed[key] = insert_call(self.graph, mode, aten.narrow.default, view)
        return self._narrowed[key]
