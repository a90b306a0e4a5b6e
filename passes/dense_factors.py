"""Dense factors: what a matrix product reads expanded is made real first, where the kernel would expand the weight."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import fx

from sicompiler.capture import Program
from sicompiler.passes.edit import inherit, insert_call

aten = torch.ops.aten

_PRODUCTS = (aten.linear.default, aten.matmul.default)


def dense_factors(program: Program) -> None:
    """Copy an expanded factor of a product with one matrix.

    Before: `y = linear(expand(x, [1792, 1, 1024]), w)`
    After:  `d = clone(expand(x, [1792, 1, 1024])); y = linear(d, w)`
    Exact up to rounding: the same product, as one of 1792 rows. Left as it is, `at::matmul` (`should_fold` in
    aten/src/ATen/native/LinearAlgebra.cpp) makes it a batch of 1792 products with an expanded `w`, which is slow, and
    in half dtypes on the CPU copies `w` 1792 times. The copy made here is a value like others, counted and sliced.
    Such factors appear where a context that all tokens share is repeated for one sample only. Refuses factors without
    an expanded dim, and products of two batches.
    """
    graph = program.graph_module.graph
    for target in _PRODUCTS:
        for node in graph.find_nodes(op="call_function", target=target):
            factor, matrix = node.args[0], node.args[1]
            if matrix.meta["val"].dim() == 2 and _is_expanded_batch(factor):
                with graph.inserting_before(node):
                    like = {"memory_format": torch.contiguous_format}
                    dense = insert_call(graph, program.fake_mode, aten.clone.default, (factor,), like)
                node.replace_input_with(factor, inherit(dense, node))


def _is_expanded_batch(factor: fx.Node) -> bool:
    """Whether the rows of a factor can't be seen as one matrix, because a dim of them is expanded."""
    value = factor.meta["val"]
    rows = list(zip(value.shape, value.stride(), strict=True))[:-1]
    expanded = any(size > 1 and stride == 0 for size, stride in rows)
    return expanded and any(outer != stride * size for (_, outer), (size, stride) in pairwise(rows))
