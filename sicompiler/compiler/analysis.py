"""What is known of a captured program once and for all: its legal graph, and the graphs that plans are made on.

A plan is made from it and carried out on it, so nothing is cleaned, legalised or analysed twice, and a second budget
finds everything there. No part of it is ever changed.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

from sicompiler.axes.factor_map import Slicing
from sicompiler.capture import Program
from sicompiler.compiler.analyzed_graph import (
    AnalyzedGraph,
    OuterGraph,
    analyze_graph,
    make_outer,
    outer_loops,
    outer_region,
)
from sicompiler.compiler.search import rematerialized_graph
from sicompiler.passes.manager import Observer, run_stage
from sicompiler.plan import OuterLoop, Plan
from sicompiler.regions.region import Region

Seeds = tuple[tuple[int, Slicing], ...]


@dataclass(frozen=True)
class Analysis:
    """Everything about one captured program that does not depend on a budget.

    Attributes:
        legal: the legal graph.
    """

    legal: AnalyzedGraph
    _outer: dict[OuterLoop, OuterGraph] = field(default_factory=dict, repr=False)
    _rematerialized: dict[int, AnalyzedGraph | None] = field(default_factory=dict, repr=False)

    @functools.cached_property
    def loops(self) -> list[tuple[OuterLoop, Region]]:
        """Loops that may stand around the whole graph."""
        return outer_loops(self.legal)

    @functools.cached_property
    def outers(self) -> tuple[OuterGraph, ...]:
        """The graphs of one slice of each of these loops."""
        return tuple(self._outer.setdefault(loop, make_outer(self.legal, loop, region)) for loop, region in self.loops)

    def outer(self, loop: OuterLoop) -> OuterGraph | None:
        """The graph of one slice of an outer loop; None where some operator does not commute with its axis."""
        if loop not in self._outer:
            region = outer_region(self.legal, dict(loop.seeds))
            if region is None:
                return None
            self._outer[loop] = make_outer(self.legal, loop, region)
        return self._outer[loop]

    def rematerialized(self, least_bytes: int) -> AnalyzedGraph | None:
        """The graph in which values of so many bytes are rematerialized after their statistics; None without such."""
        if least_bytes not in self._rematerialized:
            self._rematerialized[least_bytes] = rematerialized_graph(self.legal, least_bytes)
        return self._rematerialized[least_bytes]

    def graph_of(self, plan: Plan) -> AnalyzedGraph:
        """The graph whose positions a plan counts, of a plan that was made from this analysis."""
        if plan.outer is not None:
            outer = self.outer(plan.outer)
            assert outer is not None
            return outer.graph
        again = self.rematerialized(plan.rematerialized_bytes) if plan.rematerialized else self.legal
        assert again is not None
        return again


def analyze(program: Program, device_type: str, *, observer: Observer | None = None) -> Analysis:
    """Analyse a captured program.

    Args:
        program: from `capture`.
        device_type: whose allocator and kernels to count with: a row of `sicompiler.device`.
        observer: shown every stage.
    """
    clean = run_stage("clean", program, observer=observer)
    legal = run_stage("legal", clean, observer=observer, in_place=observer is None)  # an observer may keep what it sees
    return Analysis(analyze_graph(legal, device_type))
