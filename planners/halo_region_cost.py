"""Peak and seconds of a region whose values have halos, at each position where it may end.

How much a value holds depends on all operators after it, so no sum over a region can be extended to a longer one. What
does extend is the set of operators and who reads what; the cost of each operator is looked up by the span that it
computes (`HaloOperators`). Regions without a window are those of `region_cost`.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from sicompiler.axes.factor_map import Slicing
from sicompiler.axes.table import Operand
from sicompiler.facts.storages import Origin
from sicompiler.planners.halo_operators import Cuts, HaloOperator, HaloOperators, Numbered
from sicompiler.planners.hoisted import Hoisted
from sicompiler.planners.op_costs import Floats, OpCosts
from sicompiler.regions.builder import RegionBuilder
from sicompiler.regions.halo import Halos, entries


class _Moments:
    """Live bytes and slices over the moments of a body: two an operator, before its kernel runs and while it does."""

    def __init__(self, num_operators: int) -> None:
        self.last = 2 * num_operators - 1
        self._nbytes: list[Floats] = []
        self._first: list[int] = []
        self._last: list[int] = []

    def rows(self, nbytes: Floats) -> None:
        """Something of so many bytes, per slice length, for each of the next calls of `during`, a row each."""
        self._nbytes.append(nbytes)

    def during(self, first: int, last: int) -> None:
        """The next row is alive from one moment to another."""
        self._first.append(first)
        self._last.append(last)

    def live(self, nbytes: Floats, first: int, last: int) -> None:
        """Something of so many bytes, per slice length, is alive from one moment to another."""
        self.rows(nbytes[None])
        self.during(first, last)

    def highest(self, granule: int) -> Floats:
        """Most live bytes at any moment, rounded as the allocator rounds."""
        nbytes = np.concatenate(self._nbytes)
        change, moments = np.empty((2 * len(nbytes), nbytes.shape[1])), np.empty(2 * len(nbytes), dtype=np.intp)
        change[::2], change[1::2] = nbytes, -nbytes
        moments[::2], moments[1::2] = self._first, self._last
        moments[1::2] += 1
        total = np.zeros((self.last + 2, nbytes.shape[1]))
        np.add.at(total, moments, change)
        total = total.cumsum(axis=0)
        if granule > 1:
            count = np.bincount(moments[::2], minlength=len(total)) - np.bincount(moments[1::2], minlength=len(total))
            total = total + granule * count.cumsum()[:, None]
        return np.asarray(total[:-1].max(axis=0))


class HaloRegionCost:
    """What is known of one growing region, so that its peak and time at each end cost little.

    Args:
        evaluator: of the graph.
        walk: the region, grown by the caller, who calls `add` for what it has sliced.
    """

    def __init__(self, evaluator: OpCosts, walk: RegionBuilder) -> None:
        self.evaluator, self.walk, self.view, self.table = evaluator, walk, evaluator.view, evaluator.view.table
        self.operators: HaloOperators = evaluator.remembered(HaloOperators)
        self.spans = self.operators.spans
        self.lengths = evaluator.grid(walk.size)[1]
        self.slices = np.ceil(walk.size / self.lengths)
        self.body: dict[int, HaloOperator] = {}  # by position, in order
        self.readers: dict[int, int] = {}  # last of the body that reads each storage
        self.outlive: dict[int, int] = {}  # who makes each storage that is needed after the body

    def add(self, positions: Iterable[int]) -> None:
        """Take in what the region has sliced."""
        last = next(reversed(self.body), -1)
        for p in positions:
            operator = self.body[p] = self.operators.of(p, self.walk.sliced[p])
            for storage in operator.storages:
                self.readers[storage] = max(p, self.readers.get(storage, p))
            for _, storage in operator.made:
                self.outlive[storage] = p
            in_order, last = p > last, p
            if not in_order:  # sliced backwards
                self.body, last = dict(sorted(self.body.items())), max(self.body)

    def evaluate(self, hoisted: Hoisted) -> tuple[npt.NDArray[np.int64], Floats]:
        """Peak and time if the region ended here, per slice length; a peak beyond all bounds where a slice is empty.

        Args:
            hoisted: what is computed before the loop.
        """
        last = self.view.lives.last
        for storage in [s for s in self.outlive if last[s] < self.walk.stop]:
            del self.outlive[storage]
        return _End(self).evaluate(hoisted)


class _End:
    """A region that ends where it stands."""

    def __init__(self, tally: HaloRegionCost) -> None:
        self.tally, self.walk, self.view = tally, tally.walk, tally.view
        self.evaluator, self.spans, self.lengths = tally.evaluator, tally.spans, tally.lengths
        self.written = [
            (value, slicing)
            for p in sorted(set(tally.outlive.values()))
            for value, slicing in self.walk.live_out(p, self.walk.stop)
        ]
        self.wanted: dict[int, int] = {}  # what is asked of each value, by number: at last the hull of all
        self.cores: dict[int, int] = {}  # what each operator computes
        self.steps: dict[int, Numbered] = {}
        self.cuts: dict[int, Cuts] = {}
        self._ask()
        self._cut()
        self.order = {p: number for number, p in enumerate(tally.body)}
        self.moments = _Moments(len(self.order))

    def _ask(self) -> None:
        """Work out what each operator has to compute, backwards from what is written."""
        operators, spans, wanted = self.tally.operators, self.spans, self.wanted
        for value, slicing in self.written:
            if slicing is not None:
                wanted[operators.key(value, slicing)] = operators.own(value, slicing)
        for p, operator in reversed(self.tally.body.items()):
            core = -1
            for key, groups in operator.results:
                span = wanted.get(key, -1)
                if span >= 0:
                    span = spans.over(span, groups)
                    core = span if core < 0 else spans.hull(span, core)
            core = operator.unread if core < 0 else core
            step = operators.step(operator, core)
            for read, span in zip(operator.reads, step.asked, strict=True):
                before = wanted.get(read.key, span)
                wanted[read.key] = span if before == span else spans.hull(span, before)
            self.cores[p], self.steps[p] = core, step

    def _cut(self) -> None:
        """Find out which operands are copies of a part of a slice that holds more."""
        steps, wanted = self.steps, self.wanted
        for p, operator in self.tally.body.items():
            if operator.source is not None and operator.source[0] in steps:
                # One result of an operator in the body is as long as the operator made it.
                held = steps[operator.source[0]].held[operator.source[1]]
                if held >= 0:
                    self.cores[p], steps[p] = held, self.tally.operators.step(operator, held)
            self.cuts[p] = tuple(
                read.may_be_cut
                and span != (steps[read.value[0]].held[read.value[1]] if read.value[0] in steps else wanted[read.key])
                for read, span in zip(operator.reads, steps[p].asked, strict=True)
            )

    def evaluate(self, hoisted: Hoisted) -> tuple[npt.NDArray[np.int64], Floats]:
        """Peak and time, per slice length."""
        walk, view, machine, evaluator = self.walk, self.view, self.evaluator.machine, self.evaluator
        shares = [
            self.tally.operators.share(operator, self.cores[p], self.cuts[p], walk.size)
            for p, operator in self.tally.body.items()
        ]
        for share, operator in zip(shares, self.tally.body.values(), strict=True):
            self.moments.rows(share.nbytes)
            self._live(operator)
        seconds = np.cumsum([share.seconds for share in shares], axis=0)[-1]
        fits = np.logical_and.reduce([self._writes_something(), *(s.fits for s in shares if s.fits is not None)])
        offloaded_bytes = (
            view.bytes_of(view.fetched_by_loop(walk.start, walk.hoisted, walk.sliced)) if view.offloaded else 0
        )
        whole_bytes, moved, copies, carried = self._outputs()
        whole_bytes, carried = whole_bytes + offloaded_bytes, carried + offloaded_bytes
        for (q, r, slicing), positions in walk.reads.items():
            tensor = view.tensor((q, r))
            number, count = self.wanted[self.tally.operators.key((q, r), slicing)], self._entries((q, r), slicing)
            share_read = self._total(number) / count
            if walk.is_offloaded((q, r)):  # this slice, and the next, which comes meanwhile
                self.moments.live(2 * (tensor.nbytes * self._longest(number) / count), 0, self.moments.last)
                carried = carried + tensor.nbytes * share_read
                continue
            if view.facts.storages[tensor.storage].origin is not Origin.WEIGHT:
                moved = moved + tensor.nbytes * share_read * evaluator.waste(tensor, slicing)
            if walk.copies((q, r, slicing)):
                last = max(max(positions), self.tally.readers[tensor.storage])
                nbytes = tensor.nbytes * self._longest(number) / count
                self.moments.live(nbytes, self._before(min(positions)), self._during(last))
                copies = copies + tensor.nbytes * share_read * evaluator.waste(tensor, slicing)
        base = int(evaluator.line.crossing_bytes[walk.start])
        before = base + offloaded_bytes + hoisted.peak_bytes
        body = self.moments.highest(evaluator.granule)
        peak = np.maximum(np.ceil(base + whole_bytes + hoisted.kept_bytes + body), before).astype(np.int64)
        seconds = seconds + hoisted.seconds + moved / machine.memory_bandwidth + 2 * copies / machine.cache_bandwidth
        seconds = seconds + self.tally.slices * machine.launch_seconds * (len(walk.reads) + 1)
        seconds = evaluator.transfer(seconds, carried) if view.offloaded else seconds
        return np.where(fits, peak, np.iinfo(np.int64).max), np.where(fits, machine.doubt * seconds, np.inf)

    def _writes_something(self) -> npt.NDArray[np.bool_]:
        """Whether every slice writes a part of every output, per slice length: of a shorter output, some would not."""
        own = [self.tally.operators.own(value, slicing) for value, slicing in self.written if slicing is not None]
        fits = [self.evaluator.span(self.spans[number], self.walk.size)[2] for number in own]
        return np.asarray(np.logical_and.reduce([self.lengths > 0, *fits]))

    def _longest(self, number: int) -> Floats:
        """Most entries that a slice holds."""
        return self.evaluator.span(self.spans[number], self.walk.size)[0]

    def _total(self, number: int) -> Floats:
        """Entries that all slices hold together."""
        return self.evaluator.span(self.spans[number], self.walk.size)[1]

    def _entries(self, value: Operand, slicing: Slicing) -> int:
        return entries(self.view.table, value, slicing)

    def _before(self, p: int) -> int:
        """The moment when the operands of an operator are cut and padded."""
        return 2 * self.order[p]

    def _during(self, p: int) -> int:
        """The moment when its kernel runs."""
        return 2 * self.order[p] + 1

    def _live(self, operator: HaloOperator) -> None:
        """Say how long what an operator makes, its workspace and what its operands are cut and padded to are alive."""
        p, during = operator.position, self.moments.during
        before = self._before(p)
        runs = before + 1
        for index, storage in operator.made:
            sliced = operator.transfer.results[index] is not None
            during(runs, self._end(storage, p) if sliced else runs)
        for read, cut in zip(operator.reads, self.cuts[p], strict=True):
            if cut and operator.pads:
                during(before, before)
            elif cut:
                during(before, self._end(read.storage, p) if operator.views else runs)
            if operator.pads:
                during(before, runs)
        during(runs, runs)

    def _end(self, storage: int, p: int) -> int:
        """The moment up to which a storage lives that is made, or copied, at an operator of the body."""
        last = self.tally.readers.get(storage, -1)
        if last <= p:
            return self._during(p)
        reader, step = self.tally.body[last], self.steps[last]
        if storage in reader.whole:
            return self._during(last)
        for read, span, cut in zip(reader.reads, step.asked, self.cuts[last], strict=True):
            if read.storage == storage and not cut:
                maker = self.steps.get(read.value[0])
                whole = maker is not None and span == maker.held[read.value[1]]
                if read.partial or not (whole and reader.pads):
                    return self._during(last)
            elif read.storage == storage and read.partial:
                return self._during(last)
        # The kernel reads a copy. (Between the borders the padding is none, and the copy is the slice itself.)
        return self._before(last) if not reader.views else self._during(last)

    def _outputs(self) -> tuple[int, Floats, Floats, Floats]:
        """Count the slices that wait to be written; bytes of whole results, of what is written, copied, offloaded."""
        walk, view, moments = self.walk, self.view, self.moments
        whole_bytes, taken, halos = 0, set[int](), self._borders()
        carried = np.zeros_like(self.lengths)
        moved, copies = np.zeros_like(self.lengths), np.zeros_like(self.lengths)
        for value, slicing in self.written:
            storage = view.tensor(value).storage
            nbytes = view.facts.storages[storage].nbytes
            if slicing is None:
                whole_bytes += nbytes
                moved += nbytes
                continue
            count, own = self._entries(value, slicing), self.tally.operators.own(value, slicing)
            held = self.steps[value[0]].held[value[1]]
            written, end = self._during(value[0]), self._end(storage, value[0])
            if walk.offloads(value):  # waits to be stored, and the slice before may still be
                nbytes_held = nbytes * self._longest(held) / count
                if end < moments.last:
                    moments.live(nbytes_held, end + 1, moments.last)
                moments.live(nbytes_held, 0, moments.last)
                if own != held and slicing.outer > 1:
                    moments.live(2 * nbytes * self._longest(own) / count, 0, moments.last)
                carried += nbytes * self._total(own) / count
                continue
            moved += nbytes * self._total(own) / count * self.evaluator.waste(view.tensor(value), slicing)
            reuse = walk.reusable(value, slicing, walk.stop, taken, halos)
            if reuse is None:
                whole_bytes += nbytes
            else:  # written when the input's slice has been read for the last time
                taken.add(view.tensor(reuse).storage)
                written = moments.last
                if end < written:
                    moments.live(nbytes * self._longest(held) / count, end + 1, written)
            if own != held and slicing.outer > 1:
                moments.live(nbytes * self._longest(own) / count, written, written)
                copies += nbytes * self._total(own) / count
        return whole_bytes, moved, copies, carried

    def _borders(self) -> Halos:
        """What is written and read of whole values; nothing of what lies between."""
        operators, spans = self.tally.operators, self.spans
        own = {value: spans[operators.own(value, s)] for value, s in self.written if s is not None}
        reads = {((q, r), s): spans[self.wanted[operators.key((q, r), s)]] for q, r, s in self.walk.reads}
        return Halos({}, {}, reads, own)
