"""Operators of bodies with halos: what each adds to a body, worked out once for all spans it is seen with.

What an operator adds depends on the slicing, on what it has to compute and on which of its operands it gets as copies,
not on where its body starts or ends. Operators that are alike share it, so a decoder that unrolls its frames pays once.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sicompiler.axes.factor_map import Slicing
from sicompiler.axes.padding import pads_by_itself
from sicompiler.axes.span import Span
from sicompiler.axes.table import Operand, OpSlicing
from sicompiler.planners.op_costs import Floats, OpCosts
from sicompiler.regions.halo import OperatorSpans, entries, own_part, picks_result, step_of, unread_core

Cuts = tuple[bool, ...]  # for each sliced operand of an operator, whether it gets a copy of a part of a slice


class Spans:
    """Spans by number: equal ones have the same, so that they are compared and looked up at the cost of an int."""

    def __init__(self) -> None:
        self._numbers: dict[Span, int] = {}
        self._spans: list[Span] = []
        self._hulls: dict[tuple[int, int], int] = {}
        self._groups: dict[tuple[int, int], int] = {}

    def __getitem__(self, number: int) -> Span:
        return self._spans[number]

    def number(self, span: Span) -> int:
        """The number of a span."""
        found = self._numbers.setdefault(span, len(self._spans))
        if found == len(self._spans):
            self._spans.append(span)
        return found

    def hull(self, one: int, other: int) -> int:
        """The smallest span that holds both."""
        if one == other:
            return one
        key = (one, other)
        if key not in self._hulls:
            self._hulls[key] = self.number(self[one].hull(self[other]))
        return self._hulls[key]

    def over(self, number: int, factor: int) -> int:
        """The smallest span of groups of `factor` entries that holds this one."""
        if factor == 1:
            return number
        key = (number, factor)
        if key not in self._groups:
            self._groups[key] = self.number(self[number].over(factor))
        return self._groups[key]


@dataclass(frozen=True, slots=True)
class Share:
    """What an operator adds to a body, per slice length.

    Attributes:
        seconds: its time, with that of cutting and padding its operands.
        nbytes: a row for each storage it makes; for the copy of each sliced operand that it gets one of, and for each
            that is padded; and for what its kernel takes beside its results.
        fits: whether everything it holds and asks for holds something in every slice; None where it always does.
    """

    seconds: Floats
    nbytes: Floats
    fits: npt.NDArray[np.bool_] | None


@dataclass(frozen=True, slots=True)
class Numbered:
    """The spans of one operator, by number: of its results (-1 where not sliced) and of its sliced operands."""

    held: tuple[int, ...]
    asked: tuple[int, ...]
    step: OperatorSpans


@dataclass(frozen=True, slots=True)
class SlicedRead:
    """One sliced operand of an operator.

    Attributes:
        key: number of the value in this slicing.
        value: which value it is.
        index: which operand.
        storage: what it lies in.
        may_be_cut: whether the operator gets a copy where it asks for less than the slice holds.
        partial: whether it is a part of its storage.
    """

    key: int
    value: Operand
    index: int
    storage: int
    may_be_cut: bool
    partial: bool


@dataclass(frozen=True, slots=True)
class HaloOperator:
    """One operator in one slicing.

    Attributes:
        position: where it stands.
        transfer: how it is sliced.
        results: number and groups of each sliced result: entries of it for one of the operator's factor.
        made: index and storage of each result with a storage of its own.
        reads: its sliced operands.
        storages: what its operands lie in, those that it needs whole included.
        whole: the storages of those.
        source: for one result of the operator before it, which value that is.
        pads: whether an operand is padded before the kernel runs.
        views: whether its result may be a view of its operand.
        unread: number of what it computes if nobody reads it in the body.
        steps: its spans, by number of what it computes.
        shares: what it adds, by number of what it computes and by what is copied.
    """

    position: int
    transfer: OpSlicing
    results: tuple[tuple[int, int], ...]
    made: tuple[tuple[int, int], ...]
    reads: tuple[SlicedRead, ...]
    storages: tuple[int, ...]
    whole: frozenset[int]
    source: Operand | None
    pads: bool
    views: bool
    unread: int
    steps: dict[int, Numbered]
    shares: dict[tuple[int, Cuts], Share]


class HaloOperators:
    """The operators of one graph, and what they have been found to add.

    Args:
        evaluator: of the graph; what is offloaded makes no difference.
    """

    def __init__(self, evaluator: OpCosts) -> None:
        self.evaluator, self.view, self.table = evaluator, evaluator.view, evaluator.view.table
        self.spans = Spans()
        self._operators: dict[tuple[int, OpSlicing], HaloOperator] = {}
        self._keys: dict[tuple[Operand, Slicing], int] = {}
        self._alike: dict[Hashable, tuple[dict[int, Numbered], dict[tuple[int, Cuts], Share]]] = {}

    def key(self, value: Operand, slicing: Slicing) -> int:
        """A number for a value in one slicing."""
        return self._keys.setdefault((value, slicing), len(self._keys))

    def own(self, value: Operand, slicing: Slicing) -> int:
        """The span of what is written of an output."""
        return self.spans.number(own_part(slicing, entries(self.table, value, slicing)))

    def of(self, p: int, transfer: OpSlicing) -> HaloOperator:
        """An operator in one slicing."""
        found = self._operators.get((p, transfer))
        if found is None:
            found = self._operators[p, transfer] = self._make(p, transfer)
        return found

    def _make(self, p: int, transfer: OpSlicing) -> HaloOperator:
        view, table, storages = self.view, self.table, self.view.facts.storages
        pairs = list(zip(table.operands[p], transfer.operands, strict=True))
        reads = []
        for index, (value, slicing) in enumerate(pairs):
            if slicing is not None:
                tensor = view.tensor(value)
                partial = tensor.nbytes < storages[tensor.storage].nbytes
                cut = view.fits_by_copy(p, value, slicing)
                reads.append(SlicedRead(self.key(value, slicing), value, index, tensor.storage, cut, partial))
        made = tuple(
            (next(i for i, t in enumerate(view.facts.tensors[p]) if t.storage == storage), storage)
            for storage in view.made[p]
        )
        window = transfer.window
        pads = window is not None and window.pads and not pads_by_itself(view.facts.nodes[p].target)
        alike: Hashable = (
            self.evaluator.kind(p),
            transfer,
            self.evaluator.cut(p, transfer),
            tuple((index, storages[storage].nbytes) for index, storage in made),
            picks_result(table, p),
        )
        steps, shares = self._alike.setdefault(alike, ({}, {}))
        return HaloOperator(
            p,
            transfer,
            tuple(
                (self.key((p, r), s), s.inner // transfer.grain)
                for r, s in enumerate(transfer.results)
                if s is not None
            ),
            made,
            tuple(reads),
            tuple(view.tensor(value).storage for value in table.operands[p]),
            frozenset(view.tensor(value).storage for value, slicing in pairs if slicing is None),
            table.operands[p][0] if picks_result(table, p) else None,
            pads,
            view.may_be_view[p],
            self.spans.number(unread_core(table, p, transfer)),
            steps,
            shares,
        )

    def step(self, operator: HaloOperator, core: int) -> Numbered:
        """What an operator holds and asks for when it computes a span."""
        found = operator.steps.get(core)
        if found is None:
            step = step_of(self.table, operator.position, operator.transfer, self.spans[core])
            held = tuple(-1 if span is None else self.spans.number(span) for span in step.held)
            asked = tuple(self.spans.number(span) for span in step.asked if span is not None)
            found = operator.steps[core] = Numbered(held, asked, step)
        return found

    def share(self, operator: HaloOperator, core: int, cuts: Cuts, size: int) -> Share:
        """What an operator adds to a body.

        Args:
            operator: in one slicing.
            core: number of the span it computes.
            cuts: which of its sliced operands it gets as a copy of a part of a slice.
            size: of the axis.
        """
        found = operator.shares.get((core, cuts))
        if found is None:
            found = operator.shares[core, cuts] = self._share(operator, self.step(operator, core).step, cuts, size)
        return found

    def _edge_workspace(self, operator: HaloOperator, step: OperatorSpans, size: int) -> Floats:
        """What a kernel takes for the shortest slice, beyond what its results are smaller than the longest.

        On the CPU small convolutions unfold their input, which takes more than what large ones do.
        """
        evaluator, view, p, transfer = self.evaluator, self.view, operator.position, operator.transfer
        lengths = evaluator.grid(size)[1]

        def shortest(span: Span | None) -> Floats | None:
            return None if span is None else np.maximum(span.shortest(size, lengths), 1)

        results = [shortest(span) for span in step.held]
        counts = [shortest(span) for span in step.asked]
        if operator.pads:
            assert transfer.window is not None and results[0] is not None, "a window has one sliced result"
            counts = [None if count is None else transfer.window.reads(results[0]) for count in counts]
        smaller = np.zeros_like(lengths)
        for index, storage in operator.made:
            held, few, slicing = step.held[index], results[index], transfer.results[index]
            if held is not None and few is not None and slicing is not None:
                each = view.facts.storages[storage].nbytes / entries(self.table, (p, index), slicing)
                smaller = smaller + each * (evaluator.span(held, size)[0] - few)
        return evaluator.halo_workspace(p, transfer, counts, results) - smaller

    def _share(self, operator: HaloOperator, step: OperatorSpans, cuts: Cuts, size: int) -> Share:
        evaluator, view, machine = self.evaluator, self.view, self.evaluator.machine
        p, transfer = operator.position, operator.transfer
        slices = np.ceil(size / evaluator.grid(size)[1])

        def longest(span: Span) -> Floats:
            return evaluator.span(span, size)[0]

        span = step.held[0] or next(a for a in step.asked if a is not None)
        seconds = evaluator.seconds(p, size, transfer, evaluator.span(span, size)[1] / (span.inner * size))
        rows = []
        for index, storage in operator.made:
            nbytes, held, slicing = view.facts.storages[storage].nbytes, step.held[index], transfer.results[index]
            if held is None or slicing is None:
                rows.append(np.full_like(slices, nbytes))
            else:
                rows.append(nbytes * (longest(held) / entries(self.table, (p, index), slicing)))
        counts: list[Floats | None] = [None] * len(transfer.operands)
        for read, cut in zip(operator.reads, cuts, strict=True):
            asked, slicing = step.asked[read.index], transfer.operands[read.index]
            assert asked is not None and slicing is not None
            each = view.tensor(read.value).nbytes / entries(self.table, read.value, slicing)
            count = longest(asked)
            if cut:
                rows.append(each * count)
                seconds = seconds + 2 * each * evaluator.span(asked, size)[1] / machine.cache_bandwidth
                seconds = seconds + slices * machine.launch_seconds
            if operator.pads:
                assert transfer.window is not None and step.held[0] is not None, "a window has one sliced result"
                count = transfer.window.reads(longest(step.held[0]))
                rows.append(each * count)
                seconds = seconds + slices * machine.launch_seconds
            counts[read.index] = count
        results = [None if held is None else longest(held) for held in step.held]
        workspace = evaluator.halo_workspace(p, transfer, counts, results)
        if view.facts.device_type == "cpu":
            workspace = np.maximum(workspace, self._edge_workspace(operator, step, size))
        rows.append(workspace)
        spans = {span for span in (*step.held, *step.asked) if span is not None}
        fits = np.logical_and.reduce([evaluator.span(span, size)[2] for span in spans])
        return Share(seconds, np.array(rows), None if fits.all() else fits)
