"""Which slices of a loop are alike: those whose body has the same shapes, wherever they start."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from sicompiler.facts.calls import bind
from sicompiler.ops import offloaded_tensor, sliced_loop, streamed_loop, wait_loads, wait_stores

aten = torch.ops.aten
ops = torch.ops.sicompiler

_STARTS = {  # operators on slices whose result does not depend on where the slice starts
    *(aten.narrow.default, ops.copy_slice.default, ops.write_slice_.default),
    *(ops.fetch_slice.default, ops.store_slice_.default),
}


class SliceShapes:
    """The integers of a loop's body, and which of them its shapes depend on.

    Args:
        module: the body; start and length of a slice are its last placeholders.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.placeholders = module.graph.find_nodes(op="placeholder")
        self.nodes = [
            node
            for node in module.graph.nodes
            if node.op == "call_function"
            and not isinstance(node.target, OpOverload)
            and node.target not in (operator.getitem, offloaded_tensor, wait_loads, wait_stores)
            and isinstance(node.meta.get("val"), int)
        ]
        numbers = {*self.placeholders[-2:], *self.nodes}
        self.shaping = [node for node in numbers if any(_shapes(user, node) for user in node.users)]
        self.shaping.sort(key=lambda node: node.name)

    def bind(self, arguments: Sequence[Any]) -> dict[fx.Node, Any]:
        """Values of the placeholders."""
        return dict(zip(self.placeholders, arguments, strict=True))

    def shape(self, start: int, length: int) -> tuple[int, ...]:
        """What tells slices of different shapes apart."""
        values: dict[fx.Node, int] = dict(zip(self.placeholders[-2:], (start, length), strict=True))
        for node in self.nodes:
            target: Any = node.target
            values[node] = target(*fx.node.map_arg(node.args, values.__getitem__))
        return tuple(values[node] for node in self.shaping)


def _shapes(user: fx.Node, number: fx.Node) -> bool:
    """Whether a call makes another shape with another number: not where it is only the start of a slice."""
    if not isinstance(user.target, OpOverload):
        return user.target in (sliced_loop, streamed_loop)
    if user.target not in _STARTS:
        return True
    arguments = bind(user.target, user.args, user.kwargs)
    return any(value is number and name != "start" for name, value in arguments.items())
