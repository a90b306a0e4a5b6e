"""Candidates: every region worth considering, with its peak and its seconds by slice length."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sicompiler.axes.factor_map import Slicing
from sicompiler.axes.table import OpSlicing
from sicompiler.facts.timeline import Timeline
from sicompiler.planners.cut_positions import births, cut_positions, deep_cuts
from sicompiler.planners.op_costs import Floats, OpCosts
from sicompiler.planners.region_cost import MAX_OPERATORS, MAX_SPAN, MAX_WINDOWS, RegionCost
from sicompiler.planners.repeats import Answers, Repeats
from sicompiler.regions.builder import RegionBuilder
from sicompiler.regions.view import GraphView

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
        beyond: regions that end within so many operators from the start were not counted.
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
    beyond: int
    deep: tuple[int, ...] | None

    def tells(self, beyond: int) -> bool:
        """Whether it has all regions that end beyond so many operators from the start."""
        return min(beyond, self.stop - self.start) >= min(self.beyond, self.stop - self.start)

    def ending(self, beyond: int) -> _Grown:
        """With no other regions than those that end beyond so many operators from the start."""
        if beyond <= self.beyond:
            return self
        found = tuple(c for c in self.candidates if c.stop - c.start > beyond)
        return replace(self, candidates=found, beyond=beyond)

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
        self._repeats = Repeats(self.view, ends, set(deep), self._hot, known)
        # An answer of another graph is right here if that is searched alike; one of this graph in any case.
        self._others = (evaluator.device_type, repr(evaluator.machine), bool(self.view.offloaded))
        self._own = self._repeats.fresh_number()
        self._crossed: set[tuple[int, Slicing | None]] = set()  # where a region without a limit has passed

    def grow(self, start: int, seed: Slicing) -> _Grown:
        """All regions from a start along one slicing."""
        key, base_bytes = (seed, start in self.deep), int(self.evaluator.line.crossing_bytes[start])
        beyond = self._counts_from(start) - start
        known = self._repeats.find(start, (*key, self._own))
        if known is not None and known.tells(beyond):
            return known.moved(start, base_bytes).ending(beyond)
        other = self._repeats.find(start, (*key, self._others))
        if (
            other is not None
            and other.tells(beyond)
            and other.deep in (None, self._deep_in(start, start + other.stop - other.start))
        ):
            found = other.moved(start, base_bytes)
        else:
            again = known is None and other is not None  # another budget will ask for yet others: all are counted now
            found = self._grow(start, seed, 0 if again else beyond)
        if max(found.stop, found.blocked) < self.end:
            for asked in (self._own, self._others):
                self._repeats.keep(start, (*key, asked), max(found.stop, found.blocked) + 1 - start, found)
        return found.ending(beyond)

    def _deep_in(self, start: int, stop: int) -> tuple[int, ...]:
        """Where a region with halos may end, counted from its start; more places are added during a search."""
        return tuple(p - start for p in range(start + 1, stop + 1) if p in self.deep)

    def _grow(self, start: int, seed: Slicing, beyond: int) -> _Grown:
        """All regions from a start along one slicing that end beyond so many operators from there."""
        view = self.view
        builder = RegionBuilder(view, start, seed, windows=MAX_WINDOWS if start in self.deep else 0)
        lengths = self.evaluator.grid(seed.size)[0]
        cost = RegionCost(self.evaluator, builder)
        found: list[Candidate] = []
        seen_hot = False
        operators = 0
        counts_from = start + beyond
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
            start,
            builder.stop,
            blocked,
            tuple(found),
            coarser,
            ended,
            seen_hot and windows,
            base_bytes,
            beyond,
            deep,
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
