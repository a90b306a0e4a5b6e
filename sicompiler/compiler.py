"""From a captured program to a plan, and from a plan to a rewritten program."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from sicompiler.axes.factor_map import Slicing
from sicompiler.capture import Program, fingerprint, paused_gc
from sicompiler.cost import MACHINES, Machine
from sicompiler.errors import OverBudget
from sicompiler.facts.modules import common_module, describe
from sicompiler.passes.edit import copy_program
from sicompiler.passes.loop import outline_loops
from sicompiler.passes.manager import Observer, run_stage
from sicompiler.passes.outer import wrap_outer
from sicompiler.passes.recompute import compute_again
from sicompiler.plan import Plan, RegionPlan
from sicompiler.planners.candidates import axis_labels, candidates
from sicompiler.planners.dp import Choice, Problem, Solution, floor
from sicompiler.planners.evaluator import Evaluator
from sicompiler.planners.registry import planner_named
from sicompiler.region import Region, Walk
from sicompiler.study import Graph, OuterGraph, make_outer, named_axes, outer_loops, outer_region, study
from sicompiler.units import budget_hint, format_bytes

Progress = Callable[[str, int, int], None]  # what is being done, how much of it is done, out of how much

RECOMPUTED_SHARE = 0.15  # of the unsliced peak; a smaller value is not worth making again
HOT_SHARE = 0.002  # an operator is hot when it makes this share of the unsliced peak


@dataclass(frozen=True)
class Search:
    """One graph ready to be planned: all candidates of it."""

    graph: Graph
    outer: OuterGraph | None
    labels: list[dict[Slicing, str]]
    problem: Problem
    recomputed: bool = False

    @property
    def repeats(self) -> int:
        """How often the graph runs."""
        return self.outer.loop.slices if self.outer else 1


def make_search(
    graph: Graph,
    outer: OuterGraph | None,
    regions: Sequence[Region],
    machine: Machine,
    progress: Progress | None,
    *,
    recomputed: bool = False,
) -> Search:
    """Collect the candidates of a graph.

    Args:
        graph: what to search.
        outer: the loop it is the body of, if any.
        regions: loops around the whole graph; no smaller region is sought along their axes.
        machine: cost model.
        progress: told about long work.
        recomputed: whether it is the graph in which large values are made again.
    """
    evaluator = Evaluator(graph.view, graph.line, machine)
    labels = axis_labels(graph.view, named_axes(graph))
    what = "regions" if outer is None else f"regions, one {outer.loop.axis} at a time"

    def told(done: int, total: int) -> None:
        if progress is not None:
            progress(what, done, total)

    hot = int(graph.line.peak_bytes * HOT_SHARE)
    skip = {
        (p, slicing) for region in regions for p, transfer in region.sliced.items() for slicing in transfer.results[:1]
    }
    found = list(candidates(evaluator, labels, skip=skip, hot_bytes=hot, progress=told))
    first = graph.facts.num_placeholders
    return Search(graph, outer, labels, Problem(first, graph.line.live_bytes, evaluator.whole, found), recomputed)


def recomputed_graph(graph: Graph) -> Graph | None:
    """The graph in which large values are made again after their statistics; None if there are none."""
    program = copy_program(graph.program)
    if not compute_again(program, int(graph.line.peak_bytes * RECOMPUTED_SHARE)):
        return None
    program.graph_module.recompile()
    return study(program, graph.facts.device_type)


@dataclass(frozen=True)
class Planner:
    """Everything known about one model at one input shape; gives a plan for any budget.

    Attributes:
        model: its name.
        fingerprint: of the cleaned graph.
        graph: the legal graph.
        searches: the graph itself, and the graphs of possible outer loops.
        weights_bytes: resident weights.
        dtype: of the weights.
        timings: seconds spent so far, by stage.
        phase: what part of a pipeline the call is: "denoise", "decode", ...
    """

    model: str
    fingerprint: str
    graph: Graph
    searches: tuple[Search, ...]
    weights_bytes: int
    dtype: str
    timings: dict[str, float]
    phase: str = "denoise"

    @property
    def unsliced_bytes(self) -> int:
        """Peak of the unsliced schedule, weights included."""
        return self.graph.line.peak_bytes + self.weights_bytes

    def floor(self) -> tuple[int, str]:
        """The smallest budget of any plan, weights included, and the operator that sets it."""
        best, search = min(
            ((floor(s.problem), s) for s in self.searches), key=lambda row: row[0].peak_bytes + row[1].graph.extra_bytes
        )
        culprit = search.graph.facts.nodes[best.culprit]
        return best.peak_bytes + search.graph.extra_bytes + self.weights_bytes, describe(culprit)

    def plan(self, budget_bytes: int, *, planner: str = "dp") -> Plan:
        """The fastest plan within a budget.

        Args:
            budget_bytes: weights, inputs, activations and workspace together.
            planner: which search to use, see `planners.registry`.

        Raises:
            BadInput: there is no planner of that name.
            OverBudget: even the plan with the lowest peak is above the budget.
        """
        began = time.perf_counter()
        solve = planner_named(planner)
        floor_bytes, culprit = self.floor()
        found: list[tuple[float, Solution, Search]] = []
        for search in self.searches:
            solution = solve(search.problem, budget_bytes - self.weights_bytes - search.graph.extra_bytes)
            if solution is not None:
                found.append((solution.seconds * search.repeats, solution, search))
        if not found:
            raise OverBudget(
                f"{self.model} does not fit {format_bytes(budget_bytes)}: the floor is {format_bytes(floor_bytes)} "
                f"({format_bytes(self.weights_bytes)} of weights + "
                f"{format_bytes(floor_bytes - self.weights_bytes)} of activations), "
                f"set by {culprit}. The nearest budget that works is {budget_hint(floor_bytes)}",
                budget_bytes=budget_bytes,
                floor_bytes=floor_bytes,
                culprit=culprit,
            )
        seconds, solution, search = min(found, key=lambda row: row[0])
        timings = {**self.timings, "plan": self.timings.get("plan", 0.0) + time.perf_counter() - began}
        return Plan(
            model=self.model,
            fingerprint=self.fingerprint,
            torch_version=torch.__version__.split("+")[0],
            device=self.graph.facts.device_type,
            dtype=self.dtype,
            budget_bytes=budget_bytes,
            weights_bytes=self.weights_bytes,
            unsliced_peak_bytes=self.unsliced_bytes,
            predicted_peak_bytes=solution.peak_bytes + search.graph.extra_bytes + self.weights_bytes,
            floor_bytes=floor_bytes,
            floor_operator=culprit,
            outer=search.outer.loop if search.outer else None,
            regions=tuple(_region_plan(search, choice) for choice in solution.choices),
            seconds=seconds,
            timings=timings,
            held_bytes=search.graph.extra_bytes,
            phase=self.phase,
            recomputed=search.recomputed,
        )


def _region_plan(search: Search, choice: Choice) -> RegionPlan:
    candidate, nodes = choice.candidate, search.graph.facts.nodes
    labels = search.labels[candidate.start]
    return RegionPlan(
        start=candidate.start,
        stop=candidate.stop,
        seed=candidate.seed,
        axis=labels.get(candidate.seed, f"dim {candidate.seed.dim} of {nodes[candidate.start].name}"),
        size=candidate.seed.size,
        slice_length=choice.slice_length,
        operators=sum(search.graph.facts.makes_storage(p) for p in range(candidate.start, candidate.stop)),
        first=nodes[candidate.start].name,
        last=nodes[candidate.stop - 1].name,
        module=common_module(nodes[candidate.start : candidate.stop]),
        peak_bytes=choice.peak_bytes,
        seconds=choice.seconds,
    )


def make_planner(
    program: Program,
    *,
    model: str,
    weights_bytes: int,
    dtype: str,
    device_type: str,
    machine: Machine | None = None,
    progress: Progress | None = None,
    observer: Observer | None = None,
    timings: dict[str, float] | None = None,
    phase: str = "denoise",
) -> Planner:
    """Analyse a captured program.

    Args:
        program: from `capture`.
        model: its name, for people.
        weights_bytes: resident weights.
        dtype: of the weights, for people.
        device_type: "cpu" or "cuda": whose allocator and kernels to count with.
        machine: cost model of the device; a default by device type.
        progress: told about long work.
        observer: shown every stage.
        timings: seconds spent before (on the capture).
        phase: what part of a pipeline the call is.
    """
    began = time.perf_counter()
    clean = run_stage("clean", program, observer=observer)
    mark = fingerprint(clean.graph_module.graph)
    graph = study(run_stage("legal", clean, observer=observer), device_type)
    analysed = time.perf_counter()
    machine = machine or MACHINES[device_type]
    with paused_gc():
        loops = outer_loops(graph)
        searches = [make_search(graph, None, [region for _, region in loops], machine, progress)]
        for loop, region in loops:
            outer = make_outer(graph, loop, region)
            searches.append(make_search(outer.graph, outer, [], machine, progress))
        again = recomputed_graph(graph)
        if again is not None:
            searches.append(make_search(again, None, [], machine, progress, recomputed=True))
    timings = {**(timings or {}), "analyse": analysed - began, "plan": time.perf_counter() - analysed}
    return Planner(model, mark, graph, tuple(searches), weights_bytes, dtype, timings, phase)


def rewrite(program: Program, plan: Plan, *, observer: Observer | None = None) -> Program:
    """Carry a plan out on a captured program.

    Args:
        program: from `capture`, of the model the plan was made for.
        plan: what to do.
        observer: shown every stage.

    Raises:
        StalePlan: the plan was made for another graph.
    """
    clean = run_stage("clean", program, observer=observer)
    version = torch.__version__.split("+")[0]
    plan.check(fingerprint=fingerprint(clean.graph_module.graph), torch_version=version, device=plan.device)
    graph = study(run_stage("legal", clean, observer=observer), plan.device)
    if plan.recomputed:
        again = recomputed_graph(graph)
        assert again is not None, "the fingerprint matches, so there are values to make again"
        rewritten = _outline(again, plan)
    elif plan.outer is None:
        rewritten = _outline(graph, plan)
    else:
        region = outer_region(graph, dict(plan.outer.seeds))
        assert region is not None, "the fingerprint matches, so the outer loop of the plan is legal"
        outer = make_outer(graph, plan.outer, region)
        rewritten = wrap_outer(graph.program, graph.view, region, outer.inner, _outline(outer.graph, plan))
    return run_stage("rewritten", rewritten, observer=observer)


def _outline(graph: Graph, plan: Plan) -> Program:
    regions = []
    for chosen in plan.regions:
        walk = Walk(graph.view, chosen.start, chosen.seed)
        while walk.stop < chosen.stop:
            reason = walk.extend()
            assert reason is None, f"region {chosen.first}..{chosen.last}: {reason}"
        regions.append((walk.region(), chosen.slice_length))
    return outline_loops(graph.program, graph.view, regions)
