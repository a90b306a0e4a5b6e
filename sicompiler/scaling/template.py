"""A graph at every size: its structure, and each of its numbers as a form in frames, height and width.

Captures of a model at several sizes are the same operators with other numbers: dims, strides, bytes, arguments of
views. Where the structures are equal and every number has a form, the graph of any other size is written down without
a capture.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import fx

from sicompiler.axes.factor_map import Slicing
from sicompiler.axes.table import AxisTable
from sicompiler.compiler.analyzed_graph import AnalyzedGraph, named_axes
from sicompiler.device import device_kind, rounded
from sicompiler.errors import BadInput
from sicompiler.facts.storages import (
    GraphFacts,
    Storage,
    TensorFact,
    fake_tensors,
)
from sicompiler.facts.timeline import Timeline, timeline
from sicompiler.facts.workspace.kernels import node_workspaces
from sicompiler.planners.candidates import axis_labels, seeds_of
from sicompiler.regions.view import GraphView
from sicompiler.scaling.form import Point, Polynomial, fit, varying

Ints = npt.NDArray[np.int64]

_FLOAT = re.compile(r"-?\b\d+\.\d*(?:e[-+]?\d+)?|-?\b\d+e[-+]?\d+")  # what is added or filled in decides no size


class DifferentGraph(BadInput):
    """Two captures of a model are not the same operators, or a number has no form: the sizes must be planned."""


@dataclass(frozen=True)
class Reading:
    """What one capture says: its structure, for comparison, and its numbers in a fixed order.

    Attributes:
        structure: of every node: operator, operands, arguments without their numbers, dtypes, storages, lifetimes.
        numbers: arguments, shapes and strides of the nodes, bytes of the storages, the slicings from which regions may
            grow, bytes held beside the graph.
    """

    structure: tuple[Any, ...]
    numbers: Ints


def read(graph: AnalyzedGraph) -> Reading:
    """Read a capture."""
    facts = graph.facts
    seeds = all_seeds(graph)
    structure: list[Any] = [facts.num_placeholders, tuple(facts.position[n] for n in facts.outputs), graph.view.lives]
    numbers: list[int] = []
    for node, tensors in zip(facts.nodes, facts.tensors, strict=True):
        arguments = _swapped((node.args, node.kwargs), numbers.append, lambda n: ("node", facts.position[n]))
        kinds = tuple((t.dtype, len(t.shape), t.storage) for t in tensors)
        structure.append((node.op, str(node.target), node.name, _FLOAT.sub("float", repr(arguments)), kinds))
        for tensor in tensors:
            numbers += (*tensor.shape, *tensor.stride)
    structure += [(s.origin, s.node) for s in facts.storages]
    structure += [tuple(seed.dim for seed in found) for found in seeds]
    numbers += _storage_bytes(facts)
    for found in seeds:
        for seed in found:
            numbers += (seed.outer, seed.size, seed.inner)
    return Reading(tuple(structure), np.array([*numbers, graph.extra_bytes], dtype=np.int64))


def check_same(one: Reading, other: Reading) -> None:
    """Make sure that two captures are the same operators.

    Raises:
        DifferentGraph: they are not.
    """
    if len(one.structure) != len(other.structure):
        raise DifferentGraph("the number of operators depends on the sizes")
    for first, second in zip(one.structure, other.structure, strict=True):
        if first != second:
            what = first[2] if isinstance(first, tuple) and len(first) == 5 else "lifetimes or axes"
            raise DifferentGraph(f"the graph depends on the sizes, first at {what}")


def all_seeds(graph: AnalyzedGraph) -> list[list[Slicing]]:
    """For each operator, the slicings of its result from which a region may grow."""
    labels = axis_labels(graph.view, named_axes(graph))
    first = graph.facts.num_placeholders
    makers = [bool(made) and p >= first for p, made in enumerate(graph.view.made)]
    return [seeds_of(graph.view, labels, p) if maker else [] for p, maker in enumerate(makers)]


class Template:
    """The graph of any size.

    Args:
        points: sizes of the captures.
        readings: what they say.
        reference: one of the captured graphs.

    Raises:
        DifferentGraph: the captures differ in more than numbers, or some number has no form.
    """

    def __init__(self, points: Sequence[Point], readings: Sequence[Reading], reference: AnalyzedGraph) -> None:
        self.points, self.reference = tuple(points), reference
        self.seeds = all_seeds(reference)
        for reading in readings[1:]:
            check_same(readings[0], reading)
        table, self._index = np.unique(np.stack([r.numbers for r in readings]), axis=1, return_inverse=True)
        self._index = self._index.reshape(-1)
        self.forms: list[Polynomial] = []
        for column in table.T:
            found = fit(self.points, [int(v) for v in column])
            if found is None:
                raise DifferentGraph(f"there is no closed form of {', '.join(str(v) for v in column)}")
            self.forms.append(found)

    def numbers(self, point: Point) -> list[int] | None:
        """All numbers of the graph at some sizes, in the order of `Reading`; None where the captures don't say."""
        if any(point[axis] != self.points[0][axis] for axis in {0, 1, 2} - varying(self.points)):
            return None
        values = [form.at(point) for form in self.forms]
        if None in values:
            return None
        known = np.array(values, dtype=np.int64)
        return list(map(int, known[self._index]))

    def forms_of_storages(self) -> list[Polynomial]:
        """The form of the bytes of each storage, as they are before the allocator rounds them up."""
        count = len(self.reference.facts.storages)
        stop = len(self._index) - 1 - 3 * sum(map(len, self.seeds))
        return [self.forms[i] for i in self._index[stop - count : stop]]

    def sized(self, point: Point) -> SizedGraph | None:
        """The graph at some sizes; None where it can't have them."""
        numbers = self.numbers(point)
        return None if numbers is None else SizedGraph(self, numbers)


