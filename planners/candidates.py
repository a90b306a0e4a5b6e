"""Candidates: every region worth considering, with its peak and its seconds by slice length."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch._ops import OpOverload

from sicompiler.axes.factor_map import Slicing
from sicompiler.axes.table import OpSlicing
from sicompiler.facts.calls import takes_statistics
from sicompiler.facts.timeline import Timeline
from sicompiler.planners.op_costs import Floats, OpCosts
from sicompiler.planners.region_cost import MAX_OPERATORS, MAX_SPAN, MAX_WINDOWS, RegionCost
from sicompiler.planners.repeats import Answers, Repeats
from sicompiler.regions.builder import HOISTED_BYTES, RegionBuilder
from sicompiler.regions.view import GraphView

SMALL_GRAPH = 200  # operators that allocate; up to here every position may be a cut
NEAR = 6  # operators that allocate, on either side of a deep cut
GROWTH = 32  # times the bytes of its operands: a value that begins at an operator
LONG_SHARE = 0.1  # of the unsliced peak; while a region without a limit runs, what is alive before it stays


@dataclass(frozen=True)
class Candidate:
    """A region as the planner sees it.

    Attributes:
        start, stop: positions in the schedule.
        seed: slicing of the first result.
        lengths: slice lengths, longest first.
        peak_bytes: peak of live activations while the region runs, per slice length.
        seconds: estimated time, per slice length.
    """

    start: int
    stop: int
    seed: Slicing
    lengths: tuple[int, ...]
    peak_bytes: npt.NDArray[np.int64]
    seconds: Floats

    def moved(self, by: int, peak_bytes: npt.NDArray[np.int64]) -> Candidate:
        """The region so many positions later, with other peaks."""
        return Candidate(self.start + by, self.stop + by, self.seed, self.lengths, peak_bytes, self.seconds)


def axis_labels(view: GraphView, axes: Mapping[str, tuple[int, Slicing]]) -> list[dict[Slicing, str]]:
    """Follow named axes of the inputs through the graph.

    Args:
        view: the graph.
        axes: name -> (position of a placeholder, slicing of it).

    Returns:
        For each node, the slicings of its first result that belong to a named axis.
    """
    labels: list[dict[Slicing, str]] = [{} for _ in view.facts.nodes]
    for name, (position, slicing) in axes.items():
        labels[position][slicing] = name
    for p in range(view.facts.num_placeholders, len(view.facts.nodes)):
        for index, (q, r) in enumerate(view.table.operands[p]):
            for slicing, name in labels[q].items():
                if r:
                    continue
                transfer = view.table.from_operand(p, index, slicing)
                if isinstance(transfer, OpSlicing) and transfer.window is None and transfer.results[0] is not None:
                    labels[p].setdefault(transfer.results[0], name)
    return labels


def seeds_of(view: GraphView, labels: list[dict[Slicing, str]], p: int) -> list[Slicing]:
    """Slicings of a node's first result from which a region may grow: named axes, then whole dims."""
    shape = view.facts.tensors[p][0].shape
    dims = [Slicing(dim, 1, size, 1) for dim, size in enumerate(shape) if size > 1]
    return list(dict.fromkeys([*labels[p], *dims]))


def cut_positions(view: GraphView, line: Timeline) -> tuple[list[int], list[int]]:
    """Where regions may start and end: beside operators that allocate, at local minima of the bytes that cross.

    The few bytes of a group norm's statistics don't count, or they would forbid the cut between its two passes. In a
    small graph every such position is a cut.

    Returns:
        Positions of operators a region may start with, and positions right after operators it may end with. The views
        between them cost nothing and stay outside.
    """
    makers = [p for p in range(view.facts.num_placeholders, len(view.facts.nodes)) if view.made[p]]
    if not makers:
        return [], []
    tensors = line.crossing_bytes - _statistics_bytes(view, len(line.crossing_bytes))
    crossing = [int(tensors[p]) for p in (*makers, len(view.facts.nodes))]
    slack = max(crossing) if len(makers) <= SMALL_GRAPH else 0
    chosen = [
        index
        for index, nbytes in enumerate(crossing)
        if (index == 0 or nbytes <= crossing[index - 1] + slack)
        and (index == len(makers) or nbytes <= crossing[index + 1] + slack)
    ]
    starts = [makers[index] for index in chosen if index < len(makers)]
    ends = [makers[index - 1] + 1 for index in chosen if index > 0]
    return starts, ends


