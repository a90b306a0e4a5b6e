"""Lifetimes: a storage lives from its producer to the last reader of any of its views."""

from __future__ import annotations

from dataclasses import dataclass

from sicompiler.facts.storages import GraphFacts, Origin


@dataclass(frozen=True)
class Lifetimes:
    """When each storage is alive, in positions of the schedule.

    Attributes:
        first: position of the producer, per storage; -1 for what exists before the run.
        last: position of the last reader, per storage; `len(nodes)` for what outlives the run.
        readers: for each node, the positions that read one of its values.
    """

    first: tuple[int, ...]
    last: tuple[int, ...]
    readers: tuple[tuple[int, ...], ...]


def lifetimes(facts: GraphFacts) -> Lifetimes:
    """Compute the lifetime of every storage of a graph."""
    end = len(facts.nodes)
    first = [end] * len(facts.storages)
    last = [-1] * len(facts.storages)
    readers: list[list[int]] = [[] for _ in facts.nodes]
    position = facts.position
    for p, node in enumerate(facts.nodes):
        for tensor in facts.tensors[p]:
            first[tensor.storage] = min(first[tensor.storage], p)
            last[tensor.storage] = max(last[tensor.storage], p)
        for source in node.all_input_nodes:
            q = position[source]
            readers[q].append(p)
            for tensor in facts.tensors[q]:
                last[tensor.storage] = max(last[tensor.storage], p)
    for storage in facts.storages:
        if storage.origin is not Origin.VALUE:  # held by the model or by the caller
            first[storage.index] = -1
            if storage.index not in facts.released:
                last[storage.index] = end
    for node in facts.outputs:
        for tensor in facts.tensors[position[node]]:
            last[tensor.storage] = end
    return Lifetimes(tuple(first), tuple(last), tuple(map(tuple, readers)))
