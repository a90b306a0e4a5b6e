"""Schedule: an order of the operators that lowers the peak without slicing anything."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from sicompiler.capture import Program
from sicompiler.facts.lifetimes import Lifetimes, lifetimes
from sicompiler.facts.storages import GraphFacts, graph_facts
from sicompiler.facts.timeline import timeline
from sicompiler.facts.workspace.kernels import node_workspaces


def _peak_and_area(facts: GraphFacts, lives: Lifetimes, workspaces: npt.NDArray[np.int64]) -> tuple[int, int]:
    line = timeline(facts, lives, workspaces)
    return line.peak_bytes, int(line.live_bytes.sum())


def sink_to_first_use(program: Program) -> None:
    """Move operators down to just before their first reader, where that lowers live bytes.

    Before: `c = conv(x); ... (nothing reads c) ...; y = add(h, c)`, after: `...; c = conv(x); y = add(h, c)`.
    An operator sinks only if its result is bigger than what its operands keep alive longer. Exact because the
    operators are pure and every one still runs after its operands. Undone as a whole if the peak would rise.
    """
    graph = program.graph_module.graph
    order = list(graph.nodes)
    facts = graph_facts(program)
    lives = lifetimes(facts)
    if not _sink(facts, lives):
        return
    workspaces = node_workspaces(facts)
    placed = [facts.position[node] for node in graph.nodes if node in facts.position]
    places = sorted(placed, key=lambda p: p >= facts.num_placeholders)
    moved = replace(
        facts, nodes=tuple(facts.nodes[p] for p in places), tensors=tuple(facts.tensors[p] for p in places)
    )  # what every operator reads, makes and takes is what it was
    after = _peak_and_area(moved, lifetimes(moved), workspaces[places])
    if after > _peak_and_area(facts, lives, workspaces):
        anchor = order[0]
        for node in order[1:]:
            anchor.append(node)
            anchor = node


def _sink(facts: GraphFacts, lives: Lifetimes) -> bool:
    """Move operators of a graph; gives whether one was moved."""
    position, moved = facts.position, False
    storages: list[tuple[int, ...]] = [tuple({t.storage for t in tensors}) for tensors in facts.tensors]
    for p in range(len(facts.nodes) - 1, facts.num_placeholders - 1, -1):
        node = facts.nodes[p]
        if not node.users:
            continue
        first = min(node.users)  # torch.fx keeps nodes comparable by their place, moved ones too
        if first is node.next:
            continue
        until = position.get(first, len(facts.nodes))
        kept = {
            storage
            for source in node.all_input_nodes
            for storage in storages[position[source]]
            if lives.first[storage] >= 0 and lives.last[storage] < until
        }
        made = {storage for storage in storages[p] if storage not in kept}
        if _nbytes(facts, kept) <= _nbytes(facts, made):
            first.prepend(node)
            moved = True
    return moved


def _nbytes(facts: GraphFacts, storages: set[int]) -> int:
    return sum(facts.storages[s].nbytes for s in storages)
