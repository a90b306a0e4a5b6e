"""Peak and time of a region whose values have halos, counted from scratch: what the planner's running sums must equal.

Nothing is remembered from one region to the next, and what is computed before the loop is counted anew as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sicompiler.axes.factor_map import Slicing
from sicompiler.axes.padding import pads_by_itself
from sicompiler.axes.span import Span
from sicompiler.axes.table import Operand
from sicompiler.facts.storages import Origin
from sicompiler.planners.op_costs import Floats, OpCosts
from sicompiler.regions.builder import RegionBuilder
from sicompiler.regions.halo import Halos, entries


class _Moments:
    """Live bytes and slices over the moments of a body: two an operator, before its kernel runs and while it does."""

    def __init__(self, positions: Sequence[int], num_lengths: int) -> None:
        self.index = {p: 2 * number for number, p in enumerate(positions)}
        self.last = 2 * len(positions) - 1
        self._bytes = np.zeros((num_lengths, 2 * len(positions) + 1))
        self._count = np.zeros(2 * len(positions) + 1)

    def before(self, p: int) -> int:
        """When the operands of an operator are cut and padded."""
        return self.index[p]

    def during(self, p: int) -> int:
        """When its kernel runs."""
        return self.index[p] + 1

    def live(self, nbytes: Floats, first: int, last: int) -> None:
        """Something of so many bytes, per slice length, is alive from one moment to another."""
        self._bytes[:, first] += nbytes
        self._bytes[:, last + 1] -= nbytes
        self._count[first] += 1
        self._count[last + 1] -= 1

    def highest(self, granule: int) -> Floats:
        """Most live bytes at any moment, rounded as the allocator rounds."""
        total = self._bytes.cumsum(axis=1)
        if granule > 1:
            total = total + granule * self._count.cumsum()[None, :]
        return np.asarray(total[:, :-1].max(axis=1))


class PlainRegionCost:
    """One region that ends where it stands.

    Args:
        evaluator: of the graph.
        walk: the region, grown as far as it goes.
    """

    def __init__(self, evaluator: OpCosts, walk: RegionBuilder) -> None:
        self.evaluator, self.walk, self.view, self.table = evaluator, walk, evaluator.view, evaluator.view.table
        halos = walk.halos()
        assert halos is not None, "a region without a window has no halos"
        self.halos: Halos = halos
        self.lengths = evaluator.grid(walk.size)[1]
        self.slices = np.ceil(walk.size / self.lengths)
        self.positions = sorted(walk.sliced)
        self.moments = _Moments(self.positions, len(self.lengths))

    def longest(self, span: Span) -> Floats:
        """Most entries that a slice holds."""
        return self.evaluator.span(span, self.walk.size)[0]

    def total(self, span: Span) -> Floats:
        """Entries that all slices hold together."""
        return self.evaluator.span(span, self.walk.size)[1]

    def evaluate(self) -> tuple[npt.NDArray[np.int64], Floats]:
        """Peak and time, per slice length; a peak beyond all bounds where a slice would be empty."""
        walk, view, machine = self.walk, self.view, self.evaluator.machine
        seconds = np.zeros_like(self.lengths)
        for p in self.positions:
            seconds += self._operator(p)
        offloaded_bytes = (
            view.bytes_of(view.fetched_by_loop(walk.start, walk.hoisted, walk.sliced)) if view.offloaded else 0
        )
        whole_bytes, moved, copies, carried = self._outputs()
        whole_bytes, carried = whole_bytes + offloaded_bytes, carried + offloaded_bytes
        for (q, r, slicing), positions in walk.reads.items():
            tensor = view.tensor((q, r))
            span = self.halos.reads[(q, r), slicing]
            share = self.total(span) / entries(self.table, (q, r), slicing)
            if walk.is_offloaded((q, r)):  # this slice, and the next, which comes meanwhile
                nbytes = tensor.nbytes * self.longest(span) / entries(self.table, (q, r), slicing)
                self.moments.live(2 * nbytes, 0, self.moments.last)
                carried = carried + tensor.nbytes * share
                continue
            if view.facts.storages[tensor.storage].origin is not Origin.WEIGHT:
                moved = moved + tensor.nbytes * share * self.evaluator.waste(tensor, slicing)
            if walk.copies((q, r, slicing)):
                last = max(max(positions), walk.last_needed(tensor.storage, walk.stop))
                nbytes = tensor.nbytes * self.longest(span) / entries(self.table, (q, r), slicing)
                self.moments.live(nbytes, self.moments.before(min(positions)), self.moments.during(last))
                copies = copies + tensor.nbytes * share * self.evaluator.waste(tensor, slicing)
        hoist_peak, hoisted_bytes, hoist_seconds = hoisted(self.evaluator, walk)
        base = int(self.evaluator.line.crossing_bytes[walk.start])
        body = self.moments.highest(self.evaluator.granule)
        before = base + offloaded_bytes + hoist_peak
        peak = np.maximum(np.ceil(base + whole_bytes + hoisted_bytes + body), before).astype(np.int64)
        seconds = seconds + hoist_seconds + moved / machine.memory_bandwidth + 2 * copies / machine.cache_bandwidth
        seconds = seconds + self.slices * machine.launch_seconds * (len(walk.reads) + 1)
        seconds = self.evaluator.transfer(seconds, carried) if view.offloaded else seconds
        fits = np.logical_and.reduce([self.evaluator.span(span, walk.size)[2] for span in self.halos.spans])
        return np.where(fits, peak, np.iinfo(np.int64).max), np.where(fits, machine.doubt * seconds, np.inf)

    def _operator(self, p: int) -> Floats:
        """Count what an operator makes, its workspace and what its operands are cut and padded to; its time."""
        walk, view, transfer, machine = self.walk, self.view, self.walk.sliced[p], self.evaluator.machine
        during, size = self.moments.during(p), walk.size
        held = self.halos.held.get((p, 0))
        asked = [self.halos.asked.get((p, index)) for index in range(len(transfer.operands))]
        span = held or next(a for a in asked if a is not None)
        seconds = self.evaluator.seconds(p, size, transfer, self.total(span) / (span.inner * size))
        for storage in view.made[p]:
            nbytes = view.facts.storages[storage].nbytes
            index = next(i for i, t in enumerate(view.facts.tensors[p]) if t.storage == storage)
            slicing = transfer.results[index]
            if slicing is None:
                self.moments.live(np.full_like(self.lengths, nbytes), during, during)
                continue
            share = self.longest(self.halos.held[(p, index)]) / entries(self.table, (p, index), slicing)
            self.moments.live(nbytes * share, during, self._end(storage, p))
        counts: list[Floats | None] = []
        for index, (value, slicing) in enumerate(zip(self.table.operands[p], transfer.operands, strict=True)):
            wanted = asked[index]
            if slicing is None or wanted is None:
                counts.append(None)
                continue
            each = view.tensor(value).nbytes / entries(self.table, value, slicing)
            count, before = self.longest(wanted), self.moments.before(p)
            padded = self._is_padded(p)
            if self._is_cut(p, index, value, slicing):
                last = during if not view.may_be_view[p] else self._end(view.tensor(value).storage, p)
                self.moments.live(each * count, before, before if padded else last)
                seconds = seconds + 2 * each * self.total(wanted) / machine.cache_bandwidth
                seconds = seconds + self.slices * machine.launch_seconds
            if padded and transfer.window is not None and held is not None:
                count = transfer.window.reads(self.longest(held))
                self.moments.live(each * count, before, during)
                seconds = seconds + self.slices * machine.launch_seconds
            counts.append(count)
        results = [None if s is None else self.longest(self.halos.held[(p, r)]) for r, s in enumerate(transfer.results)]
        self.moments.live(self.evaluator.halo_workspace(p, transfer, counts, results), during, during)
        return seconds

    def _is_padded(self, p: int) -> bool:
        """Whether an operand is padded before the kernel runs."""
        window, target = self.walk.sliced[p].window, self.view.facts.nodes[p].target
        return window is not None and window.pads and not pads_by_itself(target)

    def _is_cut(self, p: int, index: int, value: Operand, slicing: Slicing) -> bool:
        """Whether an operator gets a copy of some entries of a slice that holds more."""
        inside = value[0] in self.walk.sliced
        held = self.halos.held[value] if inside else self.halos.reads[value, slicing]
        return self.halos.asked[(p, index)] != held and self.view.fits_by_copy(p, value, slicing)

    def _end(self, storage: int, p: int) -> int:
        """The moment up to which a storage lives that is made, or copied, at an operator of the body."""
        last = self.walk.last_needed(storage, self.walk.stop)
        if last <= p:
            return self.moments.during(p)
        transfer = self.walk.sliced[last]
        for index, (value, slicing) in enumerate(zip(self.table.operands[last], transfer.operands, strict=True)):
            tensor = self.view.tensor(value)
            if tensor.storage != storage:
                continue
            if slicing is None or tensor.nbytes < self.view.facts.storages[storage].nbytes:
                return self.moments.during(last)
            whole = self.halos.asked[(last, index)] == self.halos.held.get(value)
            if not self._is_cut(last, index, value, slicing) and not (whole and self._is_padded(last)):
                return self.moments.during(last)
        # The kernel reads a copy. (Between the borders the padding is none, and the copy is the slice itself.)
        return self.moments.before(last) if not self.view.may_be_view[last] else self.moments.during(last)

    def _outputs(self) -> tuple[int, Floats, Floats, Floats]:
        """Count the slices that wait to be written; bytes of whole results, of what is written, copied, offloaded."""
        walk, view = self.walk, self.view
        whole_bytes, taken = 0, set[int]()
        carried = np.zeros_like(self.lengths)
        moved, copies = np.zeros_like(self.lengths), np.zeros_like(self.lengths)
        for p in self.positions:
            for value, slicing in walk.live_out(p, walk.stop):
                storage = view.tensor(value).storage
                nbytes = view.facts.storages[storage].nbytes
                if slicing is None:
                    whole_bytes += nbytes
                    moved += nbytes
                    continue
                count, own, held = entries(self.table, value, slicing), self.halos.own[value], self.halos.held[value]
                written, end = self.moments.during(p), self._end(storage, p)
                if walk.offloads(value):  # waits to be stored, and the slice before may still be
                    nbytes_held = nbytes * self.longest(held) / count
                    if end < self.moments.last:
                        self.moments.live(nbytes_held, end + 1, self.moments.last)
                    self.moments.live(nbytes_held, 0, self.moments.last)
                    if own != held and slicing.outer > 1:
                        self.moments.live(2 * nbytes * self.longest(own) / count, 0, self.moments.last)
                    carried += nbytes * self.total(own) / count
                    continue
                moved += nbytes * self.total(own) / count * self.evaluator.waste(view.tensor(value), slicing)
                reuse = walk.reusable(value, slicing, walk.stop, taken, self.halos)
                if reuse is None:
                    whole_bytes += nbytes
                else:  # written when the input's slice has been read for the last time
                    taken.add(view.tensor(reuse).storage)
                    written = self.moments.last
                    if end < written:
                        self.moments.live(nbytes * self.longest(held) / count, end + 1, written)
                if own != held and slicing.outer > 1:
                    self.moments.live(nbytes * self.longest(own) / count, written, written)
                    copies += nbytes * self.total(own) / count
        return whole_bytes, moved, copies, carried


def hoisted(evaluator: OpCosts, walk: RegionBuilder) -> tuple[int, int, float]:
    """Peak above the base while hoisted operators run, what of them stays for the loop, and their time."""
    view, stop = evaluator.view, walk.stop
    current = peak = kept = 0
    seconds = 0.0
    dying: dict[int, int] = {}  # bytes that go after an operator, by its position
    for p in sorted(walk.hoisted):
        made = view.made[p]
        if made:
            seconds += float(evaluator.whole[p])
            current += sum(view.facts.storages[s].nbytes for s in made)
            peak = max(peak, current + int(evaluator.line.workspace_bytes[p]))
        for s in made:
            if view.lives.last[s] >= stop or walk.last_needed(s, stop) >= 0:
                kept += view.facts.storages[s].nbytes
            else:
                dying[view.lives.last[s]] = dying.get(view.lives.last[s], 0) + view.facts.storages[s].nbytes
        older = sum(view.facts.storages[s].nbytes for s in _last_read_before_the_loop(walk, p))
        kept -= older
        current -= dying.pop(p, 0) + older
    return peak, kept, seconds


def _last_read_before_the_loop(walk: RegionBuilder, p: int) -> set[int]:
    """Storages of values made before a region that a hoisted operator is the last to read."""
    view = walk.view
    read = {view.tensor(value).storage for value in view.table.operands[p]} - set(view.offloaded)
    made_before = {s for s in read if view.facts.storages[s].origin is Origin.VALUE and view.born[s] < walk.start}
    return {s for s in made_before if view.lives.last[s] == p and walk.last_needed(s, walk.stop) < 0}
