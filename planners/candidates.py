"""Candidates: every region worth considering, with its peak and its time for each slice length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sicompiler.axes.factor_map import Slicing
from sicompiler.axes.table import Transfer
from sicompiler.cost import Machine, Work, slice_lengths, sliced_seconds, whole_seconds, work_of
from sicompiler.facts.storages import ALLOCATION_GRANULE_BYTES, Origin, TensorFact
from sicompiler.facts.timeline import Timeline
from sicompiler.facts.workspace import workspace_bytes
from sicompiler.region import GraphView, Walk

Floats = npt.NDArray[np.float64]


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
        self._workspace: dict[tuple[int, Transfer], tuple[float, float]] = {}
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

    def workspace(self, p: int, transfer: Transfer, size: int) -> tuple[float, float]:
        """A kernel's workspace as `fixed + per unit of slice length`."""
        if not self.line.workspace_bytes[p] and not self.view.made[p]:
            return 0.0, 0.0
        key = (p, transfer)
        if key not in self._workspace:
            one, full = (self._workspace_at(p, transfer, length) for length in (1, size))
            slope = (full - one) / max(size - 1, 1)
            self._workspace[key] = (one - slope, slope) if slope > 0 else (max(one, full), 0.0)
        return self._workspace[key]

    def _workspace_at(self, p: int, transfer: Transfer, length: int) -> int:
        facts, view = self.view.facts, self.view
        target = facts.nodes[p].target
        operands = [
            _shortened(view.tensor(value), slicing, length)
            for value, slicing in zip(view.table.operands[p], transfer.operands, strict=True)
        ]
        results = [_shortened(t, s, length) for t, s in zip(facts.tensors[p], transfer.results, strict=True)]
        return workspace_bytes(target, operands, results, facts.device_type)

    def evaluate(self, walk: Walk, stop: int) -> tuple[npt.NDArray[np.int64], Floats]:
        """Peak and time of a walk cut off at its present end, per slice length."""
        view, start, size = self.view, walk.start, walk.size
        storages, lives = view.facts.storages, view.lives
        _, lengths = self.grid(size)
        span = stop - start
        unit = np.zeros(span + 1)
        count = np.zeros(span + 1)
        fixed_work = np.zeros(span)
        unit_work = np.zeros(span)
        written = 0.0
        seconds = np.zeros_like(lengths)
        taken: set[int] = set()
        whole_bytes = 0
        for p, transfer in walk.sliced.items():
            seconds = seconds + self.seconds(p, size)
            fixed_work[p - start], unit_work[p - start] = self.workspace(p, transfer, size)
            for storage in view.made[p]:
                nbytes = storages[storage].nbytes
                outlives = lives.last[storage] >= stop
                merges = transfer.results[0] is None
                end = max(p, walk.last_needed(storage, stop))
                if outlives:
                    index = next(i for i, t in enumerate(view.facts.tensors[p]) if t.storage == storage)
                    slicing = transfer.results[index]
                    reuse = None if slicing is None else walk.reusable((p, index), slicing, stop, taken)
                    written += nbytes
                    if reuse is None:
                        whole_bytes += nbytes
                    else:
                        taken.add(view.tensor(reuse).storage)
                        end = span + start - 1  # written when the input's slice has been read for the last time
                if merges:
                    fixed_work[p - start] += nbytes
                else:
                    unit[p - start] += nbytes / size
                    unit[end - start + 1] -= nbytes / size
                    count[p - start] += 1
                    count[end - start + 1] -= 1
        read = 0.0
        copied = 0.0
        for key, positions in walk.reads.items():
            tensor = view.tensor((key[0], key[1]))
            if storages[tensor.storage].origin is not Origin.WEIGHT:
                read += tensor.nbytes
            if walk.copies(key):
                first, last = min(positions), max(max(positions), walk.last_needed(tensor.storage, stop))
                unit[first - start] += tensor.nbytes / size
                unit[last - start + 1] -= tensor.nbytes / size
                count[first - start] += 1
                count[last - start + 1] -= 1
                copied += tensor.nbytes
        base = int(self.line.crossing_bytes[start])
        hoist_peak, hoisted = self._hoisted(walk, stop)
        whole_bytes += hoisted
        seconds = seconds + sum(float(self.whole[p]) for p in walk.hoisted)
        seconds = seconds + (read + written) / self.machine.memory_bandwidth + 2 * copied / self.machine.cache_bandwidth
        seconds = seconds + np.ceil(size / lengths) * self.machine.launch_seconds * (len(walk.reads) + 1)
        live = np.cumsum(unit[:-1])
        slack = np.cumsum(count[:-1]) * (self.granule if self.granule > 1 else 0) + fixed_work
        body = (live[None, :] + unit_work[None, :]) * lengths[:, None] + slack[None, :]
        peak = base + whole_bytes + body.max(axis=1)
        return np.maximum(np.ceil(peak), base + hoist_peak).astype(np.int64), seconds

    def _hoisted(self, walk: Walk, stop: int) -> tuple[int, int]:
        """Peak above the base while hoisted operators run, and what of them stays for the loop."""
        view = self.view
        current = peak = kept = 0
        for p in sorted(walk.hoisted):
            made = sum(view.facts.storages[s].nbytes for s in view.made[p])
            current += made
            peak = max(peak, current + int(self.line.workspace_bytes[p]))
            kept += sum(
                view.facts.storages[s].nbytes
                for s in view.made[p]
                if view.lives.last[s] >= stop or walk.last_needed(s, stop) >= 0
            )
        return peak, kept


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
                if isinstance(transfer, Transfer) and transfer.results[0] is not None:
                    labels[p].setdefault(transfer.results[0], name)
    return labels


