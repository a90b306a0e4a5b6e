"""Peak and seconds of a growing region without halos, at each position where it may end."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sicompiler.axes.factor_map import Slicing
from sicompiler.axes.table import Operand, OpSlicing
from sicompiler.facts.storages import Origin
from sicompiler.planners.halo_region_cost import HaloRegionCost
from sicompiler.planners.hoisted import Hoisted
from sicompiler.planners.op_costs import Floats, OpCosts
from sicompiler.regions.builder import RegionBuilder

MAX_OPERATORS = 96  # of one region; longer ones gain nothing, and an axis of the whole graph is the outer loop's
MAX_SPAN = 8 * MAX_OPERATORS  # the same, views counted
MAX_WINDOWS = 12  # of one region: every window makes the halos of all that comes before it longer


_Result = tuple[int, Operand, bool]  # a storage needed after a body, which value it is, whether it takes over an input


@dataclass(frozen=True)
class _BodyCost:
    """What a body takes and moves.

    Attributes:
        bytes: most that is alive at once of slices and workspace, per slice length.
        whole_bytes: of results that take over no input.
        through: bytes to and from main memory, per slice length.
        copied: bytes of slices that are copied, per slice length.
        moved: bytes from and to offload memory.
    """

    bytes: Floats
    whole_bytes: int
    through: Floats
    copied: Floats
    moved: int


@dataclass(frozen=True)
class _Read:
    """A whole value that the body reads in slices.

    Attributes:
        storage: what it lies in.
        nbytes: of it.
        moved: bytes that reading it moves, per slice length.
        is_offloaded, is_weight: whether it comes out of offload memory; whether it is one.
        readers: how many operators read it.
        copied: whether its slices are copied for them.
    """

    storage: int
    nbytes: int
    moved: Floats
    is_offloaded: bool
    is_weight: bool
    readers: int
    copied: bool


class RegionCost:
    """Running sums over one growing region, so that its peak and time at each end cost little.

    Args:
        evaluator: of the graph.
        walk: the region, grown by the caller, who calls `advance` after every operator.
    """

    def __init__(self, evaluator: OpCosts, walk: RegionBuilder) -> None:
        self.evaluator, self.view, self.walk = evaluator, evaluator.view, walk
        self.lengths = evaluator.grid(walk.size)[1]
        self.launching = np.ceil(walk.size / self.lengths) * evaluator.machine.launch_seconds
        self.seconds = np.zeros(len(self.lengths))
        span = min(len(self.view.facts.nodes) - walk.start, MAX_SPAN)
        self.unit = np.zeros(span)  # live bytes per unit of slice length, at each position
        self.count = np.zeros(span)  # live slices, for the allocator's rounding
        self.work = np.zeros((span, len(self.lengths)))  # workspace, per slice length
        self.ends: dict[int, int] = {}  # last reader so far of each storage the body makes
        self.outlive: dict[int, tuple[int, int]] = {}  # storages needed after the body: node, result
        self._known: tuple[tuple[int, list[_Result]], _BodyCost] | None = None  # of the last end
        self._reads: dict[tuple[int, int, Slicing], _Read] = {}
        self._written: dict[int, Floats | int] = {}  # bytes that go to memory of results that were asked about
        self.halos: HaloRegionCost | None = None  # where there is a window
        self.hoisted = Hoisted(evaluator, walk)
        self.fetched: set[int] = set()  # offloaded storages that the body needs whole

    def advance(self) -> None:
        """Take in what the region has sliced since the last call."""
        walk = self.walk
        self.hoisted.advance()
        if walk.windows:  # sums over the operators don't add up any more
            new = walk.added if self.halos is not None else sorted(walk.sliced)
            self.halos = self.halos or HaloRegionCost(self.evaluator, walk)
            self.halos.add(new)
            walk.added.clear()
        for p in sorted(walk.added):
            self._take(p, walk.sliced[p])
        walk.added.clear()

    def _take(self, p: int, transfer: OpSlicing) -> None:
        walk, view = self.walk, self.view
        row = p - walk.start
        if view.made[p]:
            seconds, workspace = self.evaluator.sliced(p, transfer, walk.size)
            self.seconds += seconds
            self.work[row] += workspace
        for storage in view.made[p]:
            if transfer.results[0] is None:
                self.work[row] += view.nbytes[storage]
            else:
                self.unit[row] += view.nbytes[storage] / walk.size
                self.count[row] += 1
                self.ends[storage] = p
            index = next(i for i, t in enumerate(view.facts.tensors[p]) if t.storage == storage)
            self.outlive[storage] = (p, index)
        if view.offloaded:
            self.fetched |= view.fetched(p, walk.start, transfer, walk.sliced)
        for storage in view.storages_read[p]:
            end = self.ends.get(storage, p)
            if end < p:
                self._add(self.unit, self.count, view.nbytes[storage], end + 1, p)
                self.ends[storage] = p

    def _add(self, unit: Floats, count: Floats, nbytes: int, first: int, last: int) -> None:
        start = self.walk.start
        unit[first - start : last - start + 1] += nbytes / self.walk.size
        count[first - start : last - start + 1] += 1

    def evaluate(self) -> tuple[npt.NDArray[np.int64], Floats]:
        """Peak and time if the region ended here, per slice length."""
        walk, view, evaluator = self.walk, self.view, self.evaluator
        if self.halos is not None:
            return self.halos.evaluate(self.hoisted)
        offloaded_bytes, machine = 0, evaluator.machine
        if view.offloaded:
            offloaded_bytes = view.bytes_of(self.fetched.union(*(view.fetched(p, walk.start) for p in walk.hoisted)))
        body = self._body()
        base = int(evaluator.line.crossing_bytes[walk.start])
        before = base + offloaded_bytes + self.hoisted.peak_bytes
        peak = np.maximum(
            np.ceil(base + offloaded_bytes + body.whole_bytes + self.hoisted.kept_bytes + body.bytes), before
        )
        seconds = self.seconds + self.hoisted.seconds + body.through / machine.memory_bandwidth
        seconds = seconds + 2 * body.copied / machine.cache_bandwidth
        seconds = seconds + self.launching * (len(walk.reads) + 1)
        moved = offloaded_bytes + body.moved
        return peak.astype(np.int64), machine.doubt * (evaluator.transfer(seconds, moved) if moved else seconds)

    def _body(self) -> _BodyCost:
        """The body as it is now: what is hoisted behind its last operator leaves it as it was."""
        walk, taken, results = self.walk, set[int](), list[_Result]()
        last, stop = self.view.lives.last, walk.stop
        for storage in [s for s in self.outlive if last[s] < stop]:
            del self.outlive[storage]
        for storage, value in self.outlive.items():
            slicing = walk.sliced[value[0]].results[value[1]]
            reuse = None if slicing is None else walk.reusable(value, slicing, stop, taken)
            if reuse is not None:
                taken.add(self.view.tensor(reuse).storage)
            results.append((storage, value, reuse is not None))
        key = (len(walk.sliced), results)
        if self._known is None or self._known[0] != key:
            self._known = (key, self._count_body(results))
        return self._known[1]

    def _count_body(self, results: list[_Result]) -> _BodyCost:
        walk, view, evaluator = self.walk, self.view, self.evaluator
        start, end = walk.start, max(walk.sliced)
        unit, count = self.unit[: end + 1 - start].copy(), self.count[: end + 1 - start].copy()
        whole_bytes = moved = 0
        through, copied = np.zeros(len(self.lengths)), np.zeros(len(self.lengths))
        for storage, value, reuses in results:
            nbytes = view.nbytes[storage]
            if self._sliced_result(value) is not None and walk.offloads(value):
                # It waits to be stored, and the slice before may still be.
                self._add(unit, count, nbytes, self.ends[storage] + 1, end)
                self._add(unit, count, nbytes, start, end)
                moved += nbytes
                continue
            through += self._through(storage, value)
            if reuses:  # written when the input's slice has been read for the last time
                self._add(unit, count, nbytes, self.ends[storage] + 1, end)
            else:
                whole_bytes += nbytes
        for key, positions in walk.reads.items():
            read = self._reads.get(key)
            if read is None or read.readers != len(positions):
                read = self._reads[key] = self._read(key, read)
            if read.is_offloaded:  # this slice, and the next, which comes meanwhile
                self._add(unit, count, 2 * read.nbytes, start, end)
                moved += read.nbytes
                continue
            if not read.is_weight:
                through += read.moved
            if read.copied:
                last = max(max(positions), walk.last_needed(read.storage, walk.stop))
                self._add(unit, count, read.nbytes, min(positions), last)
                copied += read.moved
        live = unit[:, None] * self.lengths + self.work[: len(unit)]
        if evaluator.granule > 1:
            live = unit[:, None] * self.lengths + (count * evaluator.granule)[:, None] + self.work[: len(unit)]
        return _BodyCost(live.max(axis=0), whole_bytes, through, copied, moved)

    def _sliced_result(self, value: Operand) -> Slicing | None:
        return self.walk.sliced[value[0]].results[value[1]]

    def _through(self, storage: int, value: Operand) -> Floats | int:
        """Bytes that writing a result moves, per slice length."""
        found = self._written.get(storage)
        if found is None:
            found, slicing = self.view.nbytes[storage], self._sliced_result(value)
            if slicing is not None:
                found = found * self.evaluator.waste(self.view.tensor(value), slicing)
            self._written[storage] = found
        return found

    def _read(self, key: tuple[int, int, Slicing], before: _Read | None) -> _Read:
        """What is known of a narrowed value, whoever has joined its readers."""
        walk, readers = self.walk, len(self.walk.reads[key])
        if before is not None:
            return replace(before, readers=readers, copied=walk.copies(key))
        tensor = self.view.tensor((key[0], key[1]))
        is_weight = self.view.facts.storages[tensor.storage].origin is Origin.WEIGHT
        moved = tensor.nbytes * self.evaluator.waste(tensor, key[2])
        is_offloaded = walk.is_offloaded((key[0], key[1]))
        return _Read(tensor.storage, tensor.nbytes, moved, is_offloaded, is_weight, readers, walk.copies(key))


def unsliced_at(evaluator: OpCosts, p: int) -> tuple[int, float]:
    """Live bytes and time of an operator that runs unsliced.

    What it reads of offload memory is on the device while it runs, and so is what it makes for offload memory.
    """
    view, seconds = evaluator.view, evaluator.whole[p : p + 1]
    moved = view.bytes_of(view.fetched(p, p) | view.offloaded.intersection(view.made[p]))
    if moved:
        seconds = evaluator.transfer(seconds, moved)
    return int(evaluator.line.live_bytes[p]) + moved, float(seconds[0])


def unsliced(evaluator: OpCosts) -> tuple[npt.NDArray[np.int64], Floats]:
    """Live bytes and time of every operator that runs unsliced; placeholders as they are."""
    live, seconds = evaluator.line.live_bytes, evaluator.whole
    if not evaluator.view.offloaded:
        return live, seconds
    live, seconds = live.copy(), seconds.copy()
    for p in range(evaluator.view.facts.num_placeholders, len(live)):
        live[p], seconds[p] = unsliced_at(evaluator, p)
    return live, seconds
