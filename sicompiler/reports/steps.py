"""A program as a list of steps, loops opened up: what every dump and every timeline of live bytes is written from."""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch._ops import OpOverload

from sicompiler.capture import Program, Source
from sicompiler.device import device_kind, rounded
from sicompiler.facts.calls import bind, operands_of
from sicompiler.facts.modules import module_path
from sicompiler.facts.storages import fact_of, fake_tensors
from sicompiler.facts.workspace.table import workspace_bytes
from sicompiler.ops import offloaded_tensor, sliced_loop, streamed_loop

_LOOPS = (sliced_loop, streamed_loop)
_OFFLOADS = (offloaded_tensor, torch.ops.sicompiler.spill.default)  # what they make is not on the device


@dataclass(frozen=True)
class LoopHead:
    """The head of a loop: `for start in range(0, size, slice_length)`.

    Attributes:
        name: of its body in the graph module.
        start, length: names of the two loop variables.
        size: of the axis.
        slice_length: entries of one slice.
    """

    name: str
    start: str
    length: str
    size: int
    slice_length: int

    @property
    def slices(self) -> int:
        """Number of passes."""
        return -(-self.size // self.slice_length)


@dataclass(frozen=True)
class ReportStep:
    """One operator, or the head of a loop whose body follows one level deeper.

    Attributes:
        name: of its result, unique in the dump.
        operator: as people write it, `aten.silu`.
        types: of its results, `f16[2, 320]`; empty for none.
        call: the Python expression.
        sources: names of the values it reads.
        module: path of the module it was traced in.
        depth: how many loops are around it.
        loop: the head of a loop, else None.
        live_bytes: activations alive while it runs (the first slice of a loop), workspace included, weights left out.
        freed_bytes: what nobody needs any more once it has run.
    """

    name: str
    operator: str
    types: str
    call: str
    sources: tuple[str, ...]
    module: str
    depth: int
    loop: LoopHead | None
    live_bytes: int = 0
    freed_bytes: int = 0


@dataclass(frozen=True)
class Listing:
    """A program opened up.

    Attributes:
        inputs: name and type of every input of the call.
        weights: how many parameters, buffers and constants the graph reads.
        weights_bytes: of their storages.
        input_bytes: of the caller's tensors.
        steps: in the order in which they run.
        outputs: names of what is returned.
    """

    inputs: tuple[tuple[str, str], ...]
    weights: int
    weights_bytes: int
    input_bytes: int
    steps: tuple[ReportStep, ...]
    outputs: tuple[str, ...]

    @property
    def peak(self) -> ReportStep | None:
        """The first step at which the most activations are alive, loops opened up; None for an empty program."""
        return max((s for s in self.steps if s.loop is None), key=lambda s: s.live_bytes, default=None)


def listing(program: Program, *, device_type: str = "cpu") -> Listing:
    """Open up a program of any stage.

    Args:
        program: its nodes carry fake tensors.
        device_type: whose allocator and kernels to count with: a row of `sicompiler.device`.
    """
    return _Lister(program, device_type).run()


class _Lister:
    def __init__(self, program: Program, device_type: str) -> None:
        self.program, self.device_type = program, device_type
        self.granule = device_kind(device_type).granule_bytes
        self.names: dict[fx.Node, str] = {}
        self.values: dict[fx.Node, Any] = {}  # fake values, views of what a loop has written brought up to date
        self.taken: set[str] = set()
        self.steps: list[ReportStep] = []
        self.bytes: dict[int, int] = {}  # of every storage that a step makes
        self.offloaded: set[int] = set()  # offloaded storages
        self.first: dict[int, int] = {}
        self.last: dict[int, tuple[int, int]] = {}  # the step up to which a storage lives, and the step that frees it
        self.workspace: list[int] = []

    def run(self) -> Listing:
        held: dict[bool, dict[int, int]] = {True: {}, False: {}}
        inputs = []
        for node, binding in zip(self.program.placeholders, self.program.bindings, strict=True):
            is_input = binding.source is Source.INPUT
            name = self._name(node)
            if is_input and fake_tensors(node):
                inputs.append((name, types_of(node)))
            for fake in fake_tensors(node):
                held[is_input][_storage(fake)] = rounded(int(fake.untyped_storage().nbytes()), self.granule)
        self.outside = held[True].keys() | held[False].keys()
        self._walk(self.program.graph_module, 0)
        outputs = []
        end = len(self.steps)
        for node in self.program.graph_module.graph.output_node().all_input_nodes:
            outputs.append(self.names[node])
            for fake in self._fakes(node):
                self.last[_storage(fake)] = (end, end)
        input_bytes = sum(held[True].values())
        steps = self._with_bytes(input_bytes)
        weights = sum(binding.source is not Source.INPUT for binding in self.program.bindings)
        return Listing(tuple(inputs), weights, sum(held[False].values()), input_bytes, steps, tuple(outputs))

    def _name(self, node: fx.Node, wish: str | None = None) -> str:
        wish = wish or node.name
        name = next(
            n for n in itertools.chain((wish,), (f"{wish}_{i}" for i in itertools.count(1))) if n not in self.taken
        )
        self.taken.add(name)
        self.names[node] = name
        return name

    def _walk(self, module: fx.GraphModule, depth: int) -> None:
        for node in module.graph.nodes:
            if node.op != "call_function":
                continue
            position = len(self.steps)
            if node.target in _LOOPS:
                self._loop(module, node, depth)
                end = len(self.steps) - 1
            else:
                name = self._name(node)
                self._evaluate(node)
                call, sources = expression(node, self.names), tuple(self.names[n] for n in node.all_input_nodes)
                self.steps.append(
                    ReportStep(
                        name, operator_name(node.target), types_of(node), call, sources, module_path(node), depth, None
                    )
                )
                self.workspace.append(self._workspace(node))
                end = position
            self._touch(node, position, end)

    def _loop(self, module: fx.GraphModule, node: fx.Node, depth: int) -> None:
        arguments: list[Any] = list(node.args)
        carriers: list[Any] = []
        sources: Sequence[Any] = ()
        targets: Sequence[Any] = ()
        if node.target is streamed_loop:
            attribute, *carriers, size, slice_length, _, sources, targets, operands = arguments
        else:
            attribute, size, slice_length, *operands = arguments
        graphs: list[Any] = [module.get_submodule(str(found.target)) for found in (attribute, *carriers)]
        body, *others = graphs
        placeholders = body.graph.find_nodes(op="placeholder")
        names = self._name(placeholders[-2]), self._name(placeholders[-1])
        head = LoopHead(str(attribute.target), *names, size, slice_length)
        call = f"for {head.start} in range(0, {size}, {slice_length}):"
        read = tuple(self.names[n] for n in dict.fromkeys((*sources, *targets, *operands)))
        self.steps.append(ReportStep(head.name, "sliced_loop", "", call, read, module_path(node), depth, head))
        self.workspace.append(0)
        first = len(self.steps)
        fetched = self._inside(others[0], sources, names, depth) if others else []
        made = self._inside(body, [*fetched, *operands], names, depth)
        if others:
            self._inside(others[1], [*made, *targets], names, depth)
            self._carried([*fetched, *made], first)

    def _inside(
        self, module: Any, operands: Sequence[fx.Node], names: tuple[str, str], depth: int
    ) -> Sequence[fx.Node]:
        """Walk one of the graphs of a loop; what it returns."""
        *wholes, start, length = module.graph.find_nodes(op="placeholder")
        for inside, outside in zip(wholes, operands, strict=True):
            self.names[inside] = self.names[outside]
            self.values[inside] = self._value(outside)
        self.names[start], self.names[length] = names
        self._walk(module, depth + 1)
        returned: Sequence[fx.Node] = module.graph.output_node().all_input_nodes
        return returned

    def _carried(self, slices: Sequence[fx.Node], first: int) -> None:
        """Slices on their way live as long as the body runs, each beside the next one or the one before."""
        end = len(self.steps) - 1
        extra = 0
        for fake in {_storage(fake): fake for node in slices for fake in self._fakes(node)}.values():
            self.last[_storage(fake)] = (end, end)
            extra += rounded(int(fake.untyped_storage().nbytes()), self.granule)
        for index in range(first, end + 1):
            self.workspace[index] += extra

    def _evaluate(self, node: fx.Node) -> None:
        """Note the fake value of a node. Passes may leave one that is a view of what was there before a loop."""
        value = node.meta.get("val")
        if isinstance(node.target, OpOverload) and any(r.alias_info is not None for r in node.target._schema.returns):
            read = {_storage(fake) for source in node.all_input_nodes for fake in self._fakes(source)}
            if not any(_storage(fake) in read for fake in _leaves(value)):
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._value)
                with self.program.fake_mode, torch.no_grad():
                    value = node.target(*args, **kwargs)
        elif node.target is operator.getitem:
            source, index = node.args
            value = self._value(source)[index]
        self.values[node] = value

    def _value(self, node: Any) -> Any:
        return self.values.get(node, node.meta.get("val"))

    def _fakes(self, node: fx.Node) -> list[torch.Tensor]:
        return _leaves(self._value(node))

    def _touch(self, node: fx.Node, position: int, end: int) -> None:
        """Note what a step makes, and until when it needs what it reads."""
        for source in node.all_input_nodes:
            for fake in self._fakes(source):
                self.last[_storage(fake)] = (end, position)
        if node.target in _LOOPS:
            return
        for fake in self._fakes(node):
            storage = _storage(fake)
            if node.target in _OFFLOADS:
                self.offloaded.add(storage)
            if storage in self.offloaded:
                continue
            if storage not in self.outside and storage not in self.first:
                self.first[storage] = position
                self.bytes[storage] = rounded(int(fake.untyped_storage().nbytes()), self.granule)
            self.last[storage] = max(self.last.get(storage, (0, 0)), (position, position))

    def _workspace(self, node: fx.Node) -> int:
        if not isinstance(node.target, OpOverload) or not self._fakes(node):
            return 0
        found = ((self._fakes(source), index) for source, index in operands_of(node))
        operands = [fact_of(fakes[index]) for fakes, index in found if fakes]
        results, arguments = [fact_of(fake) for fake in self._fakes(node)], bind(node.target, node.args, node.kwargs)
        return workspace_bytes(node.target, operands, results, self.device_type, arguments)

    def _with_bytes(self, base: int) -> tuple[ReportStep, ...]:
        count = len(self.steps)
        change, freed = [0] * (count + 1), [0] * (count + 1)
        for storage, first in self.first.items():
            end, owner = self.last[storage]
            change[first] += self.bytes[storage]
            if end < count:
                change[end + 1] -= self.bytes[storage]
                freed[owner] += self.bytes[storage]
        live = [
            base + level + extra for level, extra in zip(itertools.accumulate(change), self.workspace, strict=False)
        ]
        return tuple(replace(step, live_bytes=live[i], freed_bytes=freed[i]) for i, step in enumerate(self.steps))


