"""Cuts: where a graph can be entered again, so that what lies before need not run. Minimum-byte vertex cuts."""

from __future__ import annotations

from collections.abc import Sequence, Set
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
    graph, between = _flow_network(facts, part, live)
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
    return tuple(sorted(p for p in between if (p, 0) in before and (p, 1) not in before))


def _flow_network(facts: GraphFacts, part: Sequence[int], live: Sequence[int]) -> tuple[nx.DiGraph, list[int]]:
    """The ways from a part to what stays live, as a network from "part" to "outputs", with the positions on them.

    A position is an edge from (position, 0) to (position, 1), whose capacity is the bytes of its value; it has none
    where the value can't be kept.
    """
    inside, behind = set(part), set(live)
    between = _between(facts, inside, behind)
    graph = nx.DiGraph()
    for p in between:
        if p in inside:
            graph.add_edge("part", (p, 0))
        else:
            graph.add_edges_from(((q, 1), (p, 0)) for q in _sources(facts, p) if q in between and q not in behind)
        if p in behind:
            graph.add_edge((p, 0), "outputs")
        elif _can_be_kept(facts, p):
            graph.add_edge((p, 0), (p, 1), capacity=facts.tensors[p][0].nbytes)
        else:
            graph.add_edge((p, 0), (p, 1))
    for node in facts.outputs:
        if facts.position[node] in between and facts.position[node] not in behind:
            graph.add_edge((facts.position[node], 1), "outputs")
    return graph, list(between)


def _between(facts: GraphFacts, inside: Set[int], behind: Set[int]) -> dict[int, None]:
    """Positions on the ways from a part to what stays live or to the outputs, with the ends of these ways, in order.

    What lies behind something that stays live can't part anything from it, and what only the part itself reads needn't
    be kept: neither is on a way, so that few of all positions are.
    """
    reached: dict[int, None] = {}
    for p in range(facts.num_placeholders, len(facts.nodes)):
        if p in inside or any(q in reached and q not in behind for q in _sources(facts, p)):
            reached[p] = None
    outputs = {facts.position[node] for node in facts.outputs}
    leading = set[int]()
    for p in reversed(reached):
        readers = (facts.position[node] for node in facts.nodes[p].users if node in facts.position)
        if p in outputs or p in behind or any(q in leading and q not in inside for q in readers):
            leading.add(p)
    return {p: None for p in reached if p in leading}


def _sources(facts: GraphFacts, position: int) -> list[int]:
    """Positions whose values an operator reads."""
    return [facts.position[node] for node in facts.nodes[position].all_input_nodes]


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