def births(view: GraphView, hot_bytes: int) -> list[int]:
    """Positions of operators that broadcast next to nothing to a big value: a mask, from vectors of positions.

    They may start a region wherever they stand. The vectors are too small to be sliced, and make the cut before them
    the deeper one: from there, no axis of the big value could be followed.
    """
    found = []
    for p in range(view.facts.num_placeholders, len(view.facts.nodes)):
        target, nbytes = view.facts.nodes[p].target, view.bytes_of(view.made[p])
        read = view.bytes_of({view.tensor(value).storage for value in view.table.operands[p]})
        broadcasts = read == 0 or (isinstance(target, OpOverload) and torch.Tag.pointwise in target.tags)
        if broadcasts and nbytes >= max(hot_bytes, GROWTH * read) and read <= HOISTED_BYTES:
            found.append(p)
    return found


def deep_cuts(view: GraphView, line: Timeline) -> set[int]:
    """Where regions with halos may start and end: they are counted anew at each end, so only the deepest minima count.

    A cut is deep where fewer bytes cross than at any of the `NEAR` operators before it, and no more than behind it; or
    where a quarter of the highest crossing or more has gone before it and comes again behind it.
    """
    nodes = len(view.facts.nodes)
    makers = [p for p in range(view.facts.num_placeholders, nodes) if view.made[p]]
    tensors = line.crossing_bytes - _statistics_bytes(view, len(line.crossing_bytes))
    crossing = [int(tensors[p]) for p in (*makers, nodes)]
    found: set[int] = set()
    for index, nbytes in enumerate(crossing):
        before, behind = crossing[max(0, index - NEAR) : index], crossing[index + 1 : index + 1 + NEAR]
        lowest = all(nbytes < n for n in before) and all(nbytes <= n for n in behind)
        local = nbytes < min(before[-1:], default=nbytes + 1) and nbytes <= min(behind[:1], default=nbytes)
        valley = local and min(max(before, default=0), max(behind, default=0)) - nbytes >= max(crossing) / 4
        if len(makers) <= SMALL_GRAPH or lowest or valley:
            found.add(makers[index] if index < len(makers) else nodes)
            if index:
                found.add(makers[index - 1] + 1)
    return found | _behind_statistics(view)


def _behind_statistics(view: GraphView) -> set[int]:
    """Positions behind statistics that are not applied at once, and of what is rematerialized there before they are.

    If the region that took the statistics had to go on to where they are applied, it would make that whole before its
    loop.
    """
    first, nodes = view.facts.num_placeholders, view.facts.nodes
    found: set[int] = set()
    for p in range(first, len(nodes) - 1):
        if takes_statistics(nodes[p]) and p + 1 not in view.lives.readers[p]:
            found |= {p + 1, next((q for q in range(p + 1, len(nodes)) if view.made[q]), len(nodes))}
    return found


def _statistics_bytes(view: GraphView, count: int) -> npt.NDArray[np.int64]:
    """Bytes of group statistics that cross each position."""
    found = np.zeros(count, dtype=np.int64)
    for p in range(view.facts.num_placeholders, len(view.facts.nodes)):
        if takes_statistics(view.facts.nodes[p]):
            for storage in view.made[p]:
                found[p + 1 : view.lives.last[storage] + 1] += view.facts.storages[storage].nbytes
    return found


