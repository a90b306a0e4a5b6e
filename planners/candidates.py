"""Candidates: every region worth considering, with its peak and its time for each slice length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch._ops import OpOverload

import sicompiler.ops  # noqa: F401  (registers group_stats)
from sicompiler.axes.factor_map import Slicing
from sicompiler.axes.table import Transfer
from sicompiler.cost import Machine, Work, slice_lengths, sliced_seconds, whole_seconds, work_of
from sicompiler.facts.storages import ALLOCATION_GRANULE_BYTES, Origin, TensorFact
from sicompiler.facts.timeline import Timeline
from sicompiler.facts.workspace import workspace_bytes
from sicompiler.graph_view import GraphView
from sicompiler.region import Walk

Floats = npt.NDArray[np.float64]

MAX_OPERATORS = 96  # of one region; longer ones gain nothing, and an axis of the whole graph is the outer loop's
SMALL_GRAPH = 200  # operators that allocate; up to here every position may be a cut
MAX_SPAN = 8 * MAX_OPERATORS  # the same, views counted


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


class Evaluator:
    """Peaks and times of walks over one graph."""

    def __init__(self, view: GraphView, line: Timeline, machine: Machine) -> None:
        self.view, self.line, self.machine = view, line, machine
        facts = view.facts
        self.granule = ALLOCATION_GRANULE_BYTES.get(facts.device_type, 1)
        self.work: list[Work] = [work_of(facts, p, view.table.operands[p]) for p in range(len(facts.nodes))]
        self.whole: Floats = np.array([whole_seconds(w, machine) for w in self.work])
        self._seconds: dict[tuple[int, int], Floats] = {}
        self._workspace: dict[tuple[int, Transfer], Floats] = {}
        self.lengths: dict[int, tuple[tuple[int, ...], Floats]] = {}

    def grid(self, size: int) -> tuple[tuple[int, ...], Floats]:
        """Slice lengths of an axis, as ints and as an array."""
        if size not in self.lengths:
            lengths = slice_lengths(size)
            self.lengths[size] = (lengths, np.array(lengths, dtype=np.float64))
        return self.lengths[size]

    def seconds(self, p: int, size: int) -> Floats:
        """Time of one sliced operator per slice length."""
        key = (p, size)
        if key not in self._seconds:
            self._seconds[key] = sliced_seconds(self.work[p], size, self.grid(size)[1], self.machine)
        return self._seconds[key]

    def workspace(self, p: int, transfer: Transfer, size: int) -> Floats:
        """A kernel's workspace per slice length, asked for each: kernels change their algorithm with size."""
        key = (p, transfer)
        if key not in self._workspace:
            target, lengths = self.view.facts.nodes[p].target, self.grid(size)[0]
            found = np.zeros(len(lengths))
            if isinstance(target, OpOverload) and self.view.made[p]:
                found[:] = [self._workspace_at(target, p, transfer, length) for length in lengths]
            self._workspace[key] = found
        return self._workspace[key]

    def _workspace_at(self, target: OpOverload, p: int, transfer: Transfer, length: int) -> int:
        facts, view = self.view.facts, self.view
        operands = [
            _shortened(view.tensor(value), slicing, length)
            for value, slicing in zip(view.table.operands[p], transfer.operands, strict=True)
        ]
        results = [_shortened(t, s, length) for t, s in zip(facts.tensors[p], transfer.results, strict=True)]
        return workspace_bytes(target, operands, results, facts.device_type)


