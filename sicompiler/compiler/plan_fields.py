"""What a plan says of a choice that was made: its regions, and what it offloads."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from sicompiler.compiler.basis import region_digest
from sicompiler.compiler.offload import OffloadAssignment
from sicompiler.compiler.restore import region_of
from sicompiler.compiler.search import Search
from sicompiler.device import HostMemory, device_kind
from sicompiler.facts.modules import common_module
from sicompiler.facts.storages import GraphFacts, Origin
from sicompiler.ops.mapped import pinned_bytes
from sicompiler.plan import RegionPlan
from sicompiler.planners.dp import Choice
from sicompiler.regions.view import GraphView


def offload_fields(search: Search, assignment: OffloadAssignment) -> dict[str, Any]:
    """What a plan says of values and weights that are offloaded."""
    facts = search.graph.facts
    maker = {storage: p for p, made in enumerate(search.graph.view.made) for storage in made}
    bindings = search.graph.program.bindings
    positions = sorted(maker[s] for s in assignment.offloaded)
    return {
        "spilled": tuple(p for p in positions if p >= facts.num_placeholders),
        "streamed": tuple(bindings[p].name for p in positions if p < facts.num_placeholders),
        "prefetched": assignment.prefetched,
        "streamed_bytes": assignment.streamed_bytes,
        "moved_bytes": assignment.moved_bytes * search.repeats,
        "host_bytes": host_bytes(facts, assignment.offloaded),
    }


def host_bytes(facts: GraphFacts, offloaded: Collection[int]) -> int:
    """Host memory that storages take while they are offloaded, as its allocator rounds it.

    Pinned blocks are kept for the next run, so values that are spilled at different times count each.

    Args:
        facts: of the graph.
        offloaded: storages.
    """
    kind = device_kind(facts.device_type)
    storages = [facts.storages[index] for index in offloaded]
    if kind.host_memory is not HostMemory.PINNED:
        return sum(storage.nbytes for storage in storages)
    in_place = kind.registers_host
    return sum(
        storage.nbytes if in_place and storage.origin is Origin.WEIGHT else pinned_bytes(storage.nbytes)
        for storage in storages
    )


def region_plan(search: Search, choice: Choice, view: GraphView | None) -> RegionPlan:
    """One region of a plan; with the digest of what it is on a graph, if there is one to carry it out on."""
    candidate, nodes = choice.candidate, search.graph.facts.nodes
    found = RegionPlan(
        start=candidate.start,
        stop=candidate.stop,
        seed=candidate.seed,
        axis=search.graph.axes.of(candidate.start, candidate.seed),
        size=candidate.seed.size,
        slice_length=choice.slice_length,
        operators=sum(search.graph.facts.makes_storage(p) for p in range(candidate.start, candidate.stop)),
        first=nodes[candidate.start].name,
        last=nodes[candidate.stop - 1].name,
        module=common_module(nodes[candidate.start : candidate.stop]),
        peak_bytes=choice.peak_bytes,
        seconds=choice.seconds,
    )
    return found if view is None else replace(found, digest=region_digest(region_of(view, found)))
