"""Fuse: statistics and application of a group norm that no loop has parted are one operator again."""

from __future__ import annotations

import torch
from torch import fx
from torch._prims_common import suggest_memory_format

from sicompiler.capture import Program
from sicompiler.passes.edit import Replacements, inherit, insert_call

aten = torch.ops.aten
ops = torch.ops.sicompiler


def fuse_groupnorm(program: Program) -> None:
    """Put group norms together again, in the graph and in the bodies of its loops.

    Before: `s = group_stats(x, groups); y = group_apply(x, s, w, b, eps)`
    After:  `y = group_norm(x, groups, w, b, eps)`
    Exact: it is the operator the model called. Refuses a strided `x`, which the fused kernel would copy whole, where
    the two passes need no copy, and results that have to be row-major where their operand is not.
    """
    _fuse(program, program.graph_module)


def _is_taken_as_it_is(x: torch.Tensor) -> bool:
    """Whether the fused kernel reads `x` without a copy: row-major, on the CPU channels-last too.

    Of one sample alone the strides don't always tell, and the result of the fused kernel would be row-major.
    """
    if x.device.type == "cpu" and x.shape[0] > 1:
        return x.is_contiguous(memory_format=suggest_memory_format(x))
    return x.is_contiguous()


def _fuse(program: Program, module: fx.GraphModule) -> None:
    graph = module.graph
    replacements = Replacements(graph, program.fake_mode)
    for node in graph.find_nodes(op="call_function", target=ops.group_apply.default):
        x, stats, *rest = node.args
        if (
            stats.target is ops.group_stats.default
            and not node.kwargs
            and stats.args[0] is x
            and len(stats.users) == 1
            and _is_taken_as_it_is(x.meta["val"])
        ):
            with graph.inserting_before(node):
                args = (x, stats.args[1], *rest)
                fused = insert_call(graph, program.fake_mode, aten.group_norm.default, args)
            replacements.replace(node, inherit(fused, node))
            graph.erase_node(stats)
    replacements.finish()
    for child in module.children():
        if isinstance(child, fx.GraphModule):
            _fuse(program, child)
