"""Halos: what each value of a loop's body holds for one slice, worked out backwards from what is written.

The outputs of a region ask for their own part. Every operator asks its operands for what its result needs: the same
entries where slicing commutes, more on both sides where a window runs over the axis. A value holds the hull of all that
is asked of it, and a reader that needs less narrows it.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sicompiler.axes.factor_map import Kind, Slicing, Window
from sicompiler.axes.span import Floats, Span
from sicompiler.axes.table import AxisTable, Operand, Transfer


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


def demand(table: AxisTable, sliced: Mapping[int, Transfer], outputs: Collection[Operand]) -> Halos:
    """Work out the spans of a region.

    Args:
        table: of the graph.
        sliced: transfers of the operators in the body, by position.
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
        for r, slicing in enumerate(transfer.results):
            if slicing is not None:
                held[(p, r)] = core.times(slicing.inner // transfer.grain)
        for index, (value, slicing) in enumerate(zip(table.operands[p], transfer.operands, strict=True)):
            if slicing is None:
                continue
            if transfer.window is None:
                span = core.times(slicing.inner // transfer.grain)
            else:
                span = through(transfer.window, core, entries(table, value, slicing))
            asked[(p, index)] = span
            wanted[(value, slicing)] = span.hull(wanted.get((value, slicing)))
    for p in sorted(sliced):  # one result of an operator in the body is as long as the operator made it
        source = table.operands[p][0] if table.facts.nodes[p].target is operator.getitem else None
        if source in held:
            held[(p, 0)] = asked[(p, 0)] = held[source]
    reads = {key: span for key, span in wanted.items() if key[0][0] not in sliced}
    return Halos(held, asked, reads, own)


def _core(table: AxisTable, p: int, transfer: Transfer, wanted: Mapping[tuple[Operand, Slicing], Span]) -> Span:
    """What an operator has to compute, in entries of its factor; its own part where nobody reads it in the body."""
    found: Span | None = None
    for r, slicing in enumerate(transfer.results):
        if slicing is not None and ((p, r), slicing) in wanted:
            found = wanted[((p, r), slicing)].over(slicing.inner // transfer.grain).hull(found)
    if found is None and transfer.kind is not Kind.MERGE:
        slicing = transfer.results[0]
        assert slicing is not None
        found = own_part(slicing, entries(table, (p, 0), slicing)).over(slicing.inner // transfer.grain)
    if found is None:
        slicing = next(s for s in transfer.operands if s is not None)
        found = Span(transfer.grain, 0, 0, transfer.grain * slicing.size)
    return found
