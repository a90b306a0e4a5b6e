"""From a plan back to the graph and the regions it is of: rebuilt, compared, and refused where anything differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from sicompiler.axes.factor_map import Slicing
from sicompiler.capture import Source
from sicompiler.compiler.analysis import Analysis
from sicompiler.compiler.analyzed_graph import AnalyzedGraph, OuterGraph
from sicompiler.compiler.basis import basis, region_digest
from sicompiler.compiler.offload import evaluate
from sicompiler.compiler.search import spillable, streamable
from sicompiler.device import device_kinds
from sicompiler.errors import StalePlan
from sicompiler.facts.timeline import timeline
from sicompiler.machines import machine_of
from sicompiler.plan import Plan, RegionPlan
from sicompiler.planners.op_costs import OpCosts
from sicompiler.planners.region_cost import unsliced
from sicompiler.regions.builder import RegionBuilder
from sicompiler.regions.region import Region
from sicompiler.regions.view import GraphView
from sicompiler.units import format_bytes


@dataclass(frozen=True)
class Restored:
    """What a plan is carried out on.

    Attributes:
        graph: whose positions it counts.
        outer: the loop around it, if any.
        view: of the graph, with what the plan offloads.
        regions: in order, each with its slice length.
    """

    graph: AnalyzedGraph
    outer: OuterGraph | None
    view: GraphView
    regions: tuple[tuple[Region, int], ...]


def restore(analysis: Analysis, plan: Plan) -> Restored:
    """The graph and the regions of a plan.

    Raises:
        StalePlan: the plan is of another graph, or was made under other rules, passes or thresholds, or names what this
            graph does not have; names the field.
    """
    plan.check_values()
    legal = analysis.legal
    wanted = basis(legal, legal)
    late = {name: wanted.pop(name) for name in ("fingerprint", "rules")}
    plan.check(**wanted, **(late if plan.outer is None and not plan.rematerialized else {}))
    outer: OuterGraph | None = None
    graph: AnalyzedGraph | None = legal
    if plan.outer is not None:
        outer = _outer(analysis, plan)
        graph = outer.graph
    elif plan.rematerialized:
        graph = analysis.rematerialized(plan.rematerialized_bytes)
        if graph is None:
            raise _stale(plan, "rematerialized_bytes", "leaves nothing of this graph to rematerialize")
    assert graph is not None
    if graph is not legal:
        whole = basis(legal, graph)
        plan.check(fingerprint=whole["fingerprint"], rules=whole["rules"])
    nodes = len(graph.facts.nodes)
    for i, region in enumerate(plan.regions):
        if region.start < graph.facts.num_placeholders or region.stop > nodes:
            raise _stale(plan, f"regions[{i}]", f"is {region.start} to {region.stop} of {nodes} nodes")
    view = graph.view.offloading(_offloaded(graph, plan))
    regions = tuple((_region(view, plan, i), chosen.slice_length) for i, chosen in enumerate(plan.regions))
    _check_prefetched(graph, plan)
    return Restored(graph, outer, view, regions)


def check_prediction(restored: Restored, plan: Plan) -> None:
    """Work the peak of a plan out again: what kernels take depends on the machine, its processor and its threads.

    Raises:
        StalePlan: it comes to something else here, or a region has a slice length that no plan gives it.
    """
    if plan.device not in device_kinds():
        raise _stale(plan, "device", f"is {plan.device!r}, none of {', '.join(device_kinds())}")
    evaluator = _evaluator(restored.graph, restored.view, plan.device)
    steps: dict[int, int] = {}
    for i, region in enumerate(plan.regions):
        lengths = evaluator.grid(region.seed.size)[0]
        if region.slice_length not in lengths:
            raise _stale(plan, f"regions[{i}].slice_length", f"is {region.slice_length}, none of {lengths}")
        peaks, _ = evaluate(evaluator, region.start, region.stop, region.seed)
        steps[region.start] = int(peaks[lengths.index(region.slice_length)])
        if steps[region.start] != region.peak_bytes:
            raise _other_peak(plan, f"regions[{i}].peak_bytes", region.peak_bytes, steps[region.start])
    beside = plan.weights_bytes + restored.graph.extra_bytes
    peak = _peak(restored, plan, evaluator, steps) + beside
    if peak != plan.predicted_peak_bytes:
        raise _other_peak(plan, "predicted_peak_bytes", plan.predicted_peak_bytes, peak)


def _peak(restored: Restored, plan: Plan, evaluator: OpCosts, loops: Mapping[int, int]) -> int:
    """Peak of activations over all steps, weights that are fetched early included."""
    graph, view = restored.graph, restored.view
    live, first = unsliced(evaluator)[0], graph.facts.num_placeholders
    inside = np.zeros(len(live), dtype=bool)
    for region in plan.regions:
        inside[region.start : region.stop] = True
    outside = [p for p in range(first, len(live)) if not inside[p] and (view.made[p] or not view.offloaded)]
    at = {p: int(live[p]) for p in outside} | dict(loops)
    looped = {region.start: region for region, _ in restored.regions}
    for step, before in plan.prefetched:
        fetched = view.fetched(step, step)
        if step in looped:
            fetched = view.fetched_by_loop(step, looped[step].hoisted, looped[step].sliced)
        nbytes = view.bytes_of(s for s in fetched if view.born[s] < 0)
        at |= {p: at[p] + nbytes for p in at if before <= p < step}
    return max([*at.values(), int(live[:first].max(initial=0))])


def _evaluator(graph: AnalyzedGraph, view: GraphView, device: str) -> OpCosts:
    line = (
        timeline(view.facts, view.lives, graph.line.workspace_bytes, view.offloaded) if view.offloaded else graph.line
    )
    return OpCosts(view, line, machine_of(device))


def _outer(analysis: Analysis, plan: Plan) -> OuterGraph:
    """The graph of one slice of the outer loop of a plan."""
    assert plan.outer is not None
    for i, (p, seed) in enumerate(plan.outer.seeds):
        shape = _input_shape(analysis.legal, p)
        if shape is None or not _cuts(seed, shape):
            raise _stale(plan, f"outer.seeds[{i}]", f"is {seed} of position {p}, no axis of an input")
    outer = analysis.outer(plan.outer)
    if outer is None:
        raise _stale(plan, "outer", f"is a loop over {plan.outer.axis}, with which this graph does not commute")
    return outer


def _input_shape(graph: AnalyzedGraph, p: int) -> tuple[int, ...] | None:
    bindings, tensors = graph.program.bindings, graph.facts.tensors
    is_input = p < len(bindings) and bindings[p].source is Source.INPUT and bool(tensors[p])
    return tensors[p][0].shape if is_input else None


def _cuts(seed: Slicing, shape: tuple[int, ...]) -> bool:
    return seed.dim < len(shape) and seed.outer * seed.size * seed.inner == shape[seed.dim]


def _region(view: GraphView, plan: Plan, number: int) -> Region:
    """One region of a plan, grown again."""
    chosen, path = plan.regions[number], f"regions[{number}]"
    tensors = view.facts.tensors[chosen.start]
    if not tensors or not _cuts(chosen.seed, tensors[0].shape):
        raise _stale(plan, f"{path}.seed", f"is {chosen.seed}, no axis of {view.facts.nodes[chosen.start].name}")
    builder = RegionBuilder(view, chosen.start, chosen.seed)
    while builder.stop < chosen.stop:
        reason = builder.extend()
        if reason is not None:
            name = view.facts.nodes[builder.stop].name
            raise _stale(plan, f"{path}.stop", f"is {chosen.stop}, but {name} at {builder.stop} ends it: {reason}")
    region = builder.region()
    if chosen.digest and region_digest(region) != chosen.digest:
        raise _stale(plan, path, f"({chosen.first} .. {chosen.last}) comes to another region (its digest differs)")
    return region


def region_of(view: GraphView, chosen: RegionPlan) -> Region:
    """A region of a plan that was made on this very graph."""
    builder = RegionBuilder(view, chosen.start, chosen.seed)
    builder.extend_to(chosen.stop)
    return builder.region()


def _offloaded(graph: AnalyzedGraph, plan: Plan) -> frozenset[int]:
    """Storages that a plan offloads."""
    weights = {b.name: p for p, b in enumerate(graph.program.bindings) if b.source is not Source.INPUT}
    values, streams = spillable(graph, 0), streamable(graph) if plan.streamed else frozenset()
    storages: set[int] = set()
    for p in plan.spilled:
        inside = graph.facts.num_placeholders <= p < len(graph.facts.nodes)
        made = set(graph.view.made[p]) & values if inside else set()
        if not made:
            raise _stale(plan, "spilled", f"has position {p}, which makes nothing that may be offloaded")
        storages |= made
    for name in plan.streamed:
        made = set(graph.view.made[weights[name]]) & streams if name in weights else set()
        if not made:
            raise _stale(plan, "streamed", f"has {name!r}, no weight of this graph that may be offloaded")
        storages |= made
    return frozenset(storages)


def _check_prefetched(graph: AnalyzedGraph, plan: Plan) -> None:
    steps = set(_steps(graph, plan))
    seen: set[int] = set()
    for step, before in plan.prefetched:
        if step in seen or not {step, before} <= steps:
            raise _stale(plan, "prefetched", f"has step {step} before {before}; steps are loops and operators outside")
        seen.add(step)


def _steps(graph: AnalyzedGraph, plan: Plan) -> Iterator[int]:
    """Positions at which the steps of a plan begin: its loops, and operators outside of them."""
    p = graph.facts.num_placeholders
    for region in plan.regions:
        yield from range(p, region.start)
        yield region.start
        p = region.stop
    yield from range(p, len(graph.facts.nodes))


def _stale(plan: Plan, path: str, why: str) -> StalePlan:
    return StalePlan(f"the plan of {plan.model} does not fit this graph: {path} {why}; plan again")


def _other_peak(plan: Plan, path: str, said: int, here: int) -> StalePlan:
    return StalePlan(
        f"the plan of {plan.model} was made for {path} {said} ({format_bytes(said)}), but here it comes to {here} "
        f"({format_bytes(here)}): kernels take other workspace on another machine or number of threads; plan again here"
    )
