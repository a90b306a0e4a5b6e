"""From a captured program to a plan, and from a plan to a rewritten program."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from sicompiler.axes.factor_map import Slicing
from sicompiler.axes.table import AxisTable
from sicompiler.capture import Program, Source, fingerprint, paused_gc
from sicompiler.cost import MACHINES, Machine
from sicompiler.errors import OverBudget
from sicompiler.facts.kernels import node_workspaces
from sicompiler.facts.lifetimes import lifetimes
from sicompiler.facts.modules import common_module, describe
from sicompiler.facts.storages import (
    ALLOCATION_GRANULE_BYTES,
    GraphFacts,
    Origin,
    fake_tensors,
    graph_facts,
    rounded,
)
from sicompiler.facts.timeline import Timeline, timeline
from sicompiler.graph_view import GraphView
from sicompiler.passes.dense_factors import dense_factors
from sicompiler.passes.loop import outline_loops
from sicompiler.passes.manager import Observer, run_stage
from sicompiler.passes.outer import Inner, extract_inner, wrap_outer
from sicompiler.plan import OuterLoop, Plan, RegionPlan
from sicompiler.planners.candidates import axis_labels, candidates
from sicompiler.planners.dp import Choice, Problem, Solution, floor
from sicompiler.planners.evaluator import Evaluator
from sicompiler.planners.registry import planner_named
from sicompiler.region import Region, Walk
from sicompiler.units import budget_hint, format_bytes

Progress = Callable[[str, int, int], None]  # what is being done, how much of it is done, out of how much

OUTER_HOISTED_BYTES = 2**16  # what the outer loop keeps for its whole length should be small
OUTER_SIZE = 16  # a longer axis is left to smaller regions: the graph runs once per entry
OUTER_HOISTED_SHARE = 0.1  # of the unsliced peak; a loop that keeps more whole does not slice what matters
HOT_SHARE = 0.002  # an operator is hot when it makes this share of the unsliced peak


@dataclass(frozen=True)
class Graph:
    """A legal program with everything known about it.

    Attributes:
        program: the graph.
        view: facts, lifetimes and axis table.
        line: timeline of the unsliced schedule.
        extra_bytes: alive beside the graph all the time (what an outer loop holds whole).
    """

    program: Program
    view: GraphView
    line: Timeline
    extra_bytes: int = 0

    @property
    def facts(self) -> GraphFacts:
        """Sizes and aliases."""
        return self.view.facts


def study(program: Program, device_type: str, extra_bytes: int = 0) -> Graph:
    """Collect the facts of a program."""
    facts = graph_facts(program, device_type=device_type)
    lives = lifetimes(facts)
    view = GraphView(facts, lives, AxisTable(facts))
    return Graph(program, view, timeline(facts, lives, node_workspaces(facts)), extra_bytes)


def named_axes(graph: Graph) -> dict[str, tuple[int, Slicing]]:
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
    graph: Graph


def outer_region(graph: Graph, seeds: dict[int, Slicing]) -> Region | None:
    """The whole graph as one region along an axis of its inputs; None where some operator does not commute."""
    first = graph.facts.num_placeholders
    walk = Walk(graph.view, first, None, inputs=seeds, hoisted_bytes=OUTER_HOISTED_BYTES, windows=0)
    while walk.stop < len(graph.facts.nodes):
        if walk.extend() is not None:
            return None
    region = walk.region()
    owners: dict[int, torch.fx.Node] = {}
    for node in graph.facts.outputs:
        transfer = region.sliced.get(graph.facts.position[node])
        made = graph.view.tensor((graph.facts.position[node], 0)).storage
        if transfer is None or transfer.results[0] is None or graph.facts.storages[made].origin is not Origin.VALUE:
            return None
        if owners.setdefault(made, node) is not node:
            return None  # results that share memory would come out in memory of their own
    return region


def outer_loops(graph: Graph) -> list[tuple[OuterLoop, Region]]:
    """Every axis of the inputs that commutes with the whole graph; of inputs that share it, the one hoisting least."""
    found: dict[tuple[Slicing | None, ...], tuple[int, OuterLoop, Region]] = {}
    for name, (p, slicing) in named_axes(graph).items():
        region = outer_region(graph, {p: slicing}) if slicing.size <= OUTER_SIZE else None
        if region is None:
            continue
        hoisted = _hoisted_bytes(graph, region)
        outputs = tuple(region.sliced[graph.facts.position[node]].results[0] for node in graph.facts.outputs)
        if hoisted <= OUTER_HOISTED_SHARE * graph.line.peak_bytes and (
            outputs not in found or hoisted < found[outputs][0]
        ):
            found[outputs] = (hoisted, OuterLoop(name, slicing.size, 1, ((p, slicing),)), region)
    return [(loop, region) for _, loop, region in found.values()]


def _hoisted_bytes(graph: Graph, region: Region) -> int:
    return sum(graph.facts.storages[s].nbytes for p in region.hoisted for s in graph.view.made[p])


def make_outer(graph: Graph, loop: OuterLoop, region: Region) -> OuterGraph:
    """Cut out the graph of one slice and study it."""
    inner = extract_inner(graph.program, graph.view, region, loop.slice_length)
    dense_factors(inner.program)  # one sample may be a view, expanded, where all of them had to be copied
    alone = study(inner.program, graph.facts.device_type)
    whole = _held_storages(graph, region)
    seen = {t.untyped_storage()._cdata for node in inner.program.placeholders for t in fake_tensors(node)}
    extra = sum(nbytes for storage, nbytes in whole.items() if storage not in seen) + _results_bytes(graph)
    return OuterGraph(loop, region, inner, Graph(inner.program, alone.view, alone.line, extra))


def _held_storages(graph: Graph, region: Region) -> dict[int, int]:
    """Storages that live as long as the outer loop: inputs and what is computed before it."""
    facts = graph.facts
    positions = [*range(facts.num_placeholders), *region.hoisted]
    return {
        fake.untyped_storage()._cdata: facts.storages[tensor.storage].nbytes
        for p in positions
        for fake, tensor in zip(fake_tensors(facts.nodes[p]), facts.tensors[p], strict=True)
        if facts.storages[tensor.storage].origin is not Origin.WEIGHT
    }


def _results_bytes(graph: Graph) -> int:
    """The buffers an outer loop writes its results into."""
    granule = ALLOCATION_GRANULE_BYTES.get(graph.facts.device_type, 1)
    total = 0
    for node in dict.fromkeys(graph.facts.outputs):
        tensor = graph.facts.tensors[graph.facts.position[node]][0]
        span = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride, strict=True))
        nbytes = span * tensor.dtype.itemsize if tensor.numel else 0
        total += rounded(nbytes, granule)
    return total


@dataclass(frozen=True)
class Search:
    """One graph ready to be planned: all candidates of it."""

    graph: Graph
    outer: OuterGraph | None
    labels: list[dict[Slicing, str]]
    problem: Problem

    @property
    def repeats(self) -> int:
        """How often the graph runs."""
        return self.outer.loop.slices if self.outer else 1


def make_search(
    graph: Graph, outer: OuterGraph | None, regions: Sequence[Region], machine: Machine, progress: Progress | None
) -> Search:
    """Collect the candidates of a graph.

    Args:
        graph: what to search.
        outer: the loop it is the body of, if any.
        regions: loops around the whole graph; no smaller region is sought along their axes.
        machine: cost model.
        progress: told about long work.
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
    return Search(graph, outer, labels, Problem(first, graph.line.live_bytes, evaluator.whole, found))


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
    if plan.outer is None:
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
