"""Integer expressions of a loop's body: start and length of a slice with its halo, and its part beyond a border."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx

from sicompiler.axes.factor_map import Window
from sicompiler.axes.span import Span
from sicompiler.ops import missing_before, missing_behind, reach

Number = int | fx.Node


class SpanNodes:
    """Emits the integers that spans come to in one slice, each once.

    Args:
        graph: the body.
        start: node that holds the first unit of the slice.
        length: node that holds the number of units.
    """

    def __init__(self, graph: fx.Graph, start: fx.Node, length: fx.Node) -> None:
        self.graph, self.start, self.length = graph, start, length
        self._known: dict[tuple[Any, ...], fx.Node] = {}

    def call(self, function: Callable[..., int], *args: Number) -> fx.Node:
        """A function of integers."""
        key = (function, *args)
        if key not in self._known:
            node = self.graph.call_function(function, args)
            node.meta["val"] = function(*(a.meta["val"] if isinstance(a, fx.Node) else a for a in args))
            self._known[key] = node
        return self._known[key]

    def begin(self, span: Span) -> fx.Node:
        """First entry that the slice holds."""
        return self.call(reach, self.start, span.inner, -span.lo, span.limit)

    def end(self, span: Span) -> fx.Node:
        """The entry behind the last that the slice holds."""
        return self.call(reach, self.call(operator.add, self.start, self.length), span.inner, span.hi, span.limit)

    def count(self, span: Span, factor: int = 1) -> fx.Node:
        """How many entries the slice holds, times a factor."""
        count = self.call(operator.sub, self.end(span), self.begin(span))
        return count if factor == 1 else self.call(operator.mul, count, factor)

    def offset(self, inner: Span, outer: Span) -> Number:
        """Where in a slice that holds `outer` the entries of `inner` begin."""
        if (inner.inner, inner.lo) == (outer.inner, outer.lo):
            return 0
        return self.call(operator.sub, self.begin(inner), self.begin(outer))

    def padding(self, window: Window, result: Span, entries: int) -> tuple[fx.Node, fx.Node]:
        """How much of what a window reads for `result` lies before and behind its operand of so many entries."""
        last = window.dilation * (window.kernel - 1) + 1 - window.stride - window.pad_lo
        return (
            self.call(missing_before, self.begin(result), window.stride, -window.pad_lo),
            self.call(missing_behind, self.end(result), window.stride, last, entries),
        )

    def drop_unused(self) -> None:
        """Erase the integers that nothing came to need."""
        for node in reversed(self._known.values()):
            if not node.users:
                self.graph.erase_node(node)
