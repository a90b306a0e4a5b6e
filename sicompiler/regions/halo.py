"""Halos: how much of each value a loop's body needs for one slice of the outputs, propagated from outputs to inputs.

An output needs its own slice. An operator that commutes with slicing needs the same entries of its operands; one with a
window (a convolution, pooling, resampling) needs more on both sides: its halo. Where several readers ask for a value,
it holds the hull of their spans, and a reader that needs less narrows it.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sicompiler.axes.factor_map import FactorKind, Slicing, Window
from sicompiler.axes.span import Floats, Span
from sicompiler.axes.table import AxisTable, Operand, OpSlicing


@dataclass(frozen=True)
class Halos:
    """The spans of one region.

    Attributes:
        held: of each sliced value that the body makes.
        asked: of each sliced operand of the body's operators, by position and index.
        reads: of each whole value that the body narrows: the hull of what is asked of it.
        own: of each output, what is written of it.
    """

    held: Mapping[Operand, Span]
    asked: Mapping[tuple[int, int], Span]
    reads: Mapping[tuple[Operand, Slicing], Span]
    own: Mapping[Operand, Span]

    @property
    def spans(self) -> set[Span]:
        """Every span that must hold something in every slice."""
        return {*self.held.values(), *self.asked.values(), *self.own.values()}

    def fits(self, size: int, lengths: Floats) -> list[bool]:
        """For each slice length, whether every value of the body holds something in every slice."""
        shortest = [span.shortest(size, lengths) for span in self.spans]
        return [all(found[index] >= 1 for found in shortest) for index in range(len(lengths))]


@dataclass(frozen=True)
class OperatorSpans:
    """The spans of one operator of a body.

    Attributes:
        held: of each result; None for what is not sliced.
        asked: of each operand; None for those needed whole.
    """

    held: tuple[Span | None, ...]
    asked: tuple[Span | None, ...]


def entries(table: AxisTable, value: Operand, slicing: Slicing) -> int:
    """Entries of the axis in a whole value: `size * inner`, or more or fewer where it is padded or cut short."""
    return table.facts.tensors[value[0]][value[1]].shape[slicing.dim] // slicing.outer


def own_part(slicing: Slicing, count: int) -> Span:
    """The slices of a whole value of `count` entries: all of them; the parts of a padded value overlap."""
    return Span(slicing.inner, 0, max(0, count - slicing.size * slicing.inner), count)


def through(window: Window, span: Span, count: int) -> Span:
    """What a window reads of an operand with `count` entries so that its result holds `span`."""
    reach = window.dilation * (window.kernel - 1) + 1 - window.stride - window.pad_lo
    return Span(
        span.inner * window.stride,
        span.lo * window.stride + window.pad_lo,
        span.hi * window.stride + reach,
        min(count, span.limit * window.stride + reach),
    )


def demand(table: AxisTable, sliced: Mapping[int, OpSlicing], outputs: Collection[Operand]) -> Halos:
    """Work out the spans of a region.

    Args:
        table: of the graph.
        sliced: how each operator in the body is sliced, by position.
        outputs: sliced values that are needed after the loop; statistics left out.
    """
    held: dict[Operand, Span] = {}
    asked: dict[tuple[int, int], Span] = {}
    wanted: dict[tuple[Operand, Slicing], Span] = {}
    own: dict[Operand, Span] = {}
    for value in outputs:
        slicing = sliced[value[0]].results[value[1]]
        assert slicing is not None, "statistics are not written slice by slice"
        own[value] = own_part(slicing, entries(table, value, slicing))
        wanted[(value, slicing)] = own[value]
    for p in sorted(sliced, reverse=True):
        transfer = sliced[p]
        core = _core(table, p, transfer, wanted)
        step = step_of(table, p, transfer, core)
        held.update({(p, r): span for r, span in enumerate(step.held) if span is not None})
        for index, (value, slicing) in enumerate(zip(table.operands[p], transfer.operands, strict=True)):
            span = step.asked[index]
            if slicing is not None and span is not None:
                asked[(p, index)] = span
                wanted[(value, slicing)] = span.hull(wanted.get((value, slicing)))
    for p in sorted(sliced):  # one result of an operator in the body is as long as the operator made it
        source = table.operands[p][0] if picks_result(table, p) else None
        if source in held:
            held[(p, 0)] = asked[(p, 0)] = held[source]
    reads = {key: span for key, span in wanted.items() if key[0][0] not in sliced}
    return Halos(held, asked, reads, own)


def picks_result(table: AxisTable, p: int) -> bool:
    """Whether an operator is nothing but one result of the operator before it."""
    return table.facts.nodes[p].target is operator.getitem


def step_of(table: AxisTable, p: int, transfer: OpSlicing, core: Span) -> OperatorSpans:
    """What an operator holds and asks for when it computes `core`, in entries of its factor."""
    held = [None if s is None else core.times(s.inner // transfer.grain) for s in transfer.results]
    asked: list[Span | None] = []
    for value, slicing in zip(table.operands[p], transfer.operands, strict=True):
        if slicing is None:
            asked.append(None)
        elif transfer.window is None:
            asked.append(core.times(slicing.inner // transfer.grain))
        else:
            asked.append(through(transfer.window, core, entries(table, value, slicing)))
    return OperatorSpans(tuple(held), tuple(asked))


def unread_core(table: AxisTable, p: int, transfer: OpSlicing) -> Span:
    """What an operator computes that nobody reads in the body: its own part."""
    if transfer.kind is FactorKind.MERGE:
        slicing = next(s for s in transfer.operands if s is not None)
        return Span(transfer.grain, 0, 0, transfer.grain * slicing.size)
    first = transfer.results[0]
    assert first is not None
    return own_part(first, entries(table, (p, 0), first)).over(first.inner // transfer.grain)


def _core(table: AxisTable, p: int, transfer: OpSlicing, wanted: Mapping[tuple[Operand, Slicing], Span]) -> Span:
    """What an operator has to compute, in entries of its factor."""
    found: Span | None = None
    for r, slicing in enumerate(transfer.results):
        if slicing is not None and ((p, r), slicing) in wanted:
            found = wanted[((p, r), slicing)].over(slicing.inner // transfer.grain).hull(found)
    return unread_core(table, p, transfer) if found is None else found
