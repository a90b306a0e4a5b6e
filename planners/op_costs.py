"""Seconds and workspace of each operator of one graph, by slice length; each is computed once."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from torch._ops import OpOverload

from sicompiler.axes.factor_map import Slicing
from sicompiler.axes.span import Span
from sicompiler.axes.table import OpSlicing
from sicompiler.cost import TimeSlicing, Work, slice_lengths, sliced_seconds, waste, whole_seconds, work_of
from sicompiler.device import Machine, device_kind
from sicompiler.facts.calls import bind
from sicompiler.facts.storages import Origin, TensorFact
from sicompiler.facts.strides import format_strides, suggests_channels_last
from sicompiler.facts.timeline import Timeline
from sicompiler.facts.workspace.layout import suggested
from sicompiler.facts.workspace.table import takes_workspace, workspace_bytes
from sicompiler.regions.view import GraphView

Floats = npt.NDArray[np.float64]
T = TypeVar("T")


class OpCosts:
    """Time and workspace of the operators of one graph: whole, and for each slice length."""

    def __init__(self, view: GraphView, line: Timeline, machine: Machine) -> None:
        self.view, self.line, self.machine = view, line, machine
        facts = view.facts
        self.device_type = facts.device_type
        self.granule = device_kind(facts.device_type).granule_bytes
        self._kinds = facts.calls.kinds
        self.work: list[Work] = facts.calls.each(lambda p: work_of(facts, p, view.table.operands[p]))
        self.whole: Floats = np.array(facts.calls.each(lambda p: whole_seconds(self.work[p], machine)))
        self._sliced: dict[tuple[int, OpSlicing], tuple[Floats, Floats]] = {}
        self._halo_workspace: dict[tuple[int, OpSlicing], dict[tuple[float, ...], int]] = {}
        self._spans: dict[tuple[Span, int], tuple[Floats, Floats, npt.NDArray[np.bool_]]] = {}
        self._arguments: dict[int, dict[str, Any]] = {}
        self._waste: dict[tuple[int, int], Floats] = {}
        self._remembered: dict[object, Any] = {}
        self.lengths: dict[int, tuple[tuple[int, ...], Floats]] = {}

    def offloading(self, view: GraphView, line: Timeline) -> OpCosts:
        """The costs for other offloaded storages; times and workspaces stay as they are."""
        other = copy.copy(self)
        other.view, other.line = view, line
        return other

    def remembered(self, make: Callable[[OpCosts], T]) -> T:
        """What has been worked out about this graph, made when first asked for; the same whatever is offloaded."""
        if make not in self._remembered:
            self._remembered[make] = make(self)
        found: T = self._remembered[make]
        return found

    def transfer(self, seconds: Floats, nbytes: Floats | float) -> Floats:
        """Time of what computes for so long and moves so many bytes from or to offload memory."""
        moving = nbytes / self.machine.offload_bandwidth
        return np.asarray(np.maximum(seconds, moving) if self.machine.offload_overlaps else seconds + moving)

    def kind(self, p: int) -> int:
        """A number that calls which are alike share."""
        return self._kinds[p]

    def grid(self, size: int) -> tuple[tuple[int, ...], Floats]:
        """Slice lengths of an axis, as ints and as an array."""
        if size not in self.lengths:
            lengths = slice_lengths(size)
            self.lengths[size] = (lengths, np.array(lengths, dtype=np.float64))
        return self.lengths[size]

    def span(self, span: Span, size: int) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
        """Per slice length: most entries of any slice, entries of all together, whether no slice is empty."""
        key = (span, size)
        if key not in self._spans:
            lengths = self.grid(size)[1]
            shortest = span.shortest(size, lengths)
            self._spans[key] = (span.longest(size, lengths), span.total(size, lengths), shortest >= 1)
        return self._spans[key]

    def sliced(self, p: int, transfer: OpSlicing, size: int) -> tuple[Floats, Floats]:
        """Time of one sliced operator and its kernel's workspace, per slice length.

        The workspace is asked for each: kernels change their algorithm with size. For the same reason the last slice,
        which may be shorter, may take more than the others, by more than its result is smaller.
        """
        key = (self._kinds[p], transfer)
        found = self._sliced.get(key)
        if found is None:
            target, lengths = self.view.facts.nodes[p].target, self.grid(size)[0]
            workspace = np.zeros(len(lengths))
            if isinstance(target, OpOverload) and self.view.made[p] and takes_workspace(target, self.device_type):
                at = functools.cache(functools.partial(self._workspace_at, target, p, transfer))
                per_entry = sum(
                    t.nbytes // size for t, s in zip(self.view.facts.tensors[p], transfer.results, strict=True) if s
                )
                for column, length in enumerate(lengths):
                    last = (size - 1) % length + 1
                    workspace[column] = max(at(length), at(last) - (length - last) * per_entry)
            found = self._sliced[key] = (self.seconds(p, size, transfer, 1.0), workspace)
        return found

    def seconds(self, p: int, size: int, transfer: OpSlicing, excess: Floats | float) -> Floats:
        """Time of one sliced operator per slice length; `excess` times the work, where slices overlap."""
        return sliced_seconds(self.work[p], size, self.grid(size)[1], self.machine, excess, self.cut(p, transfer))

    def cut(self, p: int, transfer: OpSlicing) -> TimeSlicing:
        """What is cut of an operator: its weights, or its rows; and what every slice reads whole."""
        whole, columns = 0, False
        for value, slicing in zip(self.view.table.operands[p], transfer.operands, strict=True):
            tensor = self.view.tensor(value)
            if self.view.facts.storages[tensor.storage].origin is Origin.WEIGHT:
                columns = columns or (slicing is not None and self.work[p].matrix_flops > 0)
            elif slicing is None:
                whole += tensor.nbytes
        return TimeSlicing(float(whole), columns)

    def waste(self, tensor: TensorFact, slicing: Slicing) -> Floats:
        """How many times the bytes of a narrowed tensor are moved, per slice length."""
        key = (max(tensor.stride[slicing.dim], 1) * slicing.inner * tensor.dtype.itemsize, slicing.size)
        if key not in self._waste:
            self._waste[key] = waste(self.grid(slicing.size)[1] * key[0], self.machine)
        return self._waste[key]

    def halo_workspace(
        self, p: int, transfer: OpSlicing, operands: Sequence[Floats | None], results: Sequence[Floats | None]
    ) -> Floats:
        """Workspace of an operator whose slices hold more than their own part.

        Args:
            p: position of the operator.
            transfer: how it is sliced.
            operands: for each operand that is sliced, entries of the axis in it per slice length.
            results: the same for each result.
        """
        counts = np.stack([*(c for c in (*operands, *results) if c is not None)])
        target = self.view.facts.nodes[p].target
        if not isinstance(target, OpOverload) or not self.view.made[p]:
            return np.zeros(counts.shape[1])
        known = self._halo_workspace.setdefault((self._kinds[p], transfer), {})
        found = np.zeros(counts.shape[1])
        for column, lengths in enumerate(counts.T.tolist()):
            if tuple(lengths) not in known:
                taken = iter(lengths)
                sides = [[None if c is None else int(next(taken)) for c in side] for side in (operands, results)]
                known[tuple(lengths)] = self._workspace_of(target, p, transfer, sides[0], sides[1])
            found[column] = known[tuple(lengths)]
        return found

    def _workspace_at(self, target: OpOverload, p: int, transfer: OpSlicing, length: int) -> int:
        lengths = [
            [None if s is None else length * s.inner for s in found] for found in (transfer.operands, transfer.results)
        ]
        return self._workspace_of(target, p, transfer, lengths[0], lengths[1])

    def _workspace_of(
        self,
        target: OpOverload,
        p: int,
        transfer: OpSlicing,
        operands: Sequence[int | None],
        results: Sequence[int | None],
    ) -> int:
        facts, tensors = self.view.facts, [self.view.tensor(value) for value in self.view.table.operands[p]]
        if p not in self._arguments:
            self._arguments[p] = bind(target, facts.nodes[p].args, facts.nodes[p].kwargs)
        return workspace_bytes(
            target,
            [shortened(t, s, n) for t, s, n in zip(tensors, transfer.operands, operands, strict=True)],
            [shortened(t, s, n) for t, s, n in zip(facts.tensors[p], transfer.results, results, strict=True)],
            facts.device_type,
            self._arguments[p],
        )


def shortened(tensor: TensorFact, slicing: Slicing | None, count: int | None) -> TensorFact:
    """A tensor cut to one slice of so many entries, as it lies in a loop's body: strides of the same order.

    What was dense is dense again; what is a part of something, or expanded, keeps its gaps and its strides of 0: the
    dims that lie outside the sliced one move together as it gets shorter. What is in a memory format of torch's stays
    in it, and what is in none does not get into one, as loops see to (`passes.body.in_format`).
    """
    if slicing is None or count is None:
        return tensor
    dim = slicing.dim
    shape = list(tensor.shape)
    shape[dim] = slicing.outer * count
    if not tensor.is_dense:
        step = tensor.stride[dim]
        stride = [
            st if st <= step or not step else st * shape[dim] // max(tensor.shape[dim], 1) for st in tensor.stride
        ]
        return TensorFact(tuple(shape), tuple(stride), tensor.dtype, tensor.storage, tensor.requires_grad)
    stride = [0] * len(shape)
    expected = 1
    for other in sorted(range(len(shape)), key=lambda d: (tensor.stride[d], -d)):
        stride[other] = expected
        expected *= shape[other]
    planned = suggested(tensor)
    if 1 in shape and planned != suggests_channels_last((tuple(shape), tuple(stride))):
        ones = [1 if size == 1 else step for size, step in zip(shape, stride, strict=True)]
        stride = list(format_strides(shape if max(shape) > 1 else [2] * len(shape), True)) if planned else ones
    return TensorFact(tuple(shape), tuple(stride), tensor.dtype, tensor.storage, tensor.requires_grad)
