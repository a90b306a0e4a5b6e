"""Outlines regions: each becomes one `sliced_loop` node, whose body is a GraphModule of its own."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from sicompiler.axes.factor_map import Slicing
from sicompiler.axes.table import Operand
from sicompiler.capture import Program, module_of
from sicompiler.facts.storages import fake_tensors
from sicompiler.ops import offloaded_tensor, sliced_loop, streamed_loop, wait_loads
from sicompiler.passes.body import BodyEmitter, Length, in_format, narrowed_again, passes_for
from sicompiler.passes.edit import evaluate, inherit, insert_call
from sicompiler.passes.slice_bounds import SpanNodes
from sicompiler.passes.stream import fetcher, storer
from sicompiler.regions.region import Output, Region, RegionRead
from sicompiler.regions.view import GraphView

aten = torch.ops.aten
ops = torch.ops.sicompiler


def outline_loops(
    program: Program,
    view: GraphView,
    regions: Sequence[tuple[Region, int]],
    prefetched: Mapping[int, int] | None = None,
) -> Program:
    """Replace regions by loops, and carry what is offloaded to where it is needed.

    Before: `a = silu(x); y = linear(a, w)`
    After:  `y = empty_strided(...); sliced_loop(loop_0, size, slice_length, x, w, y)`, where the body narrows `x`,
    computes `a` and one slice of `y`, and writes it into `y`. Of what is offloaded a loop gets slices; what is
    needed whole is fetched before: `w_here = fetch(w)`.
    Exact because every operator of the body commutes with slicing (its factor map says so).
    Refuses nothing: regions were grown on this very graph.

    Args:
        program: the graph; left as it is.
        view: facts of it, and what is offloaded.
        regions: disjoint regions in schedule order, each with its slice length.
        prefetched: for each step (position of its first operator) whose weights are fetched early, the step before
            which that starts.
    """
    return _Outliner(program, view, {region.start: region for region, _ in regions}, prefetched or {}).run(regions)


class _Outliner:
    def __init__(
        self, program: Program, view: GraphView, starts: Mapping[int, Region], prefetched: Mapping[int, int]
    ) -> None:
        self.program, self.view, self.mode = program, view, program.fake_mode
        self.graph = fx.Graph()
        self.root = torch.nn.Module()
        self.env: dict[Operand, fx.Node] = {}
        self.parts: dict[Operand, fx.Node] = {}  # what a loop wrote of an operator with several results
        self.position = view.facts.position
        self.starts = starts
        self.maker = {storage: p for p, made in enumerate(view.made) for storage in made}
        self.offloaded = {s for s in view.offloaded if view.born[s] < 0}  # storages that are offloaded by now
        self.loaded: dict[Operand, fx.Node] = {}  # what the running step has of them on the device
        self.coming: dict[int, dict[int, fx.Node]] = {}  # by step: storages on their way to it
        self.early: dict[int, list[int]] = {}  # by step: those whose weights are fetched before it
        for step, before in prefetched.items():
            self.early.setdefault(before, []).append(step)

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
        return self.program.with_graph(module_of(self.graph, self.root))

    def _copy(self, positions: Iterable[int]) -> None:
        """Operators that run unsliced."""
        for p in positions:
            self._begin(p)
            self._whole(p)
            self._end((p,))

    def _begin(self, step: int) -> None:
        """Have on the device what a step needs whole and is offloaded, and send for what the steps to come need."""
        here = self.coming.pop(step, {})
        here |= {storage: self._fetch(storage) for storage in sorted(self._needs(step) - here.keys())}
        if here:
            device = fake_tensors(next(iter(here.values())))[0].device
            self.graph.call_function(wait_loads, (device,)).meta["val"] = None
        self.loaded = {(self.maker[storage], 0): node for storage, node in here.items()}
        for later in self.early.get(step, ()):
            weights = sorted(s for s in self._needs(later) if self.view.born[s] < 0)
            self.coming[later] = {storage: self._fetch(storage) for storage in weights}

    def _needs(self, step: int) -> set[int]:
        """Offloaded storages that a step needs whole on the device."""
        region = self.starts.get(step)
        if region is None:
            return self.view.fetched(step, step)
        return self.view.fetched_by_loop(step, region.hoisted, region.sliced)

    def _fetch(self, storage: int) -> fx.Node:
        offloaded = self._whole(self.maker[storage])
        args = (offloaded, fake_tensors(offloaded)[0].device)
        return inherit(insert_call(self.graph, self.mode, ops.fetch.default, args), offloaded)

    def _end(self, positions: Iterable[int]) -> None:
        """Move what operators have made whole into offload memory; views of it are made anew where they are read."""
        for p in positions:
            for storage in self.view.offloaded.intersection(self.view.made[p]):
                node = self.env[(p, 0)]
                for value in [v for v in self.env if storage in {t.storage for t in self.view.facts.tensors[v[0]]}]:
                    del self.env[value]
                self.env[(p, 0)] = inherit(insert_call(self.graph, self.mode, ops.spill.default, (node,)), node)
                self.offloaded.add(storage)

    def on_device(self, value: Operand) -> fx.Node:
        """The node that holds a whole value where it can be computed with."""
        if not self.view.facts.tensors[value[0]] or self.view.tensor(value).storage not in self.offloaded:
            return self.lookup(value)
        if value not in self.loaded:  # a view; what it is a view of has been fetched
            node = self.graph.node_copy(
                self.view.facts.nodes[value[0]], lambda n: self.on_device((self.position[n], 0))
            )
            node.meta["val"] = evaluate(node, self.mode)
            self.loaded[value] = node
        return self.loaded[value]

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
                computes = bool(self.view.made[p])  # else it is a view, which lies where its base does
                self.env[(p, 0)] = self.graph.node_copy(node, self._mapped_on_device if computes else self._mapped)
        return self.env[(p, 0)]

    def _mapped(self, node: fx.Node) -> fx.Node:
        return self._whole(self.position[node])

    def _mapped_on_device(self, node: fx.Node) -> fx.Node:
        return self.on_device((self.position[node], 0))

    def _loop(self, name: str, region: Region, slice_length: int) -> None:
        self._begin(region.start)
        for p in region.hoisted:
            self._whole(p)
        buffers = {output: self._buffer(output) for output in region.outputs}
        body = _LoopBody(self, region, slice_length, buffers)
        body.emit()
        inherit(self._call_loop(name, region, slice_length, body), self.view.facts.nodes[region.start])
        for output, buffer in buffers.items():
            whole = isinstance(self.view.facts.nodes[output.value[0]].meta["val"], torch.Tensor)
            (self.env if whole else self.parts)[output.value] = buffer
            if body.offloads(output):
                self.offloaded.add(self.view.tensor(output.value).storage)
        self._end(region.hoisted)

    def _call_loop(self, name: str, region: Region, slice_length: int, body: _LoopBody) -> fx.Node:
        loop, operands = self._submodule(name, module_of(body.graph, body.root)), list(body.operands)
        if not body.streams:
            return self.graph.call_function(sliced_loop, (loop, region.size, slice_length, *operands))
        fetch, store = body.fetch, storer(self.mode, body.stored, region.halos, slice_length)
        carriers = (self._submodule(f"{name}_fetch", fetch.module), self._submodule(f"{name}_store", store.module))
        sizes = (region.size, slice_length, body.device)
        return self.graph.call_function(streamed_loop, (loop, *carriers, *sizes, fetch.wholes, store.wholes, operands))

    def _submodule(self, name: str, module: fx.GraphModule) -> fx.Node:
        self.root.add_module(name, module)
        return self.graph.get_attr(name)

    def _buffer(self, output: Output) -> fx.Node:
        """Where a loop writes a value: fresh memory, zeroed statistics, or the memory of an input that dies in it."""
        tensor = self.view.tensor(output.value)
        origin = self.view.facts.nodes[output.value[0]]
        device = fake_tensors(origin)[output.value[1]].device
        like = {"dtype": tensor.dtype, "device": device}
        if output.slicing is None:
            return inherit(insert_call(self.graph, self.mode, aten.zeros.default, (list(tensor.shape),), like), origin)
        if tensor.storage in self.view.offloaded:
            size, stride = list(tensor.shape), list(tensor.stride)
            node = self.graph.call_function(offloaded_tensor, (size, stride, tensor.dtype, device))
            with self.mode:
                node.meta["val"] = torch.empty_strided(size, stride, dtype=tensor.dtype, device=device)
            return inherit(node, origin)
        if output.reuses is None:
            args = (list(tensor.shape), list(tensor.stride))
            return inherit(insert_call(self.graph, self.mode, aten.empty_strided.default, args, like), origin)
        source, facts = self.lookup(output.reuses), self.view.tensor(output.reuses)
        if (facts.shape, facts.stride) == (tensor.shape, tensor.stride):
            return source
        taken = (source, list(facts.stride), list(tensor.shape), list(tensor.stride))
        return inherit(insert_call(self.graph, self.mode, ops.take_over.default, taken), origin)


class _LoopBody:
    """The body of one loop, with a placeholder for each whole value it reads or writes."""

    def __init__(self, outer: _Outliner, region: Region, slice_length: int, buffers: dict[Output, fx.Node]) -> None:
        self.outer, self.region, self.view = outer, region, outer.view
        self.graph = fx.Graph()
        self.root = torch.nn.Module()
        self.operands: dict[fx.Node, fx.Node] = {}
        self.reads: dict[tuple[Operand, Slicing], RegionRead] = {(r.value, r.slicing): r for r in region.reads}
        self._narrowed: dict[tuple[Operand, Slicing], fx.Node] = {}
        self.device = fake_tensors(self.view.facts.nodes[min(region.sliced)])[0].device
        fetched = [r for r in region.reads if self.view.tensor(r.value).storage in outer.offloaded]
        sources = [(read, outer.lookup(read.value)) for read in fetched]
        self.fetch = fetcher(outer.mode, sources, region.halos, slice_length, self.device)
        for read, value in zip(fetched, self.fetch.slices, strict=True):
            node = self._narrowed[(read.value, read.slicing)] = self.graph.placeholder(
                f"{self.view.facts.nodes[read.value[0]].name}_slice"
            )
            node.meta["val"] = value
        self.stored: list[tuple[Output, torch.Tensor, fx.Node]] = []
        values = [v for p in region.sliced for v, s in self._whole_operands(p) if s is None]
        on_device = [read.value for read in region.reads if read not in fetched]
        for node in [*map(outer.lookup, on_device), *map(outer.on_device, values)]:
            self._placeholder(node)
        self.wholes = buffers
        self.buffers = {o: self._placeholder(node) for o, node in buffers.items() if not self.offloads(o)}
        self.start = self._integer("start", 0)
        self.length = self._integer("length", slice_length)
        self.spans = SpanNodes(self.graph, self.start, self.length)
        self.emitter = BodyEmitter(
            self.view,
            region,
            self.graph,
            outer.mode,
            self.length,
            lambda v: self.operands[outer.on_device(v)],
            self._narrow,
            self.spans,
        )
        for read in fetched:
            self._narrowed[(read.value, read.slicing)] = self._formatted((read.value, read.slicing))

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
        last, returned = [], []
        for p in self.region.sliced:
            node = self.emitter.emit(p)
            for output in self.wholes:
                if output.value[0] == p and self.offloads(output):
                    returned.append(self._leave(output, node))
            for output, buffer in self.buffers.items():
                if output.value[0] == p:
                    if output.reuses is None:
                        self._write(output, buffer, node)
                    else:
                        last.append((output, buffer, self._item(output, node)))
        for output, buffer, node in last:  # only now has the slice below been read for the last time
            self._write(output, buffer, node)
        self.spans.drop_unused()
        self.graph.output(tuple(returned) if self.streams else None)

    @property
    def streams(self) -> bool:
        """Whether slices come from offload memory or go there."""
        return bool(self.fetch.wholes or self.stored)

    def offloads(self, output: Output) -> bool:
        """Whether a result is written into offload memory."""
        return output.slicing is not None and self.view.tensor(output.value).storage in self.view.offloaded

    def _leave(self, output: Output, node: fx.Node) -> fx.Node:
        """The slice that is stored: the loop's own part of what was computed."""
        assert output.slicing is not None
        part = self._own(output, output.slicing, node)
        self.stored.append((output, part.meta["val"], self.wholes[output]))
        return part

    def _own(self, output: Output, slicing: Slicing, node: fx.Node) -> fx.Node:
        """What is written of a result; the halo is the part of other slices."""
        halos = self.region.halos
        if halos is None or halos.own[output.value] == halos.held[output.value]:
            return node
        own, held = halos.own[output.value], halos.held[output.value]
        return narrowed_again(self.graph, self.outer.mode, self.spans, node, slicing, held, own, slicing.outer > 1)

    def _item(self, output: Output, node: fx.Node) -> fx.Node:
        """The tensor of an output; taken as soon as it is made, for the tuple holds its neighbours too."""
        if isinstance(node.meta["val"], torch.Tensor):
            return node
        part = self.graph.call_function(operator.getitem, (node, output.value[1]))
        part.meta["val"] = node.meta["val"][output.value[1]]
        return part

    def _write(self, output: Output, buffer: fx.Node, node: fx.Node) -> None:
        node = self._item(output, node)
        if output.slicing is None:
            insert_call(self.graph, self.outer.mode, ops.merge_stats_.default, (buffer, node))
            return
        s, halos = output.slicing, self.region.halos
        args: tuple[Any, ...] = (s.dim, s.outer, s.inner, self.start, self.length)
        if halos is not None:
            own, node = halos.own[output.value], self._own(output, s, node)
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
            self._narrowed[key] = self._formatted(key)
        return self._narrowed[key]

    def _formatted(self, key: tuple[Operand, Slicing]) -> fx.Node:
        """A slice that kernels take for the memory format of the whole: its dims of one entry may say otherwise."""
        node, whole, dim = self._narrowed[key], self.view.tensor(key[0]), key[1].dim
        if passes_for(node.meta["val"], whole, dim):
            return node
        return in_format(self.graph, self.outer.mode, node, whole, dim)
