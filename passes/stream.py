"""The two small graphs beside the body of a loop that carry slices out of offload memory and into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from sicompiler.axes.factor_map import Slicing
from sicompiler.axes.span import Span
from sicompiler.axes.table import Operand
from sicompiler.capture import module_of
from sicompiler.passes.edit import insert_call
from sicompiler.passes.slice_bounds import SpanNodes
from sicompiler.regions.halo import Halos
from sicompiler.regions.region import Output, RegionRead

ops = torch.ops.sicompiler


@dataclass(frozen=True)
class Carrier:
    """A graph that carries slices of whole values.

    Attributes:
        module: called with slices to store, if any, whole values, start and length.
        wholes: the values of the outer graph that it is called with.
        slices: fake values of the slices it fetches, in the order of what it returns.
    """

    module: fx.GraphModule
    wholes: tuple[fx.Node, ...]
    slices: tuple[torch.Tensor, ...] = ()


class _SliceGraph:
    """A graph with placeholders for slices and whole values, and the integers of a slice."""

    def __init__(
        self, mode: FakeTensorMode, slices: Sequence[torch.Tensor], wholes: Sequence[fx.Node], slice_length: int
    ) -> None:
        self.graph, self.mode = fx.Graph(), mode
        self.slices = [self._placeholder(f"slice_{number}", value) for number, value in enumerate(slices)]
        self.wholes = {node: self._placeholder(node.name, node.meta["val"]) for node in dict.fromkeys(wholes)}
        self.start, self.length = self._placeholder("start", 0), self._placeholder("length", slice_length)
        self.spans = SpanNodes(self.graph, self.start, self.length)

    def _placeholder(self, name: str, value: Any) -> fx.Node:
        node = self.graph.placeholder(name)
        node.meta["val"] = value
        return node

    def cut(self, slicing: Slicing, span: Span | None) -> tuple[Any, ...]:
        """Dim, factors, start and length of a slice, as the operators on slices take them."""
        if span is None:
            return slicing.dim, slicing.outer, slicing.inner, self.start, self.length
        return slicing.dim, slicing.outer, 1, self.spans.begin(span), self.spans.count(span)

    def finish(self, results: Any) -> fx.GraphModule:
        self.spans.drop_unused()
        self.graph.output(results)
        return module_of(self.graph)


def fetcher(
    mode: FakeTensorMode,
    reads: Sequence[tuple[RegionRead, fx.Node]],
    halos: Halos | None,
    slice_length: int,
    device: torch.device,
) -> Carrier:
    """The graph that fetches what a loop reads slice by slice.

    Args:
        mode: the fake mode of all values.
        reads: what is read, and the node of the outer graph that holds it.
        halos: of the region.
        slice_length: units of a slice.
        device: where the slices are computed with.
    """
    build = _SliceGraph(mode, (), [node for _, node in reads], slice_length)
    slices = []
    for read, node in reads:
        key: tuple[Operand, Slicing] = (read.value, read.slicing)
        cut = build.cut(read.slicing, None if halos is None else halos.reads[key])
        slices.append(insert_call(build.graph, mode, ops.fetch_slice.default, (build.wholes[node], *cut, device)))
    return Carrier(build.finish(tuple(slices)), tuple(build.wholes), tuple(node.meta["val"] for node in slices))


def storer(
    mode: FakeTensorMode,
    writes: Sequence[tuple[Output, torch.Tensor, fx.Node]],
    halos: Halos | None,
    slice_length: int,
) -> Carrier:
    """The graph that stores what a loop writes slice by slice.

    Args:
        mode: the fake mode of all values.
        writes: what is written, the fake value of one slice, and the node of the outer graph that holds all of it.
        halos: of the region.
        slice_length: units of a slice.
    """
    build = _SliceGraph(mode, [part for _, part, _ in writes], [node for _, _, node in writes], slice_length)
    for part, (output, _, node) in zip(build.slices, writes, strict=True):
        assert output.slicing is not None, "statistics merge on the device"
        cut = build.cut(output.slicing, None if halos is None else halos.own[output.value])
        insert_call(build.graph, mode, ops.store_slice_.default, (build.wholes[node], part, *cut))
    return Carrier(build.finish(None), tuple(build.wholes))
