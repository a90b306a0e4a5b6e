"""Clean: drop what costs time or memory and changes nothing."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

import torch
from torch import fx

from sicompiler.capture import Program
from sicompiler.facts.storages import fake_tensors
from sicompiler.passes.edit import Replacements, inherit, insert_call

aten = torch.ops.aten

_ASSERTIONS = frozenset({aten._assert_tensor_metadata.default})
_UNIT_RIGHT = frozenset({aten.div.Tensor, aten.mul.Tensor})  # x / 1 and x * 1 are x, bit for bit, nan and -0 included


def _same_tensor(node: fx.Node, source: object) -> bool:
    """Whether a node gives its operand back: same memory, shape, stride and dtype.

    A list of one tensor, such as a split into one part gives, is not that tensor: its readers pick from a list.
    """
    if not isinstance(source, fx.Node):
        return False
    a, b = node.meta.get("val"), source.meta.get("val")
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return False
    return (
        a.untyped_storage()._cdata == b.untyped_storage()._cdata
        and a.shape == b.shape
        and a.stride() == b.stride()
        and a.dtype == b.dtype
        and a.storage_offset() == b.storage_offset()
    )


def _same_layout(node: fx.Node, source: object) -> bool:
    """Whether a node has the dtype, shape and strides of its operand."""
    if not isinstance(source, fx.Node):
        return False
    ours, theirs = fake_tensors(node), fake_tensors(source)
    return len(ours) == len(theirs) == 1 and all(
        (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride()) for a, b in zip(ours, theirs, strict=True)
    )


def _is_off(dropout: fx.Node) -> bool:
    return dropout.args[2] is False or bool(dropout.args[1] == 0)


def _is_identity(node: fx.Node) -> bool:
    """Whether a node computes a copy of its operand, bit for bit."""
    if node.target is aten.dropout.default and _is_off(node):
        return _same_layout(node, node.args[0])
    if (
        node.target in _UNIT_RIGHT
        and isinstance(node.args[1], (int, float))
        and math.isclose(node.args[1], 1.0, rel_tol=0)
    ):
        return _same_layout(node, node.args[0])
    return False


def drop_noops(program: Program) -> None:
    """Remove operators that give their operand back.

    Before: `d = dropout(x, 0.1, False); y = contiguous(d)`, after: uses of `y` read `x`.
    Exact because the value is the same tensor, or (dropout in eval mode, division by one) equal bit for bit.
    Views of what is removed become views of its operand. Refuses what is not provably the same; a dropout with other
    strides than its operand, as torch.export traces it, becomes a `clone` with those strides.
    """
    graph = program.graph_module.graph
    for node in [n for target in _ASSERTIONS for n in graph.find_nodes(op="call_function", target=target)]:
        graph.erase_node(node)
    _drop(program, _is_identity)
    for node in graph.find_nodes(op="call_function", target=aten.dropout.default):
        if _is_off(node):
            node.target, node.args = aten.clone.default, node.args[:1]
    _drop(program, lambda node: node.target is not operator.getitem and _same_tensor(node, node.args[0]))


def name_dtypes(program: Program) -> None:
    """Write down the dtype that an operator takes from another tensor.

    Before: `y = type_as(x, other)`, after: `y = to(x, torch.float16)`.
    Exact because it is the same conversion; and `other`, which lends its dtype only, need not be there, nor be sliced
    like `x`. Refuses conversions to another device.
    """
    for target in (aten.type_as.default, aten.to.other):
        for node in program.graph_module.graph.find_nodes(op="call_function", target=target):
            source, value = node.args[0], node.meta["val"]
            if isinstance(source, fx.Node) and source.meta["val"].device == value.device and len(node.args) == 2:
                node.target, node.args = aten.to.dtype, (source, value.dtype)


_SHAPED_LIKE = {
    aten.expand_as.default: aten.expand.default,
    aten.reshape_as.default: aten.reshape.default,
    aten.view_as.default: aten.view.default,
}


def name_shapes(program: Program) -> None:
    """Write down the shape that a view takes from another tensor.

    Before: `y = expand_as(x, other)`, after: `y = expand(x, [2, 8, 64, 64])`.
    Exact because it is the same view; and `other`, which lends its shape only, need not be there. Refuses shapes that
    are not numbers.
    """
    for target, named in _SHAPED_LIKE.items():
        for node in program.graph_module.graph.find_nodes(op="call_function", target=target):
            shape = list(node.meta["val"].shape)
            if all(isinstance(size, int) for size in shape) and len(node.args) == 2:
                node.target, node.args = named, (node.args[0], shape)


def forward_copies(program: Program) -> None:
    """Let the readers of a functional `copy` read what was copied.

    Before: `c = copy(slice, y); z = slice_scatter(x, c, ...)`, after: `z = slice_scatter(x, y, ...)`.
    Exact because `copy` overwrites all of its first operand: the result is `y`, expanded to that shape and cast to
    that dtype. The kernel would clone the whole memory behind its first operand. Refuses copies from one device to
    another, and what the model returns, which has to be memory of its own.
    """
    graph = program.graph_module.graph
    replacements = Replacements(graph, program.fake_mode)
    for node in graph.find_nodes(op="call_function", target=aten.copy.default):
        value, source = node.meta["val"], node.args[1]
        if source.meta["val"].device != value.device or any(user.op == "output" for user in node.users):
            continue
        with graph.inserting_before(node):
            if source.meta["val"].dtype != value.dtype:
                source = insert_call(graph, program.fake_mode, aten._to_copy.default, (source,), {"dtype": value.dtype})
                inherit(source, node)
            if source.meta["val"].shape != value.shape:
                source = insert_call(graph, program.fake_mode, aten.expand.default, (source, list(value.shape)))
                inherit(source, node)
        replacements.replace(node, source)
    replacements.finish()


def _drop(program: Program, unneeded: Callable[[fx.Node], bool]) -> None:
    graph = program.graph_module.graph
    replacements = Replacements(graph, program.fake_mode)
    for node in list(graph.nodes):
        if node.op == "call_function" and node.args and unneeded(node):
            source = node.args[0]
            assert isinstance(source, fx.Node)
            replacements.replace(node, source)
    replacements.finish()


def drop_dead_code(program: Program) -> None:
    """Remove operators whose results nobody reads.

    Before: `t = add(a, b)` without readers, after: nothing. Exact because captured operators have no side effects.
    """
    graph = program.graph_module.graph
    for node in reversed(graph.nodes):
        if not node.users and not node.is_impure():  # asked last: it takes long
            graph.erase_node(node)
