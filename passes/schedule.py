"""Schedule: an order of the operators that lowers the peak without slicing anything."""

from __future__ import annotations

from sicompiler.capture import Program
from sicompiler.facts.kernels import node_workspaces
from sicompiler.facts.lifetimes import lifetimes
from sicompiler.facts.storages import graph_facts
from sicompiler.facts.timeline import timeline


def _peak_and_area(program: Program) -> tuple[int, int]:
    facts = graph_facts(program)
    line = timeline(facts, lifetimes(facts), node_workspaces(facts))
    return line.peak_bytes, int(line.live_bytes.sum())


def sink_to_first_use(program: Program) -> None:
    """Move operators down to just before their first reader, where that lowers live bytes.

    Before: `c = conv(x); ... (nothing reads c) ...; y = add(h, c)`, after: `...; c = conv(x); y = add(h, c)`.
    An operator sinks only if its result is bigger than what its operands keep alive longer. Exact because the
    operators are pure and every one still runs after its operands. Undone as a whole if the peak would rise.
    """
    graph = program.graph_module.graph
    order = list(graph.nodes)
    before = _peak_and_area(program)
    _sink(program)
    if _peak_and_area(program) > before:
        anchor = order[0]
        for node in order[1:]:
            anchor.append(node)
            anchor = node


def _sink(program: Program) -> None:
    facts = graph_facts(program)
    lives = lifetimes(facts)
    position = facts.position
    for p in range(len(facts.nodes) - 1, facts.num_placeholders - 1, -1):
        node = facts.nodes[p]
        if not node.users:
            continue
        first = min(node.users)  # torch.fx keeps nodes comparable by their place, moved ones too
        if first is node.next:
            continue
        kept = {
            t.storage
            for source in node.all_input_nodes
            for t in facts.tensors[position[source]]
            if lives.first[t.storage] >= 0 and lives.last[t.storage] < position.get(first, len(facts.nodes))
        }
        made = {t.storage for t in facts.tensors[p]} - kept
        if sum(facts.storages[s].nbytes for s in kept) <= sum(facts.storages[s].nbytes for s in made):
            first.prepend(node)
