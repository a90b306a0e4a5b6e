"""Operators whose result shares memory with an operand though their schema does not say so.

`einsum("ij->ji")` gives a view of its operand, `unsafe_chunk` gives views. torch records them as operators that make
something new, so what is later written into the result would not reach the operand, and the other way round. Where a
graph writes, they are replaced by what eager torch runs: views that say so, or the operand itself.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import make_fx

from sicompiler.capture.contexts import graphs
from sicompiler.capture.reasons import source_line
from sicompiler.capture.symbols import depends_on_data, is_symbolic
from sicompiler.errors import CaptureError

aten = torch.ops.aten
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
# The same views under the name that says so.
_SAFE: dict[OpOverload, OpOverload] = {
    aten.unsafe_chunk.default: aten.chunk.default,
    aten.unsafe_split.Tensor: aten.split.Tensor,
    aten.unsafe_split_with_sizes.default: aten.split_with_sizes.default,
}


def spell_out_aliases(graph_module: fx.GraphModule, name: str) -> None:
    """Replace operators that share memory with an operand unsaid, in a graph that writes, by operators that say so.

    Before: `z = einsum("ij->ji", [y]); add_(z, 1)`, after: `z = permute(y, [1, 0]); add_(z, 1)`.

    Args:
        graph_module: traced; its nodes hold fake tensors. Changed in place.
        name: of the model.

    Raises:
        CaptureError: an operator that writes into a list of tensors reads the same memory at another place.
    """
    every = list(graphs(graph_module))
    # memory is not followed from one graph into another: where any of several writes, all operators are looked at
    across = len(every) > 1 and any(_writes(node) for graph in every for node in graph.nodes)
    for graph in every:
        written = {memory for node in graph.nodes for memory in _written(node)}
        left = [node for node in graph.nodes if _may_share(node)]
        known = -1
        while len(written) != known:  # what shares memory carries a write on to others
            known = len(written)
            for node in [node for node in left if across or not written.isdisjoint(_around(node))]:
                made = _as_eager_runs(node)
                left.remove(node)
                if made is not None:
                    written |= set(_around(node))
                    _replace(node, made)
        for node in graph.nodes:
            _check_list(node, name)


def _memories(value: Any) -> Iterator[int]:
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, FakeTensor) and leaf.layout is torch.strided:  # inside of `torch.vmap` there are others
            yield leaf.untyped_storage()._cdata


def _memories_of(operands: Any) -> Iterator[int]:
    for each in pytree.tree_leaves(operands):
        if isinstance(each, fx.Node):
            yield from _memories(each.meta.get("val"))


def _around(node: fx.Node) -> Iterator[int]:
    yield from _memories(node.meta.get("val"))
    yield from _memories_of(node.all_input_nodes)


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _written(node: fx.Node) -> Iterator[int]:
    """The memory that a node writes into."""
    if not _writes(node):
        return
    assert isinstance(node.target, OpOverload)
    for position, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            operand = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            yield from _memories_of(operand)


def _may_share(node: fx.Node) -> bool:
    """Whether a node runs an operator made of others that says nothing of memory it shares."""
    target = node.target
    if not isinstance(target, OpOverload) or target._schema.is_mutable or is_symbolic(node) or depends_on_data(target):
        return False
    if any(result.alias_info is not None for result in target._schema.returns):
        return False
    return target in _SAFE or (_has_kernel(target, "CompositeImplicitAutograd") and not _has_own_kernel(node))


def _has_own_kernel(node: fx.Node) -> bool:
    """Whether the device that a node runs on has a kernel of its own, which eager torch takes instead."""
    devices = {leaf.device.type for leaf in pytree.tree_leaves(node.meta.get("val")) if isinstance(leaf, torch.Tensor)}
    return any(_has_kernel(node.target, device.upper()) for device in devices)


def _has_kernel(target: Any, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), key)


def _as_eager_runs(node: fx.Node) -> fx.GraphModule | None:
    """What eager torch runs for a node, as a graph of its tensors; None where the result lies in memory of its own."""
    target = node.target
    assert isinstance(target, OpOverload)
    safe = _SAFE.get(target)

    def run(*args: Any, **kwargs: Any) -> Any:
        # the kernel itself: torch's stand-in for it may copy
        return safe(*args, **kwargs) if safe is not None else target._op_dk(_COMPOSITE, *args, **kwargs)

    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda operand: operand.meta["val"])
    operands = node.all_input_nodes
    values = [operand.meta["val"] for operand in operands]
    if not all(isinstance(value, FakeTensor) for value in values):
        return None
    mode = values[0].fake_mode
    with mode, mode.shape_env.ignore_fresh_unbacked_symbols() if mode.shape_env else contextlib.nullcontext():
        try:
            result = run(*args, **kwargs)
        except Exception:  # a kernel that asks for values, which shares nothing
            return None
        if set(_memories(result)).isdisjoint(_memories(values)):
            return None
        return make_fx(_of_tensors(run, node, operands))(*values)


def _of_tensors(run: Callable[..., Any], node: fx.Node, operands: list[fx.Node]) -> Callable[..., Any]:
    """The call of a node as a function of its tensors alone."""

    def call(*tensors: torch.Tensor) -> Any:
        of = dict(zip(operands, tensors, strict=True))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), of.__getitem__)
        return run(*args, **kwargs)

    return call


def _replace(node: fx.Node, made: fx.GraphModule) -> None:
    graph = node.graph
    inputs = made.graph.find_nodes(op="placeholder")
    copies: dict[fx.Node, Any] = dict(zip(inputs, node.all_input_nodes, strict=True))
    with graph.inserting_before(node):
        for each in made.graph.nodes:
            if each.op not in ("placeholder", "output"):
                copies[each] = copy = graph.node_copy(each, copies.__getitem__)
                copy.meta.update(
                    {key: node.meta[key] for key in ("nn_module_stack", "stack_trace") if key in node.meta}
                )
    (output,) = made.graph.find_nodes(op="output")
    result = fx.node.map_arg(output.args[0], copies.__getitem__)
    if isinstance(result, fx.Node):
        node.replace_all_uses_with(result)
    else:
        for user in list(node.users):  # a list of tensors, read one by one
            user.replace_all_uses_with(result[user.args[1]])
            graph.erase_node(user)
    graph.erase_node(node)


def _check_list(node: fx.Node, name: str) -> None:
    """Refuse lists with two tensors of one storage: eager torch writes one after the other, and may read in between."""
    if not str(node.target).startswith("aten._foreach_"):
        return
    read = collections.Counter(_memories_of((node.args, node.kwargs)))
    if any(read[memory] > 1 for memory in _written(node)):
        raise CaptureError(
            f"{name} can't be captured: {node.target} gets two tensors of one storage, and writes into one of them\n"
            f"  at {source_line(node)}\n  write into them one by one"
        )
