"""Rematerialization around normalizations: a large value kept only until its statistics are known is computed twice."""

from __future__ import annotations

from torch import fx

from sicompiler.capture import Program
from sicompiler.facts.calls import takes_statistics
from sicompiler.facts.storages import fake_tensors
from sicompiler.passes.edit import evaluate, inherit
from sicompiler.passes.layouts import real_layouts

SMALLER = 3  # how many times smaller what a value is rematerialized from has to be
CHAIN = 16  # operators at most


def rematerialize(program: Program, least_bytes: int) -> bool:
    """Let what reads a large value after its statistics read a copy, rematerialized from the start of its chain.

    Before: `x = conv(upsample(u)); s = group_stats(x); y = group_apply(x, s)`
    After:  `x = conv(upsample(u)); s = group_stats(x); x_ = conv(upsample(u)); y = group_apply(x_, s)`
    Exact because the same operators run on the same operands, and give the same bits. Between its statistics and its
    other readers `x` would have to be whole; this way no loop writes it. Refuses values smaller than `least_bytes`, and
    those that are not made from much smaller ones in a few operators without statistics of their own.

    Args:
        program: a legal graph; changed.
        least_bytes: the smallest value worth it.

    Returns:
        Whether anything changed.
    """
    graph = program.graph_module.graph
    order = {node: number for number, node in enumerate(graph.nodes)}
    barriers = [node for node in order if takes_statistics(node)]
    changed = False
    for barrier in barriers:
        value = barrier.args[0]
        assert isinstance(value, fx.Node)
        later = sorted((user for user in value.users if order[user] > order[barrier]), key=lambda user: order[user])
        if not later or _nbytes(value) < least_bytes or any(user.op != "call_function" for user in later):
            continue
        chain = _chain(value, order)
        if not chain:
            continue
        copy, made = value, barrier
        for reader in later:
            if copy is value or any(order[made] < order[other] < order[reader] for other in barriers):
                copy, made = _copied(program, chain, reader), reader
            reader.replace_input_with(value, copy)
        order = {node: number for number, node in enumerate(graph.nodes)}  # the next chain may go through a copy
        changed = True
    if changed:
        real_layouts(program)
    return changed


def _copied(program: Program, chain: list[fx.Node], reader: fx.Node) -> fx.Node:
    """A copy of a chain in front of a reader; its last node."""
    graph = program.graph_module.graph
    copies: dict[fx.Node, fx.Node] = {}
    with graph.inserting_before(reader):
        for node in chain:
            copy = graph.node_copy(node, lambda n: copies.get(n, n))
            copy.meta["val"] = evaluate(copy, program.fake_mode)
            copies[node] = inherit(copy, node)
    return copies[chain[-1]]


def _chain(value: fx.Node, order: dict[fx.Node, int]) -> list[fx.Node]:
    """The operators that make a value from much smaller ones, in order; empty if there are no such few operators."""
    found: set[fx.Node] = set()
    pending = [value]
    while pending:
        node = pending.pop()
        if node in found:
            continue
        if node.op != "call_function" or takes_statistics(node) or len(found) == CHAIN:
            return []
        found.add(node)
        pending += [
            source
            for source in node.all_input_nodes
            if source.op == "call_function" and SMALLER * _nbytes(source) > _nbytes(value)
        ]
    return sorted(found, key=lambda node: order[node])


def _nbytes(node: fx.Node) -> int:
    return sum(tensor.numel() * tensor.dtype.itemsize for tensor in fake_tensors(node))
