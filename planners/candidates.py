"""Candidates: every region worth considering, with its peak and its time for each slice length."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

import sicompiler.ops  # noqa: F401  (registers group_stats)
from sicompiler.axes.factor_map import Slicing
from sicompiler.axes.table import Transfer
from sicompiler.facts.timeline import Timeline
from sicompiler.graph_view import GraphView
from sicompiler.planners.evaluator import Evaluator, Floats
from sicompiler.planners.tally import MAX_OPERATORS, MAX_SPAN, MAX_WINDOWS, Tally
from sicompiler.region import Walk

SMALL_GRAPH = 200  # operators that allocate; up to here every position may be a cut
NEAR = 6  # operators that allocate, on either side of a deep cut
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
                if isinstance(transfer, Transfer) and transfer.window is None and transfer.results[0] is not None:
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
    return found


def _statistics_bytes(view: GraphView, count: int) -> npt.NDArray[np.int64]:
    """Bytes of group statistics that cross each position."""
    found = np.zeros(count, dtype=np.int64)
    for p in range(view.facts.num_placeholders, len(view.facts.nodes)):
        if view.facts.nodes[p].target is torch.ops.sicompiler.group_stats.default:
            for storage in view.made[p]:
                found[p + 1 : view.lives.last[storage] + 1] += view.facts.storages[storage].nbytes
    return found


def candidates(
    evaluator: Evaluator,
    labels: list[dict[Slicing, str]],
    *,
    skip: Set[tuple[int, Slicing | None]],
    hot_bytes: int,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Candidate]:
    """All regions between cut positions that contain a hot operator.

    Args:
        evaluator: of the graph.
        labels: from `axis_labels`.
        skip: (position, slicing of the first result) from which no region is grown.
        hot_bytes: an operator is hot when it makes a storage at least this big.
        progress: called with (done, total).
    """
    view = evaluator.view
    starts, stops = cut_positions(view, evaluator.line)
    ends, deep = set(stops), deep_cuts(view, evaluator.line)
    end = len(view.facts.nodes)
    hot = [any(view.facts.storages[s].nbytes >= hot_bytes for s in made) for made in view.made]
    crossed: set[tuple[int, Slicing | None]] = set()  # where a region without a limit has passed
    for done, begin in enumerate(starts):  # which grow while the loop runs
        if progress is not None:
            progress(done, len(starts))
        seeds = [seed for seed in seeds_of(view, labels, begin) if (begin, seed) not in skip]
        for seed in seeds:  # which grow while the loop runs
            walk = Walk(view, begin, seed, windows=MAX_WINDOWS if begin in deep else 0)
            lengths = evaluator.grid(seed.size)[0]
            tally = Tally(evaluator, walk)
            seen_hot = False
            operators = 0
            reason = None
            while walk.stop < end and operators < MAX_OPERATORS and walk.stop - begin < MAX_SPAN:
                reason = walk.extend()
                if reason is not None:
                    break
                seen_hot = seen_hot or hot[walk.stop - 1]
                operators += bool(view.made[walk.stop - 1])
                tally.advance()
                if seen_hot and walk.stop in (deep if walk.windows else ends):
                    yield Candidate(begin, walk.stop, seed, lengths, *tally.evaluate())
            blocked = next((p for p in range(walk.stop, end) if view.made[p]), end)
            is_window = reason is not None and walk.windows == walk.max_windows
            if blocked < end and walk.stop > begin and not is_window:
                index = bisect_left(starts, blocked)
                if index == len(starts) or starts[index] != blocked:
                    starts.insert(index, blocked)
                if reason is not None:
                    deep.add(blocked)
            last_chance = walk.stop not in (deep if walk.windows else ends)  # wherever the axis ends
            if seen_hot and last_chance:
                yield Candidate(begin, walk.stop, seed, lengths, *tally.evaluate())
            base = evaluator.line.crossing_bytes[begin]
            worth = seen_hot and walk.windows and base <= LONG_SHARE * evaluator.line.peak_bytes
            if worth and (begin, seed) not in crossed and _goes_on(walk, end):
                crossed.update((p, transfer.results[0]) for p, transfer in walk.sliced.items())
                if base + tally.hoisted(walk.stop)[0] < evaluator.line.peak_bytes:
                    yield Candidate(begin, walk.stop, seed, lengths, *tally.evaluate())
            if walk.coarser > 1 and seed.size % walk.coarser == 0 and seed.size > walk.coarser:
                # Units that hold whole strides of a window, or whole blocks of an upsampled axis.
                grown = Slicing(seed.dim, seed.outer, seed.size // walk.coarser, seed.inner * walk.coarser)
                if grown not in seeds:
                    seeds.append(grown)


def _goes_on(walk: Walk, end: int) -> bool:
    """Let a walk that a limit ended run on to where its axis ends; whether it gets any further.

    The caches of a causal decoder live as long as its frames take, unless one loop runs through all of them.
    """
    reached, walk.max_windows = walk.stop, None
    while walk.stop < end and walk.extend() is None:
        pass
    return walk.stop > reached
