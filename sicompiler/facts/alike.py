"""Calls that are alike: one operator, equal arguments, tensors of equal layouts. What is known of one holds for all.

A model of many layers, or one that unrolls its frames, makes tens of thousands of calls of which a few hundred differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import fx

from sicompiler.facts.calls import operands_of

T = TypeVar("T")

_AS_THEY_ARE = frozenset({int, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format})


@dataclass(frozen=True)
class Calls:
    """The calls of one graph.

    Attributes:
        operands: for each node, where its operands are made: position, and which of the results.
        kinds: for each node, a number that calls which are alike share; a placeholder is like no other.
    """

    operands: tuple[tuple[tuple[int, int], ...], ...]
    kinds: tuple[int, ...]

    def each(self, make: Callable[[int], T]) -> list[T]:
        """Something of every node that is the same for calls which are alike, made once for all of them.

        Args:
            make: gives it for a position.
        """
        known: dict[int, T] = {}
        found = []
        for position, kind in enumerate(self.kinds):
            if kind not in known:
                known[kind] = make(position)
            found.append(known[kind])
        return found


def calls_of(
    nodes: Sequence[fx.Node], num_placeholders: int, position: Mapping[fx.Node, int], layouts: Sequence[tuple[Any, ...]]
) -> Calls:
    """Number the calls of a graph.

    Args:
        nodes: placeholders first.
        num_placeholders: how many.
        position: of each node.
        layouts: for each node, all that counts of its results.
    """
    shown: dict[tuple[Any, ...], object] = {}  # for results of equal layouts, one object in the place of their node
    values: dict[fx.Node, object] = {}
    numbers: dict[Any, int] = {}
    kinds, operands = [], []

    def frozen(argument: Any) -> Any:
        kind = type(argument)
        if kind in _AS_THEY_ARE:
            return argument
        if kind is fx.Node:
            return values[argument]
        if isinstance(argument, (tuple, list)):
            return tuple([frozen(item) for item in argument])
        return kind, repr(argument)  # numbers that are equal in Python, and are not the same argument

    for p, node in enumerate(nodes):
        read: tuple[tuple[int, int], ...] = ()
        key: Any = p
        if p >= num_placeholders:
            read = tuple([(position[source], index) for source, index in operands_of(node)])
            named = tuple([(name, frozen(value)) for name, value in node.kwargs.items()])
            key = (node.target, tuple([frozen(argument) for argument in node.args]), named, layouts[p])
        values[node] = shown.setdefault(layouts[p], object())
        operands.append(read)
        kinds.append(numbers.setdefault(key, len(numbers)))
    return Calls(tuple(operands), tuple(kinds))
