"""Graphs with everything known about them, and the graph of one slice of an outer loop."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from torch import fx

from sicompiler.axes.factor_map import FactorKind, Slicing
from sicompiler.axes.names import AxisNames, Origins
from sicompiler.axes.table import AxisTable, OpSlicing
from sicompiler.capture import Program, Source, fingerprint
from sicompiler.codec import digest
from sicompiler.device import device_kind, rounded
from sicompiler.facts.lifetimes import lifetimes
from sicompiler.facts.storages import (
    GraphFacts,
    Origin,
    fake_tensors,
    graph_facts,
)
from sicompiler.facts.timeline import Timeline, timeline
from sicompiler.facts.workspace.kernels import node_workspaces
from sicompiler.passes.dense_factors import dense_factors
from sicompiler.passes.outer import Inner, extract_inner
from sicompiler.plan import OuterLoop
from sicompiler.regions.builder import RegionBuilder
from sicompiler.regions.region import Region
from sicompiler.regions.view import GraphView

OUTER_HOISTED_BYTES = 2**16  # what the outer loop keeps for its whole length should be small; the rest is made again
OUTER_SIZE = 16  # a longer axis is left to smaller regions: the graph runs once per entry
OUTER_HOISTED_SHARE = 0.1  # of the unsliced peak; a loop that keeps more whole does not slice what matters


@dataclass(frozen=True)
class AnalyzedGraph:
    """A legal program with everything known about it.

    Attributes:
        program: the graph.
        view: facts, lifetimes and axis table.
        line: timeline of the unsliced schedule.
        extra_bytes: alive beside the graph all the time (what an outer loop holds whole).
        outside: of one slice of an outer loop: the whole graph, and which value of it each placeholder is a slice of.
    """

    program: Program
    view: GraphView
    line: Timeline
    extra_bytes: int = 0
    outside: tuple[AnalyzedGraph, Origins] | None = None

    @property
    def facts(self) -> GraphFacts:
        """Sizes and aliases."""
        return self.view.facts

    @functools.cached_property
    def axes(self) -> AxisNames:
        """What its axes are called, for people."""
        if self.outside is None:
            return AxisNames(self.program, self.view.table)
        whole, origins = self.outside
        return AxisNames(self.program, self.view.table, whole.axes, origins)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A short hash of the graph and of the names of the weights behind its placeholders."""
        weights = [b.name if b.source is not Source.INPUT else "" for b in self.program.bindings]
        return digest(f"{fingerprint(self.program.graph_module.graph)} {weights}")

    @functools.cached_property
    def rules(self) -> str:
        """A short hash of the axis rules as they apply here: the factor map of every call, in order."""
        table = self.view.table

        def shown(p: int) -> str:
            rule = table.map_of(p)
            return "" if rule is None else f"{rule} {dict(rule.sizes)}"

        return digest("\n".join(self.facts.calls.each(shown)))


def analyze_graph(
    program: Program, device_type: str, extra_bytes: int = 0, released: Collection[fx.Node] = ()
) -> AnalyzedGraph:
    """Collect the facts of a program.

    Args:
        program: a legal graph.
        device_type: where it runs.
        extra_bytes: what is held beside it.
        released: placeholders whose values were made for it alone, and go with their last reader.
    """
    facts = graph_facts(program, device_type=device_type)
    if released:
        own = {tensor.storage for node in released for tensor in facts.tensors[facts.position[node]]}
        facts = replace(facts, released=frozenset(own))
    lives = lifetimes(facts)
    view = GraphView(facts, lives, AxisTable(facts))
    return AnalyzedGraph(program, view, timeline(facts, lives, node_workspaces(facts)), extra_bytes)


def named_axes(graph: AnalyzedGraph) -> dict[str, tuple[int, Slicing]]:
    """The axes of the inputs: every dim of more than one entry, named by input and dim; those of big inputs first."""
    found: dict[str, tuple[int, Slicing]] = {}
    inputs = [p for p, b in enumerate(graph.program.bindings) if b.source is Source.INPUT and graph.facts.tensors[p]]
    for p in sorted(inputs, key=lambda p: -graph.facts.tensors[p][0].numel):
        for dim, size in enumerate(graph.facts.tensors[p][0].shape):
            if size > 1:
                found[f"{graph.facts.nodes[p].name}.{dim}"] = (p, Slicing(dim, 1, size, 1))
    return found


@dataclass(frozen=True)
class OuterGraph:
    """The graph of one slice of an outer loop, and where it came from."""

    loop: OuterLoop
    region: Region
    inner: Inner
    graph: AnalyzedGraph


def outer_region(graph: AnalyzedGraph, seeds: dict[int, Slicing]) -> Region | None:
    """The whole graph as one region along an axis of its inputs; None where some operator does not commute."""
    first = graph.facts.num_placeholders
    builder = RegionBuilder(graph.view, first, None, inputs=seeds, hoisted_bytes=OUTER_HOISTED_BYTES, windows=0)
    while builder.stop < len(graph.facts.nodes):
        if builder.extend() is not None:
            return None
    region = builder.region()
    owners: dict[int, fx.Node] = {}
    for node in graph.facts.outputs:
        transfer = region.sliced.get(graph.facts.position[node])
        made = graph.view.tensor((graph.facts.position[node], 0)).storage
        if transfer is None or transfer.results[0] is None or graph.facts.storages[made].origin is not Origin.VALUE:
            return None
        if owners.setdefault(made, node) is not node:
            return None  # results that share memory would come out in memory of their own
    return _made_again(graph, region)


