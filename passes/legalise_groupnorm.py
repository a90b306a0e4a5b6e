"""Legalise GroupNorm: statistics and their application become two operators, so that a region may end between them."""

from __future__ import annotations

import torch

from sicompiler.capture import Program
from sicompiler.facts.calls import bind
from sicompiler.passes.edit import Replacements, inherit, insert_call

aten = torch.ops.aten
ops = torch.ops.sicompiler


def split_groupnorm(program: Program) -> None:
    """Split every group norm into its two passes.

    Before: `y = group_norm(x, groups, w, b, eps)`
    After:  `s = group_stats(x, groups); y = group_apply(x, s, w, b, eps)`
    Exact up to rounding: count, mean and sum of squared deviations are what a group norm computes inside. Pairs that
    the plan does not part are put together again by `fuse_groupnorm`.
    """
    graph = program.graph_module.graph
    replacements = Replacements(graph, program.fake_mode)
    for node in graph.find_nodes(op="call_function", target=aten.group_norm.default):
        x, groups, weight, bias, eps = list(bind(aten.group_norm.default, node.args, node.kwargs).values())[:5]
        with graph.inserting_before(node):
            stats = inherit(insert_call(graph, program.fake_mode, ops.group_stats.default, (x, groups)), node)
            apply = insert_call(graph, program.fake_mode, ops.group_apply.default, (x, stats, weight, bias, eps))
        replacements.replace(node, inherit(apply, node))
    replacements.finish()
