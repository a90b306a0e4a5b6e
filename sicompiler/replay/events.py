"""What a run of a program allocates and releases, in order: events for a model of the allocator.

A value is allocated by the operator that makes it and released after the last statement that reads it, as the code of a
graph module does; what a kernel needs for itself comes and goes with it. Bodies of loops are followed slice by slice:
the first slice, those in between and the last may differ in length, halos at the borders included. Slices that are
alike are told once, with how often they run.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, groupby
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch._ops import OpOverload

from sicompiler.capture import Program, Source
from sicompiler.facts.calls import bind, operands_of
from sicompiler.facts.storages import TensorFact, fact_of
from sicompiler.facts.workspace.table import takes_workspace, workspace_bytes
from sicompiler.ops import offloaded_tensor, sliced_loop, streamed_loop, wait_loads, wait_stores
from sicompiler.passes.fakes import fake_result
from sicompiler.replay.slice_shapes import SliceShapes

aten = torch.ops.aten
ops = torch.ops.sicompiler

_OFFLOADS = (offloaded_tensor, ops.spill.default)  # what they make is not on the device
_COMPUTES = {  # operators made of others that never give a view
    *(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv_transpose2d.input),
    *(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding, aten.scaled_dot_product_attention.default),
    *(aten.linear.default, aten.layer_norm.default, aten.group_norm.default, aten.rms_norm.default),
}
# Kernels that allocate their result first and then what they need beside it; others copy an operand before.
_RESULT_FIRST = {
    *(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.convolution.default),
    *(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding, aten.scaled_dot_product_attention.default),
}


class MemoryEvent(NamedTuple):
    """A request, or a release.

    Attributes:
        key: of the block, the same for both.
        nbytes: of a request; 0 for a release.
        node: who makes it.
        what: what of the node it is, where it is not its result.
    """

    key: int
    nbytes: int
    node: fx.Node | None = None
    what: str = ""


@dataclass(frozen=True)
class Repeated:
    """Events that leave nothing behind, several times in a row.

    Attributes:
        events: of one time.
        times: how often.
    """

    events: tuple[MemoryEvent | Repeated, ...]
    times: int


Events = Sequence[MemoryEvent | Repeated]


@dataclass(frozen=True)
class _Followed:
    """One call of a graph.

    Attributes:
        events: in order.
        kept: keys of what it made and returns.
        results: what it returns, as fake values.
    """

    events: list[MemoryEvent | Repeated]
    kept: list[int]
    results: list[Any]


class RunFollower:
    """Follows runs of the graph of a program and of the bodies in it.

    Args:
        program: of any stage.
        device_type: whose kernels it runs on.
        streamed: names of weights that are offloaded.
    """

    def __init__(self, program: Program, device_type: str, streamed: Sequence[str] = ()) -> None:
        self.program, self.device_type, self.mode = program, device_type, program.fake_mode
        self._streamed = frozenset(streamed)
        self._offloaded: dict[int, torch.UntypedStorage] = {}  # kept, so that no other storage has one's number
        self._keys = count()
        self._shapes: dict[fx.GraphModule, SliceShapes] = {}

    def given(self) -> Iterator[tuple[fx.Node, Source, int]]:
        """Storages that are on the device before a run, weights first: placeholder, source and bytes."""
        pairs = list(zip(self.program.placeholders, self.program.bindings, strict=True))
        for node, binding in pairs:
            if binding.name in self._streamed and binding.source is not Source.INPUT:
                for tensor in _tensors(node.meta.get("val")):
                    self.offload(tensor)
        seen = set[int]()
        for node, binding in sorted(pairs, key=lambda pair: pair[1].source is Source.INPUT):
            for tensor in _tensors(node.meta.get("val")):
                storage = _storage(tensor)
                if storage not in seen and not self.is_offloaded(storage):
                    yield node, binding.source, int(tensor.untyped_storage().nbytes())
                seen.add(storage)

    def run(self) -> list[MemoryEvent | Repeated]:
        """Events of one run; what it returns is not released."""
        list(self.given())
        values = {node: node.meta.get("val") for node in self.program.placeholders}
        return self._graph(self.program.graph_module, values, traced=True).events

    def _graph(self, module: fx.GraphModule, values: dict[fx.Node, Any], *, traced: bool) -> _Followed:
        return _GraphRun(self, module, values, traced=traced).run()

    def shapes(self, module: fx.GraphModule) -> SliceShapes:
        """What tells the slices of a body apart."""
        if module not in self._shapes:
            self._shapes[module] = SliceShapes(module)
        return self._shapes[module]

    def next_key(self) -> int:
        """A key for a block."""
        return next(self._keys)

    def is_offloaded(self, storage: int) -> bool:
        """Whether a storage is in offload memory."""
        return storage in self._offloaded

    def offload(self, tensor: torch.Tensor) -> None:
        """Note that a tensor is in offload memory."""
        self._offloaded[_storage(tensor)] = tensor.untyped_storage()

    def sliced(self, module: fx.GraphModule, size: int, length: int, wholes: Sequence[Any], *, traced: bool) -> Events:
        """Events of a loop over slices that are read and written in place."""
        shapes = self.shapes(module)
        spans = [(start, min(length, size - start)) for start in range(0, size, length)]
        found: list[MemoryEvent | Repeated] = []
        known: dict[Any, tuple[MemoryEvent | Repeated, ...]] = {}
        for shape, alike in groupby(spans, key=lambda span: shapes.shape(*span)):
            (start, entries), *more = alike
            if shape not in known:
                values = shapes.bind([*wholes, start, entries])
                known[shape] = tuple(self._graph(module, values, traced=traced and start == 0).events)
            found += [Repeated(known[shape], 1 + len(more))] if more else known[shape]
        return found

    def streamed(
        self,
        modules: Sequence[fx.GraphModule],
        size: int,
        length: int,
        wholes: Sequence[Sequence[Any]],
        *,
        traced: bool,
    ) -> Events:
        """Events of a loop some slices of which are fetched ahead and stored behind (`ops.streamed_loop`)."""
        followed: dict[Any, tuple[_Followed, _Followed, _Followed]] = {}
        spans = [(start, min(length, size - start)) for start in range(0, size, length)]
        loads: list[tuple[_Followed, _Followed, _Followed]] = []
        for start, entries in spans:
            shape = tuple(self.shapes(module).shape(start, entries) for module in modules)
            if shape not in followed:
                followed[shape] = self._carried(modules, (start, entries), wholes, traced=traced and start == 0)
            loads.append(followed[shape])
        found: list[MemoryEvent | Repeated] = []
        prefetched, in_flight = self._again(loads[0][0], found), list[int]()
        for index, (_, body, store) in enumerate(loads):
            here = prefetched
            prefetched = self._again(loads[index + 1][0], found) if index + 1 < len(loads) else []
            made = self._again(body, found)
            found += [MemoryEvent(key, 0) for key in (*here, *in_flight)]
            in_flight = made
            self._again(store, found)
        return [*found, *(MemoryEvent(key, 0) for key in in_flight)]

    def _carried(
        self,
        modules: Sequence[fx.GraphModule],
        span: tuple[int, int],
        wholes: Sequence[Sequence[Any]],
        *,
        traced: bool,
    ) -> tuple[_Followed, _Followed, _Followed]:
        """Fetching, computing and storing one slice."""
        fetch, body, store = modules
        sources, targets, operands = wholes
        fetched = self._graph(fetch, self.shapes(fetch).bind([*sources, *span]), traced=traced)
        given = [*fetched.results, *operands, *span]
        made = self._graph(body, self.shapes(body).bind(given), traced=traced)
        given = [*made.results, *targets, *span]
        return fetched, made, self._graph(store, self.shapes(store).bind(given), traced=traced)

    def _again(self, followed: _Followed, found: list[MemoryEvent | Repeated]) -> list[int]:
        """Add the events of a call, under keys of their own; the keys of what it returns."""
        keys: dict[int, int] = {}
        for event in followed.events:
            if isinstance(event, MemoryEvent):
                if event.key not in keys:
                    keys[event.key] = self.next_key()
                event = MemoryEvent(keys[event.key], event.nbytes, event.node, event.what)
            found.append(event)
        return [keys[key] for key in followed.kept]


class _GraphRun:
    """One call of a graph: its values, and which of them hold what it has allocated."""

    def __init__(
        self, follower: RunFollower, module: fx.GraphModule, values: dict[fx.Node, Any], *, traced: bool
    ) -> None:
        self.follower, self.module, self.values, self.traced = follower, module, values, traced
        self.outside = {_storage(tensor) for value in values.values() for tensor in _tensors(value)}
        self.own: dict[int, int] = {}  # keys by storage
        self.holders: Counter[int] = Counter()  # nodes by key
        self.events: list[MemoryEvent | Repeated] = []
        self.facts: dict[fx.Node, list[TensorFact]] = {}

    def run(self) -> _Followed:
        graph = self.module.graph
        last = _last_reads(graph)
        for node in graph.nodes:
            if node.op == "get_attr":
                self.values[node] = self.module.get_submodule(str(node.target))
            elif node.op == "call_function":
                if node.target in (sliced_loop, streamed_loop):
                    self.events += self._loop(node)
                    self.values[node] = None
                else:
                    self._call(node)
                for gone in last.get(node, ()):
                    self._let_go(gone)
        returned = graph.output_node().all_input_nodes
        kept = dict.fromkeys(key for node in returned for key in self._held(node))
        self.events += [MemoryEvent(key, 0) for key, number in self.holders.items() if number > 0 and key not in kept]
        return _Followed(self.events, list(kept), [self.values[node] for node in returned])

    def _held(self, node: fx.Node) -> list[int]:
        """Keys of what a value holds of this call's own."""
        storages = dict.fromkeys(_storage(tensor) for tensor in _tensors(self.values.get(node)))
        return [self.own[storage] for storage in storages if storage in self.own]

    def _let_go(self, node: fx.Node) -> None:
        for key in self._held(node):
            self.holders[key] -= 1
            if self.holders[key] == 0:
                self.events.append(MemoryEvent(key, 0))

    def _call(self, node: fx.Node) -> None:
        value = self.values[node] = self._value(node)
        made: list[MemoryEvent | Repeated] = []
        for tensor in _tensors(value):
            storage = _storage(tensor)
            if node.target in _OFFLOADS:
                self.follower.offload(tensor)
            if storage in self.outside or storage in self.own or self.follower.is_offloaded(storage):
                continue
            nbytes = int(tensor.untyped_storage().nbytes())
            if nbytes:
                key = self.own[storage] = self.follower.next_key()
                made.append(MemoryEvent(key, nbytes, node))
        extra = self._workspace(node, value)
        if extra:
            key = self.follower.next_key()
            scratch = [MemoryEvent(key, extra, node, "workspace"), MemoryEvent(key, 0)]
            made = [*made, *scratch] if node.target in _RESULT_FIRST else [scratch[0], *made, scratch[1]]
        self.events += made
        self.holders.update(self._held(node))

    def _value(self, node: fx.Node) -> Any:
        """What a call gives: as traced, where it was traced for this slice; views of what is read now.

        A traced view may be one of what was there before a loop, or before its base was offloaded.
        """
        target: Any = node.target
        if not isinstance(target, OpOverload):
            if target in (wait_loads, wait_stores):
                return None
            if target is not offloaded_tensor:
                return target(*fx.node.map_arg(node.args, self.values.__getitem__))
        elif not target._schema.returns:
            return None
        value = node.meta.get("val")
        if self.traced and (not _may_show(target) or self._shows(node, value)):
            return value
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.values.__getitem__)
        if target is offloaded_tensor:
            size, stride, dtype, device = args
            target, args, kwargs = aten.empty_strided.default, (size, stride), {"dtype": dtype, "device": device}
        found = fake_result(target, args, kwargs, self.follower.mode)
        if not self.traced or self._shows(node, found):
            return found
        return value

    def _shows(self, node: fx.Node, value: Any) -> bool:
        """Whether a fake value is a view of something that is read."""
        read = {_storage(tensor) for source in node.all_input_nodes for tensor in _tensors(self.values.get(source))}
        return any(_storage(tensor) in read for tensor in _tensors(value))

    def _workspace(self, node: fx.Node, value: Any) -> int:
        target, device_type = node.target, self.follower.device_type
        if not isinstance(target, OpOverload) or not takes_workspace(target, device_type) or not _tensors(value):
            return 0
        results = self._facts_of(node)
        found = ((self._facts_of(source), index) for source, index in operands_of(node))
        operands = [facts[index] for facts, index in found if facts]
        arguments = bind(target, node.args, node.kwargs)
        return workspace_bytes(target, operands, results, device_type, arguments)

    def _facts_of(self, node: fx.Node) -> list[TensorFact]:
        if node not in self.facts:
            self.facts[node] = [fact_of(tensor) for tensor in _tensors(self.values[node])]
        return self.facts[node]

    def _loop(self, node: fx.Node) -> Events:
        arguments: tuple[Any, ...] = fx.node.map_arg(node.args, self.values.__getitem__)
        if node.target is sliced_loop:
            body, size, length, *wholes = arguments
            return self.follower.sliced(body, size, length, wholes, traced=self.traced)
        body, fetch, store, size, length, _, sources, targets, operands = arguments
        modules, wholes = (fetch, body, store), [sources, targets, operands]
        return self.follower.streamed(modules, size, length, wholes, traced=self.traced)


@functools.cache
def _may_show(target: Any) -> bool:
    """Whether the result of an operator may be a view of an operand: by its schema, or as it is made of others."""
    if not isinstance(target, OpOverload) or target in _COMPUTES:
        return False
    if any(result.alias_info is not None for result in target._schema.returns):
        return True
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), "CompositeImplicitAutograd"))


def _last_reads(graph: fx.Graph) -> Mapping[fx.Node, list[fx.Node]]:
    """For each call, the values that nobody needs once it has run, its own among them if nobody reads it."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "call_function":
            last[node] = node
        for source in node.all_input_nodes:
            last[source] = node
    found: dict[fx.Node, list[fx.Node]] = {}
    for node, reader in last.items():
        found.setdefault(reader, []).append(node)
    return found


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if value is None or isinstance(value, (int, float, fx.GraphModule)):
        return []
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