def _made_again(graph: AnalyzedGraph, region: Region) -> Region:
    """Move what is big and the same for every slice into the loop, where it lives no longer than it is needed.

    A table of positions, cast once before the loop, would stay for all of it. What the loop reads in slices of can't be
    moved, nor what that is made of.
    """
    view, storages = graph.view, graph.facts.storages
    narrowed = {view.tensor(read.value).storage for read in region.reads}
    stays: set[int] = set()
    for p in reversed(region.hoisted):
        if p in stays or any(t.storage in narrowed for t in graph.facts.tensors[p]):
            stays.update({p, *(q for q, _ in view.table.operands[p])})
    again: dict[int, OpSlicing] = {}
    for p in region.hoisted:
        operands = view.table.operands[p]
        big = any(storages[s].nbytes > OUTER_HOISTED_BYTES for s in view.made[p])
        if p not in stays and (big or any(q in again for q, _ in operands)):
            again[p] = OpSlicing((None,) * len(operands), (None,) * len(graph.facts.tensors[p]), FactorKind.FREE)
    hoisted = tuple(p for p in region.hoisted if p not in again)
    return replace(region, sliced=dict(sorted({**region.sliced, **again}.items())), hoisted=hoisted)


def outer_loops(graph: AnalyzedGraph) -> list[tuple[OuterLoop, Region]]:
    """Every axis of the inputs that commutes with the whole graph; of inputs that share it, the one hoisting least."""
    found: dict[tuple[Slicing | None, ...], tuple[int, OuterLoop, Region]] = {}
    for name, (p, slicing) in named_axes(graph).items():
        region = outer_region(graph, {p: slicing}) if slicing.size <= OUTER_SIZE else None
        if region is None:
            continue
        hoisted = _unsliced_bytes(graph, region)
        outputs = tuple(region.sliced[graph.facts.position[node]].results[0] for node in graph.facts.outputs)
        if hoisted <= OUTER_HOISTED_SHARE * graph.line.peak_bytes and (
            outputs not in found or hoisted < found[outputs][0]
        ):
            found[outputs] = (hoisted, OuterLoop(name, slicing.size, 1, ((p, slicing),)), region)
    return [(_named(graph, loop, list(found.values())), region) for _, loop, region in found.values()]


def _named(graph: AnalyzedGraph, loop: OuterLoop, loops: Sequence[tuple[int, OuterLoop, Region]]) -> OuterLoop:
    """A loop under the name of its axis, and of its input too where several run along axes of one name."""
    name = graph.axes.of(*loop.seeds[0])
    alone = sum(graph.axes.of(*other.seeds[0]) == name for _, other, _ in loops) == 1
    return replace(loop, axis=name if alone else f"{name} of {loop.axis}")


def _unsliced_bytes(graph: AnalyzedGraph, region: Region) -> int:
    """What an outer loop makes whole, before it or again in each slice."""
    whole = [p for p, transfer in region.sliced.items() if transfer.results and transfer.results[0] is None]
    return sum(graph.facts.storages[s].nbytes for p in (*region.hoisted, *whole) for s in graph.view.made[p])


def make_outer(graph: AnalyzedGraph, loop: OuterLoop, region: Region) -> OuterGraph:
    """Cut out the graph of one slice and analyse it."""
    inner = extract_inner(graph.program, graph.view, region, loop.slice_length)
    dense_factors(inner.program)  # one sample may be a view, expanded, where all of them had to be copied
    whole = _held_storages(graph, region)
    copies = [
        node
        for node, (_, slicing) in zip(inner.program.placeholders, inner.operands, strict=True)
        if slicing is not None and all(t.untyped_storage()._cdata not in whole for t in fake_tensors(node))
    ]
    alone = analyze_graph(inner.program, graph.facts.device_type, released=copies)
    seen = {t.untyped_storage()._cdata for node in inner.program.placeholders for t in fake_tensors(node)}
    extra = sum(nbytes for storage, nbytes in whole.items() if storage not in seen) + _results_bytes(graph)
    outside = (graph, inner.operands)
    return OuterGraph(loop, region, inner, AnalyzedGraph(inner.program, alone.view, alone.line, extra, outside))


def _held_storages(graph: AnalyzedGraph, region: Region) -> dict[int, int]:
    """Storages that live as long as the outer loop: inputs and what is computed before it."""
    facts = graph.facts
    positions = [*range(facts.num_placeholders), *region.hoisted]
    return {
        fake.untyped_storage()._cdata: facts.storages[tensor.storage].nbytes
        for p in positions
        for fake, tensor in zip(fake_tensors(facts.nodes[p]), facts.tensors[p], strict=True)
        if facts.storages[tensor.storage].origin is not Origin.WEIGHT
    }


def _results_bytes(graph: AnalyzedGraph) -> int:
    """The buffers an outer loop writes its results into."""
    granule = device_kind(graph.facts.device_type).granule_bytes
    total = 0
    for node in dict.fromkeys(graph.facts.outputs):
        tensor = graph.facts.tensors[graph.facts.position[node]][0]
        span = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride, strict=True))
        nbytes = span * tensor.dtype.itemsize if tensor.numel else 0
        total += rounded(nbytes, granule)
    return total
