"""Chooses which values and weights a plan offloads: as few as its budget allows.

The search prices a schedule in which everything is offloaded that may be. Here its regions are kept, and values, then
weights, return to the device, those with the most expensive transfers first, wherever the peak of every step of their
live range stays within the budget. Then each loop takes its fastest slice length that fits, and the weights of a step
are prefetched during the steps before, where there is room for both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sicompiler.axes.factor_map import Slicing
from sicompiler.compiler.search import Search
from sicompiler.facts.storages import Origin
from sicompiler.facts.timeline import Timeline, timeline
from sicompiler.planners.candidates import Candidate
from sicompiler.planners.dp import Choice, Solution
from sicompiler.planners.op_costs import Floats, OpCosts
from sicompiler.planners.region_cost import RegionCost, unsliced, unsliced_at
from sicompiler.regions.builder import RegionBuilder

Sizes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class OffloadAssignment:
    """A path, and what of it is offloaded.

    Attributes:
        solution: regions with their slice lengths; its peak counts resident weights out, fetched ones in.
        offloaded: storages that are offloaded: values and weights.
        streamed_bytes: of the weights among them.
        prefetched: for each step (position of its first operator) whose weights are fetched early, the step before
            which that starts.
        moved_bytes: carried to and from offload memory in one run of the graph.
    """

    solution: Solution
    offloaded: frozenset[int]
    streamed_bytes: int
    prefetched: tuple[tuple[int, int], ...]
    moved_bytes: int


@dataclass
class _PathStep:
    """A loop, or an operator that runs unsliced.

    Attributes:
        start, stop: positions.
        seed: of a loop.
        touched: storages that may be offloaded and that it reads, or makes for later.
        narrowed: those of them that it reads slice by slice.
        peaks, seconds: per slice length.
    """

    start: int
    stop: int
    seed: Slicing | None
    touched: frozenset[int]
    narrowed: frozenset[int]
    peaks: Sizes
    seconds: Floats


def assign_offload(search: Search, solution: Solution, budget_bytes: int) -> OffloadAssignment:
    """Bring back to the device what there is room for.

    Args:
        search: with everything offloaded that may be.
        solution: a path of it whose peak is within the budget.
        budget_bytes: of activations and streamable weights together.
    """
    return _Settling(search, solution, budget_bytes).run()


class _Settling:
    def __init__(self, search: Search, solution: Solution, budget_bytes: int) -> None:
        self.search, self.budget = search, budget_bytes
        self.view, self.facts, self.lives = search.graph.view, search.graph.facts, search.graph.view.lives
        self.offloaded: frozenset[int] = self.view.offloaded
        self.resident = 0  # bytes of streamable weights that stay
        self.steps = self._steps(solution)
        self.evaluator = search.evaluator
        self.starts = np.array([step.start for step in self.steps], dtype=np.int64)
        self.lowest = np.array([int(step.peaks.min()) for step in self.steps], dtype=np.int64)
        self.touching: dict[int, list[int]] = {}
        for index, step in enumerate(self.steps):
            for storage in step.touched:
                self.touching.setdefault(storage, []).append(index)

    def run(self) -> OffloadAssignment:
        self._values()
        self._weights()
        self._evaluate_all()
        return self._settled()

    def _steps(self, solution: Solution) -> list[_PathStep]:
        found, p = [], self.facts.num_placeholders
        live, seconds = unsliced(self.search.evaluator)
        for choice in (*solution.choices, None):
            stop = len(self.facts.nodes) if choice is None else choice.candidate.start
            for q in range(p, stop):
                if self.view.made[q]:
                    touched = self._touched(q, q + 1)
                    found.append(_PathStep(q, q + 1, None, touched, frozenset(), live[q : q + 1], seconds[q : q + 1]))
            if choice is not None:
                c = choice.candidate
                touched, narrowed = self._touched(c.start, c.stop), self._narrowed(c)
                found.append(_PathStep(c.start, c.stop, c.seed, touched, narrowed, c.peak_bytes, c.seconds))
                p = c.stop
        return found

    def _touched(self, start: int, stop: int) -> frozenset[int]:
        """Storages that may be offloaded and that a step makes for later, or reads."""
        found = set()
        for p in range(start, stop):
            if self.view.made[p]:
                read = {self.view.tensor(value).storage for value in self.view.table.operands[p]}
                found |= {s for s in read if self.view.born[s] < start}
                found |= {s for s in self.view.made[p] if self.lives.last[s] >= stop}
        return frozenset(found & self.offloaded)

    def _narrowed(self, candidate: Candidate) -> frozenset[int]:
        builder = RegionBuilder(self.view, candidate.start, candidate.seed)
        builder.extend_to(candidate.stop)
        return frozenset(self.view.tensor((q, r)).storage for q, r, _ in builder.reads)

    def _values(self) -> None:
        """Bring values back, those first that are carried most for the time they are alive."""
        inside = self.offloaded - self.touching.keys()  # alive within one region only: slices of them, offloaded or not
        self.offloaded -= {s for s in inside if self.facts.storages[s].origin is Origin.VALUE}
        values = [s for s in self.touching if self.facts.storages[s].origin is Origin.VALUE]
        nbytes = {s: self.facts.storages[s].nbytes for s in values}
        values.sort(key=lambda s: (self.lives.last[s] - self.view.born[s], -nbytes[s]))
        self._refresh(self.offloaded)
        for s in values:
            first, last = self.view.born[s], self.lives.last[s]
            alive = slice(*np.searchsorted(self.starts, [first, last], side="right"))
            through = np.ones(len(self.steps), dtype=bool)
            through[self.touching[s]] = False
            if int(self.lowest[alive][through[alive]].max(initial=0)) + nbytes[s] > self.budget:
                continue
            before = self.evaluator
            self._refresh(self.offloaded - {s}, on_device=s)
            peaks = {index: int(self._evaluate(self.steps[index])[0].min()) for index in self.touching[s]}
            if max(peaks.values()) > self.budget:
                self.evaluator = before
                continue
            self.offloaded -= {s}
            self.lowest[alive] += np.where(through[alive], nbytes[s], 0)
            for index, peak in peaks.items():
                self.lowest[index] = peak

    def _refresh(self, offloaded: frozenset[int], on_device: int | None = None) -> None:
        """Evaluate with other offloaded storages; quicker where one value came back."""
        view = self.view.offloading(offloaded)
        if on_device is None:
            line = timeline(self.facts, self.lives, self.search.graph.line.workspace_bytes, offloaded)
        else:
            first, last, nbytes = self.view.born[on_device], self.lives.last[on_device], self._nbytes(on_device)
            live, crossing = self.evaluator.line.live_bytes.copy(), self.evaluator.line.crossing_bytes.copy()
            live[first : last + 1] += nbytes
            crossing[first + 1 : last + 1] += nbytes
            line = Timeline(live, self.evaluator.line.workspace_bytes, crossing)
        self.evaluator = self.search.evaluator.offloading(view, line)

    def _evaluate(self, step: _PathStep) -> tuple[Sizes, Floats]:
        return evaluate(self.evaluator, step.start, step.stop, step.seed)

    def _weights(self) -> None:
        """Keep weights on the device, those first that the highest steps fetch: there they cost nothing."""
        weights = [s for s in self.touching if self.facts.storages[s].origin is Origin.WEIGHT]
        peak = {s: int(self.lowest[self.touching[s]].max()) for s in weights}
        whole = {s for s in weights if all(s not in self.steps[i].narrowed for i in self.touching[s])}
        for s in sorted(weights, key=lambda s: (-peak[s], -self.facts.storages[s].nbytes, s)):
            nbytes = self.facts.storages[s].nbytes
            lowest = self.lowest.copy()
            if s in whole:  # it lies there while these steps run, either way
                lowest[self.touching[s]] -= nbytes
            if int(lowest.max(initial=0)) + self.resident + nbytes > self.budget:
                continue
            self.offloaded -= {s}
            self.resident += nbytes
            self.lowest = lowest

    def _evaluate_all(self) -> None:
        self._refresh(self.offloaded)
        for step in self.steps:
            step.peaks, step.seconds = self._evaluate(step)

    def _settled(self) -> OffloadAssignment:
        room = self.budget - self.resident
        choices, peaks, seconds = [], [], []
        for step in self.steps:
            index = int(np.where(step.peaks <= room, step.seconds, np.inf).argmin())
            peaks.append(int(step.peaks[index]))
            seconds.append(float(step.seconds[index]))
            if step.seed is not None:
                lengths = self.evaluator.grid(step.seed.size)[0]
                found = Candidate(step.start, step.stop, step.seed, lengths, step.peaks, step.seconds)
                choices.append(Choice(found, index))
        early = dict(self._prefetched(peaks, room))
        top = int(np.argmax(peaks)) if peaks else 0
        culprit = self.steps[top].start if self.steps else self.facts.num_placeholders - 1
        highest = max([*peaks, int(self.evaluator.line.live_bytes[: self.facts.num_placeholders].max(initial=0))])
        solution = Solution(tuple(choices), highest, sum(seconds) + self._waiting(early, seconds), culprit)
        weights = self.view.bytes_of(s for s in self.offloaded if self.facts.storages[s].origin is Origin.WEIGHT)
        starts = tuple((self.steps[i].start, self.steps[j].start) for i, j in early.items())
        return OffloadAssignment(
            solution, self.offloaded, weights, starts, sum(self._moved(step) for step in self.steps)
        )

    def _nbytes(self, storage: int) -> int:
        return self.facts.storages[storage].nbytes

    def _group(self, step: _PathStep) -> list[int]:
        """Weights that a step fetches whole."""
        found = step.touched & self.offloaded - step.narrowed
        return [s for s in found if self.facts.storages[s].origin is Origin.WEIGHT]

    def _prefetched(self, peaks: list[int], room: int) -> Iterator[tuple[int, int]]:
        """For each step that fetches weights, the step before which that may start; raises `peaks` by what waits."""
        before = 0
        for i, step in enumerate(self.steps):
            nbytes = self.view.bytes_of(self._group(step))
            if not nbytes:
                continue
            j = i
            while j > before and peaks[j - 1] + nbytes <= room:
                j -= 1
            for index in range(j, i):
                peaks[index] += nbytes
            if j < i:
                yield i, j
            before = i

    def _waiting(self, early: dict[int, int], seconds: list[float]) -> float:
        """Seconds that the device waits for weights."""
        waited, machine = 0.0, self.evaluator.machine
        for i, step in enumerate(self.steps):
            moving = self.view.bytes_of(self._group(step)) / machine.offload_bandwidth
            beside = sum(seconds[early.get(i, i) : i]) if machine.offload_overlaps else 0.0
            waited += max(0.0, moving - beside)
        return waited

    def _moved(self, step: _PathStep) -> int:
        return self.view.bytes_of(step.touched & self.offloaded)


def evaluate(evaluator: OpCosts, start: int, stop: int, seed: Slicing | None) -> tuple[Sizes, Floats]:
    """Peak and time of one step, per slice length; of an operator that runs unsliced, one of each."""
    if seed is None:
        live, seconds = unsliced_at(evaluator, start)
        return np.array([live]), np.array([seconds])
    builder = RegionBuilder(evaluator.view, start, seed)
    cost = RegionCost(evaluator, builder)
    builder.extend_to(stop)
    cost.advance()
    return cost.evaluate()
