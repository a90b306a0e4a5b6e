"""The variants of a graph that a planner chooses among: as it is, in an outer loop, rematerialized, offloaded.

Each is searched when a budget first asks for it, and its seconds are counted under a name.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sicompiler.collector import paused_gc
from sicompiler.compiler.analysis import Analysis
from sicompiler.compiler.analyzed_graph import AnalyzedGraph, OuterGraph
from sicompiler.compiler.search import Progress, Search, Working, make_search, offloading, rematerialized_bytes
from sicompiler.device import Machine, device_kind
from sicompiler.planners.candidates import Regions
from sicompiler.planners.gradual import GradualProblem
from sicompiler.planners.op_costs import OpCosts
from sicompiler.planners.region_cost import unsliced
from sicompiler.regions.region import Region


@dataclass(frozen=True)
class Searches:
    """The searches of one analysis.

    Attributes:
        analyse: makes the analysis of the program.
        machine: cost model.
        progress: told about long work.
        timings: seconds spent, by stage; what is searched later is added.
        known: what grew in graphs that are like these; it is added to.
    """

    analyse: Callable[[], Analysis]
    machine: Machine
    progress: Progress | None
    timings: dict[str, float]
    known: Regions | None = None

    @functools.cached_property
    def analysis(self) -> Analysis:
        """The analysis of the program."""
        with self._timed("analyse"):
            return self.analyse()

    @property
    def graph(self) -> AnalyzedGraph:
        """The legal graph."""
        return self.analysis.legal

    @functools.cached_property
    def unsliced(self) -> Search:
        """The legal graph with no candidates at all."""
        graph = self.graph
        evaluator = OpCosts(graph.view, graph.line, self.machine)
        nothing = GradualProblem(graph.facts.num_placeholders, *unsliced(evaluator), lambda: iter(()))
        return Search(graph, None, [], evaluator, nothing, lambda _: nothing)

    @functools.cached_property
    def whole(self) -> Search:
        """The legal graph."""
        with self._timed("regions"):
            regions = [region for _, region in self.analysis.loops]
            return self._search(self.graph, None, regions, evaluator=self.unsliced.evaluator)

    @functools.cached_property
    def on_device(self) -> tuple[Search, ...]:
        """The legal graph, the graphs of one slice of an outer loop, and that in which values are rematerialized."""
        found = [self.whole]
        with self._timed("regions"):
            for outer in self.analysis.outers:
                found.append(self._search(outer.graph, outer))
            least = rematerialized_bytes(self.graph)
            again = self.analysis.rematerialized(least)
            if again is not None:
                found.append(self._search(again, rematerialized_bytes=least))
        return tuple(found)

    def _search(
        self,
        graph: AnalyzedGraph,
        outer: OuterGraph | None = None,
        regions: Sequence[Region] = (),
        **options: Any,
    ) -> Search:
        working = functools.partial(self._timed, "regions")
        return make_search(
            graph, outer, regions, self.machine, self.progress, working=working, known=self.known, **options
        )

    @functools.cached_property
    def offloaded(self) -> tuple[Search, ...]:
        """Searches of the graphs with everything offloaded that may be; none where that frees nothing."""
        on_device = self.on_device
        timed = functools.partial(self._timed, "regions with offloading")
        with timed():
            return _offloading(on_device, self.progress, timed)

    @property
    def all_on_device(self) -> bool:
        """Whether a budget has asked for all graphs with everything on the device."""
        return "on_device" in self.__dict__

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            with paused_gc():
                yield
        finally:
            self.timings[stage] = self.timings.get(stage, 0.0) + time.perf_counter() - began


@dataclass(frozen=True)
class KnownSearches:
    """Searches of a graph of another size, whose candidates are known: nothing is left to be searched.

    Attributes:
        on_device: the first is of the whole graph.
        progress: told about long work.
        timings: seconds spent, by stage.
    """

    on_device: tuple[Search, ...]
    progress: Progress | None
    timings: dict[str, float]
    all_on_device: bool = True

    @property
    def graph(self) -> AnalyzedGraph:
        """The whole graph."""
        return self.whole.graph

    @property
    def whole(self) -> Search:
        """The search of the whole graph."""
        return self.on_device[0]

    unsliced = whole

    @functools.cached_property
    def offloaded(self) -> tuple[Search, ...]:
        """Searches of the graphs with everything offloaded that may be."""
        return _offloading(self.on_device, self.progress)


def _offloading(
    searches: tuple[Search, ...], progress: Progress | None, working: Working = paused_gc
) -> tuple[Search, ...]:
    frees = device_kind(searches[0].graph.facts.device_type).can_offload
    return tuple(offloading(search, progress, working) for search in searches if frees)
