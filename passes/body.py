"""Emit the body of a region: its sliced operators, reading narrowed values, with baked sizes scaled to the slice."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode

from sicompiler.axes.factor_map import Slicing
from sicompiler.axes.padding import padding_value, pads_by_itself, repadded, unpadded
from sicompiler.axes.resize import bakes_sizes, copying_twin, resize
from sicompiler.axes.span import Span
from sicompiler.axes.table import Operand, OpSlicing
from sicompiler.facts.storages import TensorFact
from sicompiler.facts.strides import format_strides, suggests_channels_last
from sicompiler.facts.workspace.layout import suggested
from sicompiler.ops.slices import in_order_fake
from sicompiler.passes.edit import evaluate, inherit, insert_call
from sicompiler.passes.layout_rows import COMPOSITE, VIEWS, strided
from sicompiler.passes.layouts import as_made, keeps_input_size
from sicompiler.passes.slice_bounds import SpanNodes
from sicompiler.regions.region import Region
from sicompiler.regions.view import GraphView

aten = torch.ops.aten
ops = torch.ops.sicompiler

Length = int | fx.Node


class BodyEmitter:
    """Copies the sliced operators of a region into a graph.

    Args:
        view: the graph the region is of.
        region: what to copy.
        graph: where to.
        mode: the fake mode of the graph's values.
        length: length of the slice: a number, or the node that holds it.
        whole: gives the node that holds a whole value.
        narrowed: gives the node that holds one slice of a whole value.
        spans: emits where slices begin and end; needed for regions with halos.
    """

    def __init__(
        self,
        view: GraphView,
        region: Region,
        graph: fx.Graph,
        mode: FakeTensorMode,
        length: Length,
        whole: Callable[[Operand], fx.Node],
        narrowed: Callable[[Operand, Slicing], fx.Node],
        spans: SpanNodes | None = None,
    ) -> None:
        self.view, self.region, self.graph, self.mode = view, region, graph, mode
        self.halos, self.spans = region.halos, spans
        self.length, self.whole, self.narrowed = length, whole, narrowed
        self.made: dict[int, fx.Node] = {}
        self._multiples: dict[int, Length] = {}

    def times(self, factor: int) -> Length:
        """`factor` slices' worth of entries."""
        if isinstance(self.length, int):
            return factor * self.length
        if factor == 1:
            return self.length
        if factor not in self._multiples:
            node = self.graph.call_function(operator.mul, (self.length, factor))
            node.meta["val"] = self.length.meta["val"] * factor
            self._multiples[factor] = node
        return self._multiples[factor]

    def emit(self, position: int) -> fx.Node:
        """Copy one sliced operator."""
        old, transfer = self.view.facts.nodes[position], self.region.sliced[position]
        occurrences = iter(self._operands(position, transfer))
        if old.target is operator.getitem and self.view.table.operands[position][0][0] not in self.made:
            self.made[position] = next(occurrences)  # one result of an operator outside, narrowed
            return self.made[position]
        args, kwargs = _ordered(old)
        args, kwargs = fx.node.map_arg((args, kwargs), lambda _: next(occurrences))
        target = old.target
        result = transfer.results[0]
        if isinstance(target, OpOverload) and transfer.window is not None:
            target, args, kwargs = self._unpadded(position, target, args, kwargs)
        elif isinstance(target, OpOverload) and result is not None and bakes_sizes(target):
            shape = self.view.facts.tensors[position][0].shape
            size = self._entries(position, result)
            args, kwargs = resize(target, args, kwargs, len(shape), result.dim, size, old_size=shape[result.dim])
        if target is ops.group_apply.default and self._is_row_major(position, args[0]):
            kwargs = {"row_major": True}  # one sample of a tensor in no format would pass for channels-last
        if isinstance(target, OpOverload):
            target = copying_twin(target)  # a slice may not be viewable where the whole value is
        assert callable(target)
        node = self.graph.create_node("call_function", target, tuple(args), dict(kwargs), name=old.name)
        node.meta["val"] = evaluate(node, self.mode)
        node.meta["val"] = as_made(node, self.mode)
        self.made[position] = self._copied(position, inherit(node, old))
        return self.made[position]

    def _is_row_major(self, position: int, operand: fx.Node) -> bool:
        """Whether the whole of a result is row-major alone, and the slice of its operand is not."""
        whole = self.view.tensor((position, 0))
        return whole.is_contiguous and not suggested(whole) and not operand.meta["val"].is_contiguous()

    def _copied(self, position: int, node: fx.Node) -> fx.Node:
        """A slice that lies as the planner takes it to.

        - What copies a whole value may be a view of a slice, in an order that its readers would copy, unseen; or one
          that keeps more memory alive than a copy would, as of the values in a slice of queries, keys and values.
        - An einsum multiplies a slice in another way than the whole, so that its result lies in another order.
        - Dims of one entry, as slices have, get strides that say nothing, yet pass for a memory format.
        - ATen's transposed convolution in 3-D keeps memory of the size of its input, for a smaller result too.
        """
        value = node.meta["val"]
        if not isinstance(value, torch.Tensor):
            return node
        whole = self.view.tensor((position, 0))
        copies = self.view.made[position] and self.view.may_be_view[position]
        if copies and whole.is_contiguous and not value.is_contiguous():
            return self._then(aten.contiguous.default, node)
        if copies and self._is_part(value):
            return self._then(aten.clone.default, node)
        if node.target in COMPOSITE and not _lies_like(value, whole) and self._is_computed_with(position):
            return self._in_order_of(whole, node)
        slicing = self.region.sliced[position].results[0]
        dim = None if slicing is None else slicing.dim
        if isinstance(self.length, fx.Node) and self._is_undecided(node, whole, dim):
            return inherit(in_format(self.graph, self.mode, node, whole, dim), node)
        if keeps_input_size(node):
            return self._then(aten.clone.default, node)
        return node

    def _is_undecided(self, node: fx.Node, whole: TensorFact, dim: int | None) -> bool:
        """Whether dims of one entry alone may tell the memory format of a slice."""
        value = node.meta["val"]
        if len(whole.shape) < 4 or 1 not in value.shape:
            return False
        return node.target in VIEWS or (not passes_for(value, whole, dim) and _lies_like(value, whole))

    def _then(self, target: OpOverload, node: fx.Node) -> fx.Node:
        """Call an operator on what a node gives."""
        call = insert_call(self.graph, self.mode, target, (node,))
        call.meta["val"] = as_made(call, self.mode)
        return inherit(call, node)

    def _is_computed_with(self, position: int) -> bool:
        """Whether an operator of the body computes with a value; what only views or writes it takes it as it lies."""
        inside = [p for p in self.view.lives.readers[position] if p in self.region.sliced]
        return any(self.view.facts.nodes[p].target not in VIEWS or self._is_computed_with(p) for p in inside)

    def _in_order_of(self, whole: TensorFact, node: fx.Node) -> fx.Node:
        """Copy what a node gives to the order in which a whole value lies."""
        order = sorted(range(len(whole.shape)), key=lambda dim: -whole.stride[dim])
        back = [order.index(dim) for dim in range(len(order))]
        there = insert_call(self.graph, self.mode, aten.permute.default, (node, order))
        copy = insert_call(self.graph, self.mode, aten.contiguous.default, (there,))
        return inherit(insert_call(self.graph, self.mode, aten.permute.default, (copy, back)), node)

    def _is_part(self, value: torch.Tensor) -> bool:
        """Whether a value is a part of a larger one that lives in the body only."""
        storage = value.untyped_storage()
        if storage.nbytes() <= value.numel() * value.itemsize:
            return False
        given = (node.meta.get("val") for node in self.graph.find_nodes(op="placeholder"))
        return all(
            storage._cdata != tensor.untyped_storage()._cdata for tensor in given if isinstance(tensor, torch.Tensor)
        )

    def _entries(self, position: int, result: Slicing) -> Length:
        """The size of the sliced dim of an operator's first result."""
        if self.halos is None or self.spans is None:
            return self.times(result.outer * result.inner)
        return self.spans.count(self.halos.held[(position, 0)], result.outer)

    def _unpadded(
        self, position: int, target: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[OpOverload, tuple[Any, ...], dict[str, Any]]:
        """A window along the axis: its padding lies beyond the true borders only, so most slices have none."""
        transfer, spans, halos = self.region.sliced[position], self.spans, self.halos
        assert spans is not None and halos is not None and transfer.window is not None
        index = next(i for i, s in enumerate(transfer.operands) if s is not None)
        value, slicing = self.view.table.operands[position][index], transfer.operands[index]
        assert slicing is not None
        whole = self.view.tensor(value)
        rank = len(whole.shape)
        before, behind = spans.padding(transfer.window, halos.held[(position, 0)], whole.shape[slicing.dim])
        if pads_by_itself(target):
            again = repadded(target, args, kwargs, rank, slicing.dim, (before, behind))
            filled = padding_value(target, args, kwargs)
            if filled is None:
                return target, again, {}
            return ops.pad_copy.default, (args[0], again[1], filled, suggested(whole)), {}
        call = unpadded(target, args, kwargs, rank, slicing.dim, transfer.window)
        if transfer.window.pad_lo or transfer.window.pad_hi:
            padded = insert_call(
                self.graph, self.mode, ops.pad_slice.default, (args[0], slicing.dim, before, behind, call.value)
            )
            if not passes_for(padded.meta["val"], whole, None):
                padded = in_format(self.graph, self.mode, padded, whole, slicing.dim)
            return call.target, (padded, *call.args[1:]), call.kwargs
        return call.target, call.args, call.kwargs

    def _operands(self, position: int, transfer: OpSlicing) -> Iterator[fx.Node]:
        for index, ((q, r), slicing) in enumerate(
            zip(self.view.table.operands[position], transfer.operands, strict=True)
        ):
            if slicing is None:
                yield self.made[q] if q in self.made else self.whole((q, r))
                continue
            node = self.made[q] if q in self.made else self.narrowed((q, r), slicing)
            yield node if self.halos is None else self._fitted(node, position, index, (q, r), slicing)

    def _fitted(self, node: fx.Node, position: int, index: int, value: Operand, slicing: Slicing) -> fx.Node:
        """What an operator needs of a slice that may hold more, for other readers."""
        halos, spans = self.halos, self.spans
        assert halos is not None and spans is not None
        held = halos.held[value] if value[0] in self.made else halos.reads[(value, slicing)]
        asked = halos.asked[(position, index)]
        if asked == held:
            return node
        return narrowed_again(
            self.graph, self.mode, spans, node, slicing, held, asked, self.view.fits_by_copy(position, value, slicing)
        )


def _lies_like(value: torch.Tensor, whole: TensorFact) -> bool:
    """Whether the dims of a slice that have several entries are in the order of those of the whole value."""
    dims = [dim for dim, size in enumerate(value.shape) if size > 1]
    return sorted(dims, key=value.stride) == sorted(dims, key=whole.stride.__getitem__)


def passes_for(part: torch.Tensor, whole: TensorFact, dim: int | None) -> bool:
    """Whether kernels take a slice for the memory format of the whole value; also one of a single entry at an edge.

    Args:
        part: the slice.
        whole: what it is of.
        dim: where it is sliced; None for what is not, or never has a single entry.
    """
    return all(suggests_channels_last(strided(each)) == suggested(whole) for each in _slices_of(part, dim))


def _slices_of(part: torch.Tensor, dim: int | None) -> Iterator[torch.Tensor]:
    """A slice as it is planned, and one of a single entry, as there may be at an edge: a dim that says nothing then."""
    yield part
    if dim is not None:
        yield part.as_strided([*part.shape[:dim], 1, *part.shape[dim + 1 :]], part.stride())


def in_format(graph: fx.Graph, mode: FakeTensorMode, node: fx.Node, whole: TensorFact, dim: int | None) -> fx.Node:
    """A slice that kernels take for the memory format of the whole value, whatever its dims of one entry said before.

    Args:
        graph: the body.
        mode: the fake mode of its values.
        node: the slice.
        whole: what it is of.
        dim: where it is sliced; None for what is not.
    """
    planned = suggested(whole)
    # of one channel, or one column, strides alone don't tell the order of the format
    like = list(format_strides([2] * len(whole.shape), True) if planned else whole.stride)
    ordered = [in_order_fake(each, like) for each in _slices_of(node.meta["val"], dim)]
    alike = all(suggests_channels_last(strided(each)) == planned for each in ordered)
    return insert_call(graph, mode, ops.in_order.default, (node, like) if alike else (node, like, False))


def narrowed_again(
    graph: fx.Graph,
    mode: FakeTensorMode,
    spans: SpanNodes,
    node: fx.Node,
    slicing: Slicing,
    held: Span,
    asked: Span,
    copies: bool,
) -> fx.Node:
    """Cut the entries `asked` out of a slice that holds more.

    Args:
        graph: the body.
        mode: the fake mode of its values.
        spans: emits the integers.
        node: the slice.
        slicing: where the axis sits in it.
        held: what it holds.
        asked: what to cut out.
        copies: whether to give a dense copy rather than a view.
    """
    offset, count = spans.offset(asked, held), spans.count(asked)
    if copies:
        return insert_call(graph, mode, ops.copy_slice.default, (node, slicing.dim, slicing.outer, 1, offset, count))
    return insert_call(graph, mode, torch.ops.aten.narrow.default, (node, slicing.dim, offset, count))


def _ordered(node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a call, the keyword ones in schema order, so that tensors occur as in the axis table."""
    if not isinstance(node.target, OpOverload):
        return node.args, dict(node.kwargs)
    names = [a.name for a in node.target._schema.arguments if a.name in node.kwargs]
    return node.args, {name: node.kwargs[name] for name in names}
