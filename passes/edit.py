"""Small tools that passes share: insert a call with its fake value, replace nodes, copy a program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode

from sicompiler.axes.resize import copying_twin
from sicompiler.capture import Program, module_of
from sicompiler.facts.storages import fake_tensors
from sicompiler.facts.strides import view_strides
from sicompiler.passes.fakes import fake_result
from sicompiler.passes.layout_rows import strided


def insert_call(
    graph: fx.Graph,
    mode: FakeTensorMode,
    target: OpOverload,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
) -> fx.Node:
    """Insert an operator call at the graph's insert point, with the fake value it computes in `meta["val"]`."""
    node = graph.call_function(target, args, dict(kwargs or {}))
    node.meta["val"] = evaluate(node, mode)
    return node


def evaluate(node: fx.Node, mode: FakeTensorMode) -> Any:
    """The fake value a call computes."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    assert callable(node.target)
    return fake_result(node.target, args, kwargs, mode)


class Replacements:
    """Replaces nodes of one graph; at the end the fake values of what reads them follow.

    A view of a replaced value must share the storage of the new one, or the memory facts count it as a value of its own
    and a loop may write over what it shows. New strides make views of copies and copies of views.

    Args:
        graph: the graph.
        mode: the fake mode of its values.
    """

    def __init__(self, graph: fx.Graph, mode: FakeTensorMode) -> None:
        self.graph, self.mode = graph, mode
        self._stale: dict[fx.Node, list[torch.Tensor]] = {}  # what readers of a node may still be views of
        self._other: set[fx.Node] = set()  # those of them that lie otherwise than what their readers were made from

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Let the readers of `old` read `new`, and erase `old`."""
        before, other = self._stale.pop(old, []), old in self._other
        old.replace_all_uses_with(new)
        self._note(new, fake_tensors(old), fake_tensors(new))
        if before:
            self._stale.setdefault(new, []).extend(before)
        if other:
            self._other.add(new)
        self.graph.erase_node(old)

    def changed(self, node: fx.Node, value: object) -> None:
        """Give a node that stays another fake value."""
        before = fake_tensors(node)
        node.meta["val"] = value
        self._note(node, before, fake_tensors(node))

    def _note(self, node: fx.Node, before: list[torch.Tensor], after: list[torch.Tensor]) -> None:
        """What readers of a node were made from, and what they read now; nothing where that is the same."""
        alike = list(map(_layout, before)) == list(map(_layout, after))
        if not alike:
            self._other.add(node)
        if not alike or list(map(_storage, before)) != list(map(_storage, after)):
            self._stale.setdefault(node, []).extend(before)

    def finish(self) -> None:
        """Evaluate again what reads a changed value, until nothing changes."""
        for node in self.graph.nodes if self._stale else ():
            self.follow(node)

    def _again(self, node: fx.Node) -> Any:
        """Evaluate a node; a view that the new strides do not allow is the copy that `reshape` made in the model."""
        twin = copying_twin(node.target) if isinstance(node.target, OpOverload) else node.target
        if twin is not node.target:
            source: torch.Tensor = node.args[0].meta["val"]  # type: ignore[union-attr]
            if source.numel() and view_strides(strided(source), node.meta["val"].shape) is None:
                node.target = twin
        return evaluate(node, self.mode)

    def follow(self, node: fx.Node) -> None:
        """Evaluate a node again if it reads a changed value; those before it have been looked at."""
        changed = [source for source in node.all_input_nodes if source in self._stale] if self._stale else ()
        before = fake_tensors(node) if changed else ()
        if not before:
            return
        if self._other.isdisjoint(changed):  # only views of what has lain elsewhere are not what they were
            old = {_storage(t) for source in changed for t in self._stale[source]}
            if all(_storage(t) not in old for t in before):
                return
        after = self._again(node)
        read = [t for source in node.all_input_nodes for t in (*fake_tensors(source), *self._stale.get(source, ()))]
        shared = {_storage(t) for t in read}
        now = [t for t in pytree.tree_leaves(after) if isinstance(t, torch.Tensor)]
        pairs = zip(before, now, strict=True)
        if any(_storage(a) in shared or _storage(b) in shared or a.stride() != b.stride() for a, b in pairs):
            node.meta["val"] = after
            self._note(node, before, now)


def _layout(tensor: torch.Tensor) -> tuple[object, ...]:
    """All that decides how the results of what reads a tensor lie."""
    nbytes = int(tensor.untyped_storage().nbytes())
    return *strided(tensor), tensor.storage_offset(), tensor.dtype, tensor.device, nbytes


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def inherit(node: fx.Node, origin: fx.Node) -> fx.Node:
    """Let a new node tell the source line and module of the node it stands for."""
    for key in ("stack_trace", "nn_module_stack"):
        if key in origin.meta:
            node.meta[key] = origin.meta[key]
    return node


def copy_program(program: Program) -> Program:
    """A program whose graph may be changed without changing the original."""
    graph = fx.Graph()
    output = graph.graph_copy(program.graph_module.graph, val_map={})
    original = program.graph_module.graph.output_node()
    node = graph.output(output)
    node.meta.update(original.meta)
    return program.with_graph(module_of(graph))