def candidates(
    evaluator: OpCosts,
    labels: list[dict[Slicing, str]],
    *,
    skip: Set[tuple[int, Slicing | None]],
    hot_bytes: int,
    on_device: Timeline | None = None,
    above: Set[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
    known: Regions | None = None,
) -> Iterator[Candidate]:
    """All regions between cut positions that contain a hot operator.

    Args:
        evaluator: of the graph.
        labels: from `axis_labels`.
        skip: (position, slicing of the first result) from which no region is grown.
        hot_bytes: an operator is hot when it makes a storage at least this big.
        on_device: timeline with nothing offloaded, by which cuts are chosen; that of the evaluator if not given.
        above: positions of which a region must contain one; None for all regions.
        progress: called with (done, total).
        known: what grew in graphs that have most of their operators in common with this one; it is added to.
    """
    line = on_device or evaluator.line
    starts, stops = cut_positions(evaluator.view, line)
    starts = sorted({*starts, *births(evaluator.view, hot_bytes)})
    search = _Search(evaluator, set(stops), deep_cuts(evaluator.view, line), hot_bytes, known, above)
    for done, begin in enumerate(starts):  # which grow while the loop runs
        if progress is not None:
            progress(done, len(starts))
        seeds = [seed for seed in seeds_of(evaluator.view, labels, begin) if (begin, seed) not in skip]
        for seed in seeds:  # which grow while the loop runs
            grown = search.grow(begin, seed)
            yield from grown.candidates
            if begin < grown.blocked < search.end and grown.ended is not GrowthEnd.WINDOWS:
                index = bisect_left(starts, grown.blocked)
                if index == len(starts) or starts[index] != grown.blocked:
                    starts.insert(index, grown.blocked)
                if grown.ended is GrowthEnd.AXIS:
                    search.deep.add(grown.blocked)
            if grown.windows and grown.ended is not GrowthEnd.AXIS:
                yield from search.go_on(grown, seed)
            coarser = grown.coarser  # units that go through the operator at which the axis ended
            if coarser is not None and (begin, coarser) not in skip and coarser not in seeds:
                seeds.append(coarser)


class GrowthEnd(Enum):
    """Why a region grew no further."""

    AXIS = "the next operator does not commute with slicing along it"
    LENGTH = "a limit of operators"
    WINDOWS = "a limit of windows"


@dataclass(frozen=True)
class _Grown:
    """What grew from one start and one slicing.

    Attributes:
        start: where it started.
        stop: where its axis ended, or the region became too long.
        blocked: position of the operator that allocates next; `start` where nothing grew.
        candidates: the regions on the way.
        coarser: the same axis in units that would have gone on, if there are such.
        ended: why it grew no further.
        windows: whether it contains a hot operator and runs through a window.
        base_bytes: what was alive around it.
        deep: where it might end with halos, counted from its start; None where it runs through no window.
    """

    start: int
    stop: int
    blocked: int
    candidates: tuple[Candidate, ...]
    coarser: Slicing | None
    ended: GrowthEnd
    windows: bool
    base_bytes: int
    deep: tuple[int, ...] | None

    def moved(self, start: int, base_bytes: int) -> _Grown:
        """What grows from a start where the graph goes on in the same way, with so many bytes alive around it."""
        by, found, more_bytes = start - self.start, self.candidates, base_bytes - self.base_bytes
        if found:
            beyond = self._peaks == np.iinfo(np.int64).max  # what no budget allows
            peaks = np.where(beyond, self._peaks, self._peaks + more_bytes)
            found = tuple(c.moved(by, row) for c, row in zip(found, peaks, strict=True))
        stop, blocked = self.stop + by, self.blocked + by
        return replace(self, start=start, stop=stop, blocked=blocked, candidates=found, base_bytes=base_bytes)

    @cached_property
    def _peaks(self) -> npt.NDArray[np.int64]:
        """Peaks of all candidates, which have the same slice lengths, a row each."""
        return np.array([c.peak_bytes for c in self.candidates])


Regions = Answers[_Grown]  # what grew, by what it grew from


class _Search:
    """Grows regions, and remembers them for blocks that repeat, in this graph and in others."""

    def __init__(
        self,
        evaluator: OpCosts,
        ends: Set[int],
        deep: set[int],
        hot_bytes: int,
        known: Regions | None,
        above: Set[int] | None,
    ) -> None:
        self.evaluator, self.view, self.ends, self.deep = evaluator, evaluator.view, ends, deep
        self.end = len(self.view.facts.nodes)
        self._hot = [any(self.view.facts.storages[s].nbytes >= hot_bytes for s in made) for made in self.view.made]
        self._above = None if above is None else sorted(above)
        self._repeats = Repeats(self.view, ends, set(deep), self._hot, above or frozenset(), known)
        # An answer of another graph is right here if that is searched alike; one of this graph in any case.
        self._others = (evaluator.device_type, repr(evaluator.machine), bool(self.view.offloaded))
        self._own = self._repeats.fresh_number()
        self._crossed: set[tuple[int, Slicing | None]] = set()  # where a region without a limit has passed

    def grow(self, start: int, seed: Slicing) -> _Grown:
        """All regions from a start along one slicing."""
        key, base_bytes = (seed, start in self.deep), int(self.evaluator.line.crossing_bytes[start])
        known = self._repeats.find(start, (*key, self._own))
        if known is not None:
            return known.moved(start, base_bytes)
        other = self._repeats.find(start, (*key, self._others))
        if other is not None and other.deep in (None, self._deep_in(start, start + other.stop - other.start)):
            found = other.moved(start, base_bytes)
        else:
            found = self._grow(start, seed)
        if max(found.stop, found.blocked) < self.end:
            for asked in (self._own, self._others):
                self._repeats.keep(start, (*key, asked), max(found.stop, found.blocked) + 1 - start, found)
        return found

    def _deep_in(self, start: int, stop: int) -> tuple[int, ...]:
        """Where a region with halos may end, counted from its start; more places are added during a search."""
        return tuple(p - start for p in range(start + 1, stop + 1) if p in self.deep)

    def _grow(self, start: int, seed: Slicing) -> _Grown:
        view = self.view
        builder = RegionBuilder(view, start, seed, windows=MAX_WINDOWS if start in self.deep else 0)
        lengths = self.evaluator.grid(seed.size)[0]
        cost = RegionCost(self.evaluator, builder)
        found: list[Candidate] = []
        seen_hot = False
        operators = 0
        counts_from = self._counts_from(start)
        ended = GrowthEnd.LENGTH

        def is_cut() -> bool:
            return builder.stop in (self.deep if builder.windows else self.ends)

        def take() -> None:
            if seen_hot and builder.stop > counts_from:
                found.append(Candidate(start, builder.stop, seed, lengths, *cost.evaluate()))

        while builder.stop < self.end and operators < MAX_OPERATORS and builder.stop - start < MAX_SPAN:
            if builder.extend() is not None:
                ended = (
                    GrowthEnd.WINDOWS if builder.windows and builder.windows == builder.max_windows else GrowthEnd.AXIS
                )
                break
            seen_hot = seen_hot or self._hot[builder.stop - 1]
            operators += bool(view.made[builder.stop - 1])
            if builder.stop > counts_from:
                cost.advance()
            if is_cut():
                take()
        blocked = next((p for p in range(builder.stop, self.end) if view.made[p]), self.end)
        if not is_cut():  # the last chance, wherever the axis ends
            take()
        coarser = None
        if builder.coarser > 1 and seed.size % builder.coarser == 0 and seed.size > builder.coarser:
            # Whole strides of a window, whole blocks of an upsampled axis, whole heads.
            coarser = Slicing(seed.dim, seed.outer, seed.size // builder.coarser, seed.inner * builder.coarser)
        blocked = blocked if builder.stop > start else start
        windows, base_bytes = bool(builder.windows), int(self.evaluator.line.crossing_bytes[start])
        deep = self._deep_in(start, builder.stop) if windows else None
        return _Grown(
            start, builder.stop, blocked, tuple(found), coarser, ended, seen_hot and windows, base_bytes, deep
        )

    def _counts_from(self, start: int) -> int:
        """The position behind which a region from a start contains one of those that it must contain."""
        if self._above is None:
            return start
        index = bisect_left(self._above, start)
        return self._above[index] if index < len(self._above) else self.end

    def go_on(self, grown: _Grown, seed: Slicing) -> Iterator[Candidate]:
        """The region that a limit ended, run on to where its axis ends, if little else is alive meanwhile.

        The caches of a causal decoder live as long as its frames take, unless one loop runs through all of them.
        """
        start, line = grown.start, self.evaluator.line
        base = int(line.crossing_bytes[start])
        if base > LONG_SHARE * line.peak_bytes or (start, seed) in self._crossed:
            return
        builder = RegionBuilder(self.view, start, seed)
        while builder.stop < self.end and builder.extend() is None:
            pass
        self._crossed.update((p, transfer.results[0]) for p, transfer in builder.sliced.items())
        if builder.stop <= max(grown.stop, self._counts_from(start)):
            return
        cost = RegionCost(self.evaluator, builder)
        cost.advance()
        if base + cost.hoisted.peak_bytes < line.peak_bytes:
            yield Candidate(start, builder.stop, seed, self.evaluator.grid(seed.size)[0], *cost.evaluate())