def _storage(fake: torch.Tensor) -> int:
    return int(fake.untyped_storage()._cdata)


def _leaves(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def dtype_label(dtype: torch.dtype) -> str:
    """`f16`, `bf16`, `i64`, `bool`."""
    name = str(dtype).removeprefix("torch.")
    return re.sub(r"^(b?)(float|int|uint|complex)", lambda m: m[1] + {"uint": "u"}.get(m[2], m[2][0]), name)


def types_of(node: fx.Node) -> str:
    """The tensors a node stands for: `f16[2, 320]`, several in parentheses."""
    value = node.meta.get("val")
    found = [f"{dtype_label(t.dtype)}[{', '.join(map(str, t.shape))}]" for t in fake_tensors(node)]
    return found[0] if isinstance(value, torch.Tensor) else f"({', '.join(found)})" if found else ""


def operator_name(target: Any) -> str:
    """`aten.silu`, `aten.softmax.int`, `getitem`."""
    if isinstance(target, OpOverload):
        return str(target).removesuffix(".default")
    return getattr(target, "__name__", str(target))


def expression(node: fx.Node, names: Mapping[fx.Node, str]) -> str:
    """The call of a node as Python."""
    arguments = [_argument(a, names) for a in node.args]
    if node.target is operator.getitem:
        return f"{arguments[0]}[{arguments[1]}]"
    if node.target is operator.mul:
        return f"{arguments[0]} * {arguments[1]}"
    arguments += [f"{key}={_argument(value, names)}" for key, value in node.kwargs.items()]
    return f"{operator_name(node.target)}({', '.join(arguments)})"


def _argument(argument: Any, names: Mapping[fx.Node, str]) -> str:
    if isinstance(argument, fx.Node):
        return names[argument]
    if isinstance(argument, (list, tuple)):
        inner = ", ".join(_argument(a, names) for a in argument)
        return f"[{inner}]" if isinstance(argument, list) else f"({inner},)" if len(argument) == 1 else f"({inner})"
    if isinstance(argument, torch.device):
        return repr(str(argument))
    return repr(argument)


def thinned(levels: Sequence[int], limit: int) -> Iterator[tuple[int, int]]:
    """At most about `limit` points (index, level) of a timeline: the highest of each stretch."""
    stretch = max(1, -(-len(levels) // limit))
    for low in range(0, len(levels), stretch):
        index = max(range(low, min(low + stretch, len(levels))), key=levels.__getitem__)
        yield index, levels[index]