def seeds_of(view: GraphView, labels: list[dict[Slicing, str]], p: int) -> list[Slicing]:
    """Slicings of a node's first result from which a region may grow: named axes, then whole dims."""
    shape = view.facts.tensors[p][0].shape
    dims = [Slicing(dim, 1, size, 1) for dim, size in enumerate(shape) if size > 1]
    return list(dict.fromkeys([*labels[p], *dims]))


def cut_positions(view: GraphView, line: Timeline) -> list[int]:
    """Positions before which a region may start or end: local minima of the bytes that cross."""
    crossing = line.crossing_bytes
    first, end = view.facts.num_placeholders, len(view.facts.nodes)
    found = [first]
    for p in range(first + 1, end):
        after = crossing[p + 1] if p + 1 < len(crossing) else 0
        if crossing[p] <= crossing[p - 1] and crossing[p] <= after:
            found.append(p)
    return [*found, end]


def candidates(
    evaluator: Evaluator,
    labels: list[dict[Slicing, str]],
    *,
    hot_bytes: int,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Candidate]:
    """All regions between cut positions that contain a hot operator.

    Args:
        evaluator: of the graph.
        labels: from `axis_labels`.
        hot_bytes: an operator is hot when it makes a storage at least this big.
        progress: called with (done, total).
    """
    view = evaluator.view
    cuts = cut_positions(view, evaluator.line)
    ends = set(cuts)
    end = len(view.facts.nodes)
    hot = [any(view.facts.storages[s].nbytes >= hot_bytes for s in made) for made in view.made]
    for done, start in enumerate(cuts[:-1]):
        if progress is not None:
            progress(done, len(cuts) - 1)
        begin = next((p for p in range(start, end) if view.made[p]), end)  # views before it are free anyway
        if begin == end or (done + 1 < len(cuts) - 1 and begin >= cuts[done + 1]):
            continue
        for seed in seeds_of(view, labels, begin):
            walk = Walk(view, begin, seed)
            lengths = evaluator.grid(seed.size)[0]
            seen_hot = False
            while walk.stop < end and walk.extend() is None:
                seen_hot = seen_hot or hot[walk.stop - 1]
                if seen_hot and walk.stop in ends:
                    peak, seconds = evaluator.evaluate(walk, walk.stop)
                    yield Candidate(begin, walk.stop, seed, lengths, peak, seconds)
