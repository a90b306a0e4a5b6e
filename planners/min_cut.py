"""Cuts: where a graph can be entered again, so that what lies before need not run. Minimum-byte vertex cuts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np
import torch
from torch import fx

from sicompiler.facts.storages import GraphFacts

BEGINS = (0.0, 0.02, 0.06, 0.12, 0.25)
"""Shares of the time after which the part to skip may begin: what lies before stays live, and so do its readers."""

ENDS = (0.3, 0.5, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 1.0)
"""Shares of the time after which it may end."""

HEAVY = 0.002
"""An operator is part of what is skipped if it takes this share of the time; smaller ones go where the cut is cheap, so
that the embedding of the timestep, which is tiny and changes with every step, stays live."""

ALIKE = 0.04
"""Cuts whose shares of the time left differ by less are alike."""


@dataclass(frozen=True)
class FeatureCut:
    """One place to enter a graph again.

    Attributes:
        positions: of the nodes whose values are kept.
        nbytes: of these values together.
        seconds: predicted time of what still runs.
        share: of the whole graph's time.
    """

    positions: tuple[int, ...]
    nbytes: int
    seconds: float
    share: float


def candidate_cuts(facts: GraphFacts, seconds: Sequence[float], most: float = 0.5) -> tuple[FeatureCut, ...]:
    """The cuts of fewest bytes, least time left first.

    For each pair of a begin and an end, the heavy operators between them, in schedule order, are the part to skip, and
    those behind it stay live, as do those before it. The values of least bytes through which all ways from the part to
    what stays live behind it lead are found by maximum flow (vertices split in two, capacities in bytes). Without that
    second set every cut would be the output itself: latents are small.

    Args:
        facts: of the graph.
        seconds: predicted time of each node.
        most: share of the time that may be left at most.

    Returns:
        None at all where nothing can be skipped: then every way leads through what can't be kept.
    """
    times = np.asarray(seconds, dtype=float)
    total = float(times.sum())
    if total <= 0:
        return ()
    done = np.cumsum(times) / total
    heavy = [p for p in range(facts.num_placeholders, len(facts.nodes)) if times[p] >= HEAVY * total]
    found: dict[tuple[int, ...], FeatureCut] = {}
    seen: set[tuple[int, int]] = set()
    for begin in BEGINS:
        for end in ENDS:
            part = [p for p in heavy if begin <= done[p] - times[p] / total and done[p] <= end + 1e-9]
            if not part or (part[0], part[-1]) in seen:
                continue
            seen.add((part[0], part[-1]))
            positions = _minimum_cut(facts, part, [p for p in heavy if p > part[-1]])
            if positions and positions not in found:
                left = _time_left(facts, positions, times)
                nbytes = sum(facts.tensors[p][0].nbytes for p in positions)
                found[positions] = FeatureCut(positions, nbytes, left, left / total)
    return _distinct([cut for cut in found.values() if cut.share <= most])


def _distinct(cuts: Sequence[FeatureCut]) -> tuple[FeatureCut, ...]:
    """The cut of fewest bytes among those that leave about the same time. What leaves more may give smaller errors."""
    best: list[FeatureCut] = []
    for cut in sorted(cuts, key=lambda c: (c.nbytes, c.share)):
        if all(abs(cut.share - other.share) >= ALIKE for other in best):
            best.append(cut)
    return tuple(sorted(best, key=lambda c: c.share))


def _minimum_cut(facts: GraphFacts, part: Sequence[int], live: Sequence[int]) -> tuple[int, ...]:
    """The values of least bytes that part the outputs, and what stays live, from a part; empty if nothing does."""
    graph, reached = _flow_network(facts, part, live)
    if "outputs" not in graph or "part" not in graph:
        return ()
    try:
        residual = nx.algorithms.flow.boykov_kolmogorov(graph, "part", "outputs")
    except nx.NetworkXUnbounded:
        return ()
    open_edges = nx.subgraph_view(
        residual, filter_edge=lambda a, b: residual[a][b]["flow"] < residual[a][b]["capacity"]
    )
    before = {"part", *nx.descendants(open_edges, "part")}  # the earliest of all minimum cuts: most stays live
    return tuple(sorted(p for p in reached if (p, 0) in before and (p, 1) not in before))


def _flow_network(facts: GraphFacts, part: Sequence[int], live: Sequence[int]) -> tuple[nx.DiGraph, set[int]]:
    """What a part reaches, as a network from "part" to "outputs", with the positions that are in it.

    A position is an edge from (position, 0) to (position, 1), whose capacity is the bytes of its value; it has none
    where the value can't be kept.
    """
    inside = set(part)
    graph = nx.DiGraph()
    reached: set[int] = set()
    for p in range(facts.num_placeholders, len(facts.nodes)):
        sources = [facts.position[n] for n in facts.nodes[p].all_input_nodes]
        if p not in inside and not any(q in reached for q in sources):
            continue
        reached.add(p)
        if p in inside:
            graph.add_edge("part", (p, 0))
        for q in sources:
            if q in reached:
                graph.add_edge((q, 1), (p, 0))
        if _can_be_kept(facts, p):
            graph.add_edge((p, 0), (p, 1), capacity=facts.tensors[p][0].nbytes)
        else:
            graph.add_edge((p, 0), (p, 1))
    for p in live:
        if p in reached:
            graph.add_edge((p, 0), "outputs")
    for node in facts.outputs:
        if facts.position[node] in reached:
            graph.add_edge((facts.position[node], 1), "outputs")
    return graph, reached


def _can_be_kept(facts: GraphFacts, position: int) -> bool:
    """Whether a value can be kept from one run to the next: one dense floating-point tensor with memory of its own."""
    node, tensors = facts.nodes[position], facts.tensors[position]
    value = node.meta.get("val")
    if node.op != "call_function" or not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return False
    return tensors[0].is_dense and facts.storages[tensors[0].storage].node == node.name


def _time_left(facts: GraphFacts, positions: Sequence[int], times: np.ndarray) -> float:
    stop, found = set(positions), set[fx.Node]()
    waiting = [node for node in facts.outputs if facts.position[node] not in stop]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(n for n in node.all_input_nodes if facts.position[n] not in stop)
    return float(sum(times[facts.position[node]] for node in found))
