"""Nodes of a graph that become the same nodes as an earlier one, while a graph that writes is made one that does not.

What functionalization makes of an operator on memory that nothing in the graph writes into depends on the layouts of
its operands: the operator, or what it is taken apart into. So the first of a kind is run, and the next one is given
copies of the nodes that were recorded then, with fake values of the same layouts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.utils._pytree as pytree
from torch import fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from sicompiler.capture.functions import Unlike
from sicompiler.capture.like_calls import Results, layouts_of, results_of
from sicompiler.capture.tape import storage_of, tensors_in, written_into


@dataclass(frozen=True, slots=True)
class _Place:
    """An operand of a node that is made again, or a node that was made for it before.

    Attributes:
        number: of the node: its operands first.
    """

    number: int


@dataclass(frozen=True, slots=True)
class _NodeStep:
    """One node.

    Attributes:
        target, args, kwargs: of it, with places for nodes.
        name: as its kind is called; None for a part of a result.
        val: its fake value; None for a node that gives nothing.
    """

    target: Any
    args: Any
    kwargs: Any
    name: str | None
    val: Results | None


@dataclass(frozen=True, slots=True)
class _Recipe:
    """What an operator becomes.

    Attributes:
        steps: its nodes.
        result: what it gives, with places for nodes.
    """

    steps: tuple[_NodeStep, ...]
    result: Any


@dataclass(frozen=True, slots=True)
class LikeNode:
    """A node that may be like an earlier one.

    Attributes:
        key: equal for no other kind.
        inputs: nodes of the new graph that it reads.
    """

    key: Any
    inputs: tuple[fx.Node, ...]


class LikeNodes:
    """What nodes of one graph have become.

    Args:
        graph: the new graph.
        mode: of the fake values.
    """

    def __init__(self, graph: fx.Graph, mode: FakeTensorMode) -> None:
        self._graph, self._mode = graph, mode
        self._known: dict[Any, _Recipe | None] = {}

    def node(self, target: Any, args: Any, kwargs: Any) -> LikeNode | None:
        """A node that may be told from an earlier one; None for one that has to run.

        Args:
            target: of a node of the old graph.
            args: with nodes of the new graph, or of the old one.
            kwargs: by name.
        """
        inputs = list[fx.Node]()

        def value(leaf: Any) -> Any:
            if isinstance(leaf, fx.Node):
                inputs.append(leaf)
                return leaf.meta["val"]
            return leaf

        values = _mapped((args, kwargs), value)
        try:
            return LikeNode((target, layouts_of(values, self._mode, [])), tuple(dict.fromkeys(inputs)))
        except Unlike:
            return None

    def again(self, node: LikeNode, meta: Mapping[str, Any]) -> tuple[bool, Any]:
        """Make what an earlier node of the kind became; whether there was one, and the nodes that give its results.

        Args:
            node: of the kind.
            meta: where it comes from.
        """
        recipe = self._known.get(node.key)
        if recipe is None:
            return False, None
        nodes, pool = list(node.inputs), _tensors(node.inputs)

        def at(leaf: Any) -> Any:
            return nodes[leaf.number] if type(leaf) is _Place else leaf

        for step in recipe.steps:
            args, kwargs = _mapped(step.args, at), _mapped(step.kwargs, at)
            made = self._graph.create_node("call_function", step.target, args, kwargs, step.name)
            for key, told in meta.items():
                made.meta[key] = dict(told) if isinstance(told, dict) else told
            made.meta["val"] = None if step.val is None else step.val.again(pool)
            nodes.append(made)
            pool += _fakes(made.meta["val"])
        return True, _mapped(recipe.result, at)

    def stays(self, node: LikeNode, source: fx.Node, name: str) -> None:
        """Keep that a node becomes itself.

        Args:
            node: of the new graph.
            source: the same one of the old graph, whose value tells what it gives.
            name: as its kind is called.
        """
        before = self.node(source.target, source.args, source.kwargs)
        if before is not None and before.key == node.key and len(before.inputs) == len(node.inputs):
            self.learn(before, [(source, name)], source)

    def learn(self, node: LikeNode, made: Sequence[tuple[fx.Node, str | None]], result: Any) -> None:
        """Keep what a node has become.

        Args:
            node: which.
            made: the nodes of the new graph, in order, and what their kinds are called.
            result: those that give its results.
        """
        self._known[node.key] = None
        places = {each: _Place(number) for number, each in enumerate((*node.inputs, *(step for step, _ in made)))}
        pool, steps = _tensors(node.inputs), list[_NodeStep]()

        def at(leaf: Any) -> Any:
            return places[leaf] if isinstance(leaf, fx.Node) else leaf

        for each, name in made:
            val = each.meta["val"]
            layouts = None if val is None else results_of(val, pool)
            if (val is not None and layouts is None) or not places.keys() >= set(each.all_input_nodes):
                return
            args, kwargs = _mapped((each.args, each.kwargs), at)
            steps.append(_NodeStep(each.target, args, kwargs, name, layouts))
            pool += _fakes(val)
        leaves = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, fx.Node)]
        if places.keys() >= set(leaves):
            self._known[node.key] = _Recipe(tuple(steps), _mapped(result, at))


def untouched_nodes(graph: fx.Graph) -> frozenset[fx.Node]:
    """Calls that neither read nor make memory that anything in the graph writes into."""
    calls = [node for node in graph.nodes if isinstance(node.target, OpOverload)]
    written = set[int]()
    for node in calls:
        if node.target._schema.is_mutable:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta.get("val"))
            written |= written_into(node.target, args, kwargs)

    def is_clean(node: fx.Node) -> bool:
        values = [node.meta.get("val"), *(each.meta.get("val") for each in node.all_input_nodes)]
        return written.isdisjoint(map(storage_of, tensors_in(values)))

    return frozenset(node for node in calls if not node.target._schema.is_mutable and is_clean(node))


def _tensors(nodes: Sequence[fx.Node]) -> list[FakeTensor]:
    return [tensor for node in nodes for tensor in _fakes(node.meta["val"])]


def _fakes(value: Any) -> list[FakeTensor]:
    return [tensor for tensor in tensors_in(value) if isinstance(tensor, FakeTensor)]


def _mapped(value: Any, change: Any) -> Any:
    """Nested tuples, lists and dicts with other leaves."""
    if isinstance(value, (tuple, list)):
        return type(value)([_mapped(entry, change) for entry in value])
    if isinstance(value, dict):
        return {name: _mapped(entry, change) for name, entry in value.items()}
    return change(value)