class SizedGraph:
    """A graph at sizes that were not captured.

    Args:
        template: what it is a size of.
        numbers: in the order of `Reading`.
    """

    def __init__(self, template: Template, numbers: Sequence[int]) -> None:
        reference, facts = template.reference, template.reference.facts
        self.program = reference.program
        self.device_type, self.lives = facts.device_type, reference.view.lives
        given = iter(numbers)
        copies: dict[fx.Node, fx.Node] = {}
        graph = fx.Graph()
        tensors: list[tuple[TensorFact, ...]] = []
        for node, old in zip(facts.nodes, facts.tensors, strict=True):
            args, kwargs = _swapped((node.args, node.kwargs), lambda _: next(given), lambda n: copies[n])
            copy = graph.create_node(node.op, node.target, args, kwargs, node.name)
            copy.meta = node.meta  # the source, and the shapes of weights, which don't depend on the sizes
            copies[node] = copy
            found = []
            for tensor in old:
                shape = tuple(next(given) for _ in tensor.shape)
                stride = tuple(next(given) for _ in tensor.stride)
                found.append(replace(tensor, shape=shape, stride=stride))
            tensors.append(tuple(found))
        granule = device_kind(facts.device_type).granule_bytes
        storages = tuple(Storage(s.index, rounded(next(given), granule), s.origin, s.node) for s in facts.storages)
        outputs = tuple(copies[node] for node in facts.outputs)
        self.facts = GraphFacts(
            tuple(copies.values()), facts.num_placeholders, tuple(tensors), storages, outputs, facts.device_type
        )
        self.seeds = [
            [Slicing(seed.dim, next(given), next(given), next(given)) for seed in found] for found in template.seeds
        ]
        self.extra_bytes = next(given)
        self.line: Timeline = timeline(self.facts, self.lives, node_workspaces(self.facts))

    def graph(self) -> AnalyzedGraph:
        """With its axis table; its program is that of the captured graph, so it can be planned and not rewritten."""
        view = GraphView(self.facts, self.lives, AxisTable(self.facts))
        return AnalyzedGraph(self.program, view, self.line, self.extra_bytes)


def _storage_bytes(facts: GraphFacts) -> list[int]:
    """Bytes of each storage before rounding."""
    found: dict[int, int] = {}
    for node, tensors in zip(facts.nodes, facts.tensors, strict=True):
        for fake, tensor in zip(fake_tensors(node), tensors, strict=True):
            found.setdefault(tensor.storage, int(fake.untyped_storage().nbytes()))
    return [found[s.index] for s in facts.storages]


def _swapped(argument: Any, number: Callable[[int], Any], node: Callable[[fx.Node], Any]) -> Any:
    """Arguments of a call with something in place of each whole number and each node."""
    if isinstance(argument, fx.Node):
        return node(argument)
    if isinstance(argument, (tuple, list)):
        return tuple(_swapped(item, number, node) for item in argument)
    if isinstance(argument, dict):
        return {name: _swapped(item, number, node) for name, item in argument.items()}
    if type(argument) is int:
        return number(argument)
    return argument
