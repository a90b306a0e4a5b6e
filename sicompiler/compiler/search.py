"""A graph ready to be planned: every candidate region, with all values on the device, or all offloaded that may be."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch

from sicompiler.axes.factor_map import Slicing
from sicompiler.capture import Source
from sicompiler.compiler.analyzed_graph import AnalyzedGraph, OuterGraph, analyze_graph, named_axes
from sicompiler.device import Machine
from sicompiler.facts.calls import takes_statistics
from sicompiler.facts.storages import Origin
from sicompiler.facts.timeline import timeline
from sicompiler.passes.edit import copy_program
from sicompiler.passes.rematerialize import rematerialize
from sicompiler.planners.candidates import Regions, axis_labels, candidates
from sicompiler.planners.cut_positions import SMALL_GRAPH
from sicompiler.planners.dp import Problem, Solution, floor
from sicompiler.planners.gains import most_saved_seconds
from sicompiler.planners.gradual import GradualProblem
from sicompiler.planners.op_costs import OpCosts
from sicompiler.planners.region_cost import unsliced
from sicompiler.regions.region import Region

Progress = Callable[[str, int, int], None]  # what is being done, how much of it is done, out of how much
Working = Callable[[], AbstractContextManager[None]]

REMATERIALIZED_SHARE = 0.15  # of the unsliced peak; a smaller value is not worth making again
HOT_SHARE = 0.002  # an operator is hot when it makes this share of the unsliced peak
SPILL_SHARE = 0.002  # of the unsliced peak: anything smaller gains nothing offloaded
# Of the unsliced time: where loops save less, by an upper bound, they are not worth a search (see decision 33).
SPEED_SHARE = 0.15
MOST_BUDGETS = 2  # whose candidates are kept; those with the same operators above them count as one
STREAM_SHARE = 1e-4  # of the weights: anything smaller stays resident


@dataclass(frozen=True)
class Search:
    """One graph ready to be planned.

    Attributes:
        graph: what is searched; its view says what is offloaded.
        outer: the loop it is the body of, if any.
        labels: names of slicings, per node.
        evaluator: peaks and times of its regions.
        sought: its candidates, as far as they have been asked for.
        sought_above: those that contain an operator which unsliced is above a budget, for the last budgets asked for.
        skip: (position, slicing of the first result) from which no region is sought: axes of loops around the graph.
        streamed_bytes: of the weights that are offloaded.
        rematerialized_bytes: values of so many bytes or more are rematerialized in it; 0 for none.
    """

    graph: AnalyzedGraph
    outer: OuterGraph | None
    labels: list[dict[Slicing, str]]
    evaluator: OpCosts
    sought: GradualProblem
    sought_above: Callable[[int], GradualProblem]
    skip: frozenset[tuple[int, Slicing | None]] = frozenset()
    streamed_bytes: int = 0
    rematerialized_bytes: int = 0

    @property
    def rematerialized(self) -> bool:
        """Whether it is the graph in which large values are rematerialized."""
        return self.rematerialized_bytes > 0

    @property
    def problem(self) -> Problem:
        """All candidates of it."""
        return self.sought.problem

    @functools.cached_property
    def may_save_time(self) -> bool:
        """Whether loops may make the graph faster, where memory asks for none."""
        return most_saved_seconds(self.evaluator) > SPEED_SHARE * float(self.sought.seconds[self.sought.first :].sum())

    def within(self, budget_bytes: int) -> GradualProblem:
        """What decides about a budget: of a large graph whose loops save no time, the candidates that it asks for.

        Args:
            budget_bytes: of activations.
        """
        is_small = sum(map(bool, self.graph.view.made)) <= SMALL_GRAPH
        if self.sought.is_complete or is_small or self.may_save_time:
            return self.sought
        return self.sought_above(budget_bytes)

    @functools.cached_property
    def lowest(self) -> Solution:
        """The path with the lowest peak."""
        return floor(self.problem)

    @property
    def repeats(self) -> int:
        """How often the graph runs."""
        return self.outer.loop.slices if self.outer else 1


def make_search(  # noqa: PLR0913  # a graph, and what it shares with the searches of others
    graph: AnalyzedGraph,
    outer: OuterGraph | None,
    regions: Sequence[Region],
    machine: Machine,
    progress: Progress | None,
    *,
    rematerialized_bytes: int = 0,
    evaluator: OpCosts | None = None,
    working: Working = nullcontext,
    known: Regions | None = None,
) -> Search:
    """Search a graph, as far as its candidates are asked for.

    Args:
        graph: what to search.
        outer: the loop it is the body of, if any.
        regions: loops around the whole graph; no smaller region is sought along their axes.
        machine: cost model.
        progress: told about long work.
        rematerialized_bytes: values of so many bytes or more are rematerialized in it; 0 for none.
        evaluator: of the graph, where there is one.
        working: entered while candidates are sought.
        known: what grew in graphs like this one; it is added to.
    """
    labels = axis_labels(graph.view, named_axes(graph))
    evaluator = evaluator or OpCosts(graph.view, graph.line, machine)
    what = "regions" if outer is None else f"regions, one {outer.loop.axis} at a time"
    skip = frozenset(
        (p, slicing) for region in regions for p, transfer in region.sliced.items() for slicing in transfer.results[:1]
    )
    sought, above = _sought(evaluator, graph, labels, skip, what, progress, working, known)
    return Search(graph, outer, labels, evaluator, sought, above, skip, rematerialized_bytes=rematerialized_bytes)


def whole_seconds_of(graph: AnalyzedGraph, machine: Machine) -> Sequence[float]:
    """Predicted time of the work of every node, unsliced and without launching it; placeholders have none."""
    seconds = OpCosts(graph.view, graph.line, machine).whole - machine.launch_seconds
    seconds[: graph.facts.num_placeholders] = 0.0
    found: Sequence[float] = np.maximum(seconds, 0.0).tolist()
    return found


def rematerialized_bytes(graph: AnalyzedGraph) -> int:
    """The smallest value worth rematerializing, in bytes."""
    return max(1, int(graph.line.peak_bytes * REMATERIALIZED_SHARE))


def rematerialized_graph(graph: AnalyzedGraph, least_bytes: int | None = None) -> AnalyzedGraph | None:
    """The graph in which large values are rematerialized after their statistics; None if there are none.

    Args:
        graph: the legal graph.
        least_bytes: the smallest value worth it, as a plan says; `rematerialized_bytes(graph)` if not given.
    """
    program = copy_program(graph.program)
    if not rematerialize(program, least_bytes or rematerialized_bytes(graph)):
        return None
    program.graph_module.recompile()
    return analyze_graph(program, graph.facts.device_type)


def offloading(search: Search, progress: Progress | None, working: Working = nullcontext) -> Search:
    """Search the same graph with everything offloaded that may be.

    A candidate then counts what it needs on the device, whatever is done between candidates; which of all that really
    is offloaded is decided once a path is chosen (`compiler.offload`).

    Args:
        search: with everything on the device.
        progress: told about long work.
        working: entered while candidates are sought.
    """
    weights = streamable(search.graph)
    graph = graph_offloading(search.graph, spillable(search.graph) | weights)
    evaluator = search.evaluator.offloading(graph.view, graph.line)
    what = "offload memory" if search.outer is None else f"offload memory, one {search.outer.loop.axis} at a time"
    sought, above = _sought(evaluator, search.graph, search.labels, search.skip, what, progress, working)
    streamed_bytes = graph.view.bytes_of(weights)
    return replace(
        search, graph=graph, evaluator=evaluator, sought=sought, sought_above=above, streamed_bytes=streamed_bytes
    )


def _sought(
    evaluator: OpCosts,
    on_device: AnalyzedGraph,
    labels: list[dict[Slicing, str]],
    skip: frozenset[tuple[int, Slicing | None]],
    what: str,
    progress: Progress | None,
    working: Working,
    known: Regions | None = None,
) -> tuple[GradualProblem, Callable[[int], GradualProblem]]:
    """All candidates of a graph, and those that a budget asks for."""

    def told(done: int, total: int) -> None:
        if progress is not None:
            progress(what, done, total)

    hot = int(on_device.line.peak_bytes * HOT_SHARE)
    seek = functools.partial(
        candidates, evaluator, labels, skip=skip, hot_bytes=hot, on_device=on_device.line, progress=told, known=known
    )
    first, (live, seconds) = on_device.facts.num_placeholders, unsliced(evaluator)

    @functools.lru_cache(MOST_BUDGETS)
    def containing_one_of(positions: frozenset[int]) -> GradualProblem:
        return GradualProblem(first, live, seconds, functools.partial(seek, above=positions), working)

    def above(budget_bytes: int) -> GradualProblem:
        return containing_one_of(frozenset(np.flatnonzero(live > budget_bytes).tolist()))

    return GradualProblem(first, live, seconds, seek, working), above


def graph_offloading(graph: AnalyzedGraph, offloaded: frozenset[int]) -> AnalyzedGraph:
    """The graph with some storages offloaded."""
    view = graph.view.offloading(offloaded)
    return replace(graph, view=view, line=timeline(view.facts, view.lives, graph.line.workspace_bytes, offloaded))


def spillable(graph: AnalyzedGraph, least_bytes: float | None = None) -> frozenset[int]:
    """Values that may be offloaded: big, dense, made by one operator, and nothing the caller holds.

    Args:
        graph: what is searched.
        least_bytes: the smallest value worth it; a share of the unsliced peak if not given.
    """
    facts, view, found = graph.facts, graph.view, []
    smallest = SPILL_SHARE * graph.line.peak_bytes if least_bytes is None else least_bytes
    for p in range(facts.num_placeholders, len(facts.nodes)):
        node = facts.nodes[p]
        if not isinstance(node.meta.get("val"), torch.Tensor) or takes_statistics(node):
            continue
        for storage in view.made[p]:
            big = facts.storages[storage].nbytes >= smallest
            if big and view.lives.last[storage] < len(facts.nodes) and facts.tensors[p][0].is_dense:
                found.append(storage)
    return frozenset(found) - _expanded(graph)


def streamable(graph: AnalyzedGraph) -> frozenset[int]:
    """Weights that may be offloaded: big ones that one placeholder stands for."""
    facts, found = graph.facts, dict[int, int]()
    total = sum(s.nbytes for s in facts.storages if s.origin is Origin.WEIGHT)
    for p, binding in enumerate(graph.program.bindings):
        if binding.source in (Source.PARAMETER, Source.BUFFER):
            tensor = facts.tensors[p][0]
            storage = facts.storages[tensor.storage]
            covers = tensor.is_dense and tensor.nbytes <= storage.nbytes < 2 * tensor.nbytes + 512
            if covers and storage.nbytes >= STREAM_SHARE * total:
                found[tensor.storage] = found.get(tensor.storage, 0) + 1
    outputs = {facts.tensors[facts.position[node]][0].storage for node in facts.outputs}
    return frozenset(s for s, count in found.items() if count == 1) - _expanded(graph) - outputs


def _expanded(graph: AnalyzedGraph) -> set[int]:
    """Storages that some view repeats: a copy of a slice of it would make real what is repeated."""
    return {tensor.storage for tensors in graph.facts.tensors for tensor in tensors if tensor.is_expanded}