class Tally:
    """Running sums over one growing walk, so that its peak and time at each end cost little.

    Args:
        evaluator: of the graph.
        walk: grown by the caller, who calls `advance` after every operator.
    """

    def __init__(self, evaluator: Evaluator, walk: Walk) -> None:
        self.evaluator, self.view, self.walk = evaluator, evaluator.view, walk
        self.lengths = evaluator.grid(walk.size)[1]
        self.seconds = np.zeros_like(self.lengths)
        span = min(len(self.view.facts.nodes) - walk.start, MAX_SPAN)
        self.unit = np.zeros(span)  # live bytes per unit of slice length, at each position
        self.count = np.zeros(span)  # live slices, for the allocator's rounding
        self.work = np.zeros((len(self.lengths), span))  # workspace, per slice length
        self.ends: dict[int, int] = {}  # last reader so far of each storage the body makes
        self.outlive: dict[int, tuple[int, int]] = {}  # storages needed after the body: node, result

    def advance(self) -> None:
        """Take in what the walk has sliced since the last call."""
        walk, view, start = self.walk, self.view, self.walk.start
        for p in sorted(walk.added):
            transfer = walk.sliced[p]
            self.seconds += self.evaluator.seconds(p, walk.size)
            self.work[:, p - start] = self.evaluator.workspace(p, transfer, walk.size)
            for storage in view.made[p]:
                if transfer.results[0] is None:
                    self.work[:, p - start] += view.facts.storages[storage].nbytes
                else:
                    self._live(storage, p, p)
                    self.ends[storage] = p
                index = next(i for i, t in enumerate(view.facts.tensors[p]) if t.storage == storage)
                self.outlive[storage] = (p, index)
            for q, r in view.table.operands[p]:
                storage = view.facts.tensors[q][r].storage
                end = self.ends.get(storage)
                if end is not None and end < p:
                    self._live(storage, end + 1, p)
                    self.ends[storage] = p
        walk.added.clear()
        last = view.lives.last
        for storage in [s for s in self.outlive if last[s] < walk.stop]:
            del self.outlive[storage]

    def _live(self, storage: int, first: int, last: int) -> None:
        self._add(self.unit, self.count, self.view.facts.storages[storage].nbytes, first, last)

    def _add(self, unit: Floats, count: Floats, nbytes: int, first: int, last: int) -> None:
        start = self.walk.start
        unit[first - start : last - start + 1] += nbytes / self.walk.size
        count[first - start : last - start + 1] += 1

    def evaluate(self) -> tuple[npt.NDArray[np.int64], Floats]:
        """Peak and time if the walk ended here, per slice length."""
        walk, view, evaluator = self.walk, self.view, self.evaluator
        storages, machine, stop = view.facts.storages, evaluator.machine, walk.stop
        span = stop - walk.start
        unit, count = self.unit[:span].copy(), self.count[:span].copy()
        whole_bytes = written = read = copied = 0
        taken: set[int] = set()
        for storage, value in self.outlive.items():
            nbytes = storages[storage].nbytes
            slicing = walk.sliced[value[0]].results[value[1]]
            reuse = None if slicing is None else walk.reusable(value, slicing, stop, taken)
            written += nbytes
            if reuse is None:
                whole_bytes += nbytes
            else:  # written when the input's slice has been read for the last time
                taken.add(view.tensor(reuse).storage)
                self._add(unit, count, nbytes, self.ends[storage] + 1, stop - 1)
        for key, positions in walk.reads.items():
            tensor = view.tensor((key[0], key[1]))
            if storages[tensor.storage].origin is not Origin.WEIGHT:
                read += tensor.nbytes
            if walk.copies(key):
                last = max(max(positions), walk.last_needed(tensor.storage, stop))
                self._add(unit, count, tensor.nbytes, min(positions), last)
                copied += tensor.nbytes
        base = int(evaluator.line.crossing_bytes[walk.start])
        hoist_peak, hoisted_bytes, hoist_seconds = self._hoisted(stop)
        rounding = count * evaluator.granule if evaluator.granule > 1 else np.zeros(span)
        body = (unit[None, :] * self.lengths[:, None] + rounding[None, :] + self.work[:, :span]).max(axis=1)
        peak = np.maximum(np.ceil(base + whole_bytes + hoisted_bytes + body), base + hoist_peak)
        seconds = self.seconds + hoist_seconds + (read + written) / machine.memory_bandwidth
        seconds = seconds + 2 * copied / machine.cache_bandwidth
        seconds = seconds + np.ceil(walk.size / self.lengths) * machine.launch_seconds * (len(walk.reads) + 1)
        return peak.astype(np.int64), seconds

    def _hoisted(self, stop: int) -> tuple[int, int, float]:
        """Peak above the base while hoisted operators run, what of them stays for the loop, and their time."""
        view, walk = self.view, self.walk
        current = peak = kept = 0
        seconds = 0.0
        for p in walk.hoisted:
            made = view.made[p]
            if not made:
                continue
            seconds += float(self.evaluator.whole[p])
            current += sum(view.facts.storages[s].nbytes for s in made)
            peak = max(peak, current + int(self.evaluator.line.workspace_bytes[p]))
            kept += sum(
                view.facts.storages[s].nbytes
                for s in made
                if view.lives.last[s] >= stop or walk.last_needed(s, stop) >= 0
            )
        return peak, kept, seconds


def _shortened(tensor: TensorFact, slicing: Slicing | None, length: int) -> TensorFact:
    """A tensor cut to one slice; strides of the same order, dense."""
    if slicing is None:
        return tensor
    shape = list(tensor.shape)
    shape[slicing.dim] = slicing.outer * length * slicing.inner
    stride = [0] * len(shape)
    expected = 1
    for dim in sorted(range(len(shape)), key=lambda d: (tensor.stride[d], -d)):
        stride[dim] = expected
        expected *= shape[dim]
    return TensorFact(tuple(shape), tuple(stride), tensor.dtype, tensor.storage)


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
    ends = set(stops)
    end = len(view.facts.nodes)
    hot = [any(view.facts.storages[s].nbytes >= hot_bytes for s in made) for made in view.made]
    for done, begin in enumerate(starts):
        if progress is not None:
            progress(done, len(starts))
        for seed in seeds_of(view, labels, begin):
            if (begin, seed) in skip:
                continue
            walk = Walk(view, begin, seed)
            lengths = evaluator.grid(seed.size)[0]
            tally = Tally(evaluator, walk)
            seen_hot = False
            operators = 0
            while (
                walk.stop < end and operators < MAX_OPERATORS and walk.stop - begin < MAX_SPAN and walk.extend() is None
            ):
                seen_hot = seen_hot or hot[walk.stop - 1]
                operators += bool(view.made[walk.stop - 1])
                tally.advance()
                if seen_hot and walk.stop in ends:
                    peak, seconds = tally.evaluate()
                    yield Candidate(begin, walk.stop, seed, lengths, peak, seconds)
