"""The outer loop: the whole graph for one slice of an axis at a time (in practice one sample of a batch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from sicompiler.axes.factor_map import Slicing
from sicompiler.axes.table import Operand
from sicompiler.capture import Binding, Program, Source, module_of
from sicompiler.facts.storages import TensorFact
from sicompiler.ops import sliced_loop
from sicompiler.passes.body import BodyEmitter
from sicompiler.passes.edit import insert_call
from sicompiler.passes.layouts import real_layouts
from sicompiler.regions.region import Region
from sicompiler.regions.view import GraphView, narrows_well

aten = torch.ops.aten
ops = torch.ops.sicompiler


@dataclass(frozen=True)
class Inner:
    """The graph of one slice, cut out of a whole graph.

    Attributes:
        program: one slice's graph; its placeholders are weights, narrowed inputs and values computed before the loop.
        operands: for each placeholder, the value of the whole graph behind it and the slicing of it (None: whole).
        slice_length: entries of a slice.
    """

    program: Program
    operands: tuple[tuple[Operand, Slicing | None], ...]
    slice_length: int


def extract_inner(program: Program, view: GraphView, region: Region, slice_length: int) -> Inner:
    """Cut the graph of one slice out of a region that spans the whole graph.

    Before: `y = linear(x, w)` with x [2, 8], after: the same with x [1, 8].
    Exact because every operator commutes with slicing along the axis.
    """
    facts, mode = view.facts, program.fake_mode
    graph = fx.Graph()
    operands: dict[tuple[Operand, Slicing | None], fx.Node] = {}
    wanted: dict[tuple[Operand, Slicing | None], None] = {}
    for p in region.sliced:
        for value, slicing in zip(view.table.operands[p], region.sliced[p].operands, strict=True):
            if value[0] not in region.sliced:
                wanted[(value, slicing)] = None
    bindings = []
    for value, slicing in wanted:
        node = graph.placeholder(facts.nodes[value[0]].name)
        fake = facts.nodes[value[0]].meta["val"]
        if slicing is not None:
            with mode:
                fake = _narrow_now(view.tensor(value), fake, slicing, slice_length)
        node.meta["val"] = fake
        operands[(value, slicing)] = node
        whole = value[0] < facts.num_placeholders and slicing is None
        bindings.append(program.bindings[value[0]] if whole else Binding(Source.INPUT, node.name))
    emitter = BodyEmitter(
        view, region, graph, mode, slice_length, lambda v: operands[(v, None)], lambda v, s: operands[(v, s)]
    )
    for p in region.sliced:
        emitter.emit(p)
    old = program.graph_module.graph.output_node()
    position = facts.position
    output = graph.output(fx.node.map_arg(old.args[0], lambda n: emitter.made[position[n]]))
    output.meta.update(old.meta)
    inner = Program(module_of(graph), tuple(bindings), program.constants, program.out_spec, mode)
    real_layouts(inner)
    return Inner(inner, tuple(operands), slice_length)


def wrap_outer(program: Program, view: GraphView, region: Region, inner: Inner, rewritten: Program) -> Program:
    """Put the graph of one slice, rewritten or not, back into a loop over the axis.

    After: `out = empty(...); sliced_loop(sample, 2, 1, inputs..., out)`, where the body narrows the inputs, runs the
    graph of one slice and writes its results.
    """
    return _Wrapper(program, view, region, inner).run(rewritten)


class _Wrapper:
    def __init__(self, program: Program, view: GraphView, region: Region, inner: Inner) -> None:
        self.program, self.view, self.region, self.inner = program, view, region, inner
        self.mode = program.fake_mode
        self.graph, self.body = fx.Graph(), fx.Graph()
        self.operands: dict[fx.Node, fx.Node] = {}

    def run(self, rewritten: Program) -> Program:
        facts, position = self.view.facts, self.view.facts.position
        env: dict[fx.Node, fx.Node] = {}
        for p in (*range(facts.num_placeholders), *self.region.hoisted):
            env[facts.nodes[p]] = self.graph.node_copy(facts.nodes[p], lambda n: env[n])
        buffers = {node: self._buffer(node) for node in dict.fromkeys(facts.outputs)}
        for (q, _), _ in self.inner.operands:
            self._placeholder(env[facts.nodes[q]])
        targets = {node: self._placeholder(buffer) for node, buffer in buffers.items()}
        start, length = self.body.placeholder("start"), self.body.placeholder("length")
        start.meta["val"], length.meta["val"] = 0, self.inner.slice_length
        values = {}
        for node, (value, slicing) in zip(rewritten.placeholders, self.inner.operands, strict=True):
            whole = self.operands[env[facts.nodes[value[0]]]]
            values[node] = whole if slicing is None else self._narrow(value, whole, slicing, start, length)
        results = self.body.graph_copy(rewritten.graph_module.graph, val_map=values)
        for node, result in dict(zip(facts.outputs, _flat(results), strict=True)).items():
            s = self.region.sliced[position[node]].results[0]
            assert s is not None
            insert_call(
                self.body,
                self.mode,
                ops.write_slice_.default,
                (targets[node], result, s.dim, s.outer, s.inner, start, length),
            )
        self.body.output(None)
        root = torch.nn.Module()
        root.add_module("sample", module_of(self.body, rewritten.graph_module))
        loop = self.graph.get_attr("sample")
        self.graph.call_function(sliced_loop, (loop, self.region.size, self.inner.slice_length, *self.operands))
        old = self.program.graph_module.graph.output_node()
        output = self.graph.output(fx.node.map_arg(old.args[0], lambda n: buffers[n]))
        output.meta.update(old.meta)
        return self.program.with_graph(module_of(self.graph, root))

    def _placeholder(self, node: fx.Node) -> fx.Node:
        if node not in self.operands:
            self.operands[node] = self.body.placeholder(node.name)
            self.operands[node].meta["val"] = node.meta["val"]
        return self.operands[node]

    def _buffer(self, node: fx.Node) -> fx.Node:
        fake = node.meta["val"]
        args = (list(fake.shape), list(fake.stride()))
        return insert_call(
            self.graph, self.mode, aten.empty_strided.default, args, {"dtype": fake.dtype, "device": fake.device}
        )

    def _narrow(self, value: Operand, whole: fx.Node, s: Slicing, start: fx.Node, length: fx.Node) -> fx.Node:
        if narrows_well(self.view.tensor(value), s) and s.inner == 1:
            return insert_call(self.body, self.mode, aten.narrow.default, (whole, s.dim, start, length))
        return insert_call(
            self.body, self.mode, ops.copy_slice.default, (whole, s.dim, s.outer, s.inner, start, length)
        )


def _narrow_now(facts: TensorFact, whole: torch.Tensor, s: Slicing, length: int) -> torch.Tensor:
    """The first slice of a whole value, read as the loop will read it."""
    if narrows_well(facts, s) and s.inner == 1:
        return whole.narrow(s.dim, 0, length)
    copy: torch.Tensor = ops.copy_slice(whole, s.dim, s.outer, s.inner, 0, length)
    return copy


def _flat(results: Any) -> Sequence[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(results, lambda n: found.append(n))
    return found
