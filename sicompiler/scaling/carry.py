"""Regions known to be good at one size, looked at again at another: plans in a fraction of the time of a search.

A search weighs tens of thousands of regions. The ones that its plans take are a few hundred, and mostly the same at
every size. Each is walked again at the other size by the rules of the planner, so a plan made of them is one that the
planner could have made there, with the peak it would predict; only a faster or smaller one may have been missed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sicompiler.axes.factor_map import Slicing
from sicompiler.compiler.analyzed_graph import AnalyzedGraph, OuterGraph
from sicompiler.compiler.search import HOT_SHARE, Search
from sicompiler.device import Machine
from sicompiler.planners.candidates import Candidate
from sicompiler.planners.cut_positions import cut_positions
from sicompiler.planners.dp import floor, solve
from sicompiler.planners.gradual import GradualProblem
from sicompiler.planners.op_costs import OpCosts
from sicompiler.planners.region_cost import MAX_OPERATORS, MAX_SPAN, RegionCost
from sicompiler.regions.builder import RegionBuilder
from sicompiler.scaling.template import SizedGraph, Template

RUNGS = (0.0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4)  # budgets, from the floor to the unsliced peak


@dataclass(frozen=True)
class ReusableRegion:
    """A region that some plan takes.

    Attributes:
        start, stop: positions in the schedule.
        seed: which of the slicings of its first result.
        units: how many units of that slicing make one of the region's.
        late: it starts where another axis ended, rather than at a minimum of the bytes that cross.
    """

    start: int
    stop: int
    seed: int
    units: int
    late: bool


def known_regions(search: Search, template: Template) -> list[ReusableRegion]:
    """The regions that the plans of a search take, from its floor to its unsliced peak."""
    problem = search.problem
    lowest = floor(problem)
    top = int(problem.live_bytes.max(initial=0))
    solutions = [lowest]
    for share in RUNGS:
        found = solve(problem, lowest.peak_bytes + int(share * max(top - lowest.peak_bytes, 0)))
        if found is not None:
            solutions.append(found)
    starts = set(cut_positions(search.graph.view, search.graph.line)[0])
    regions: dict[ReusableRegion, None] = {}
    for solution in solutions:
        for choice in solution.choices:
            candidate = choice.candidate
            for index, base in enumerate(template.seeds[candidate.start]):
                if _coarsened(base, candidate.seed.inner // base.inner) == candidate.seed:
                    units, late = candidate.seed.inner // base.inner, candidate.start not in starts
                    regions[ReusableRegion(candidate.start, candidate.stop, index, units, late)] = None
                    break
    return list(regions)


def carried(sized: SizedGraph, regions: list[ReusableRegion], outer: OuterGraph | None, machine: Machine) -> Search:
    """A search of another size whose candidates are known regions only.

    Args:
        sized: the graph of that size.
        regions: from `known_regions` of the captured size.
        outer: the loop whose body the graph is.
        machine: cost model.
    """
    graph = sized.graph()
    evaluator = OpCosts(graph.view, graph.line, machine)
    found = sorted(_candidates(sized, graph, evaluator, regions), key=lambda candidate: candidate.start)
    sought = GradualProblem(graph.facts.num_placeholders, graph.line.live_bytes, evaluator.whole, lambda: iter(found))
    return Search(graph, outer, [{}] * len(graph.facts.nodes), evaluator, sought, lambda _: sought)


def _candidates(
    sized: SizedGraph, graph: AnalyzedGraph, evaluator: OpCosts, regions: list[ReusableRegion]
) -> Iterator[Candidate]:
    starts, ends = map(set, cut_positions(graph.view, graph.line))
    hot = int(graph.line.peak_bytes * HOT_SHARE)
    storages = graph.facts.storages
    for region in regions:
        seed = _coarsened(sized.seeds[region.start][region.seed], region.units)
        made = [storages[s].nbytes for p in range(region.start, region.stop) for s in graph.view.made[p]]
        if seed is None or seed.size < 2 or max(made, default=0) < hot or not (region.late or region.start in starts):
            continue
        builder = RegionBuilder(graph.view, region.start, seed)
        cost = RegionCost(evaluator, builder)
        while builder.stop < region.stop and builder.extend() is None:
            cost.advance()
        if builder.stop != region.stop:
            continue
        peaks, seconds = cost.evaluate()
        if region.stop in ends or _ends(builder, graph):
            yield Candidate(region.start, region.stop, seed, evaluator.grid(seed.size)[0], peaks, seconds)


def _ends(builder: RegionBuilder, graph: AnalyzedGraph) -> bool:
    """Whether the planner's region would end here, wherever that is."""
    operators = sum(bool(graph.view.made[p]) for p in range(builder.start, builder.stop))
    long = operators >= MAX_OPERATORS or builder.stop - builder.start >= MAX_SPAN
    return long or builder.stop == len(graph.facts.nodes) or builder.extend() is not None


def _coarsened(seed: Slicing, units: int) -> Slicing | None:
    """A slicing in units of several of its own; None where they do not divide it."""
    if units < 1 or seed.size % units:
        return None
    return Slicing(seed.dim, seed.outer, seed.size // units, seed.inner * units)
