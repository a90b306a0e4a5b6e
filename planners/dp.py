"""The default planner: the shortest path over cut positions, exact for a given schedule and set of candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sicompiler.planners.candidates import Candidate

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """A candidate taken into a plan with one of its slice lengths."""

    candidate: Candidate
    index: int

    @property
    def slice_length(self) -> int:
        """The slice length taken."""
        return self.candidate.lengths[self.index]

    @property
    def peak_bytes(self) -> int:
        """Peak of activations with that slice length."""
        return int(self.candidate.peak_bytes[self.index])

    @property
    def seconds(self) -> float:
        """Time with that slice length."""
        return float(self.candidate.seconds[self.index])


@dataclass(frozen=True)
class Solution:
    """A path through the schedule.

    Attributes:
        choices: the regions taken, in order; all other operators run unsliced.
        peak_bytes: highest peak of activations on the path.
        seconds: total time.
        culprit: position of the operator (or start of the region) where the peak is.
    """

    choices: tuple[Choice, ...]
    peak_bytes: int
    seconds: float
    culprit: int


class Problem:
    """What every planner solves: positions, unsliced operators and candidates. Nothing of it may be changed.

    Args:
        first: first position of the schedule that is an operator.
        live_bytes: live activations while each operator runs unsliced.
        seconds: time of each unsliced operator.
        candidates: regions to choose from.

    Attributes:
        candidates: in the order of their ends; a row of the tables below is a position in this order.
        starts: where the candidate of each row starts.
        peaks: peak of each row with each of its slice lengths; beyond the last one, higher than any budget.
        times: seconds of each row with each of its slice lengths; infinite beyond the last one.
        bounds: for a position, the first row that ends there or later.
    """

    def __init__(
        self, first: int, live_bytes: npt.NDArray[np.int64], seconds: Floats, candidates: Sequence[Candidate]
    ) -> None:
        self.first, self.end = first, len(live_bytes)
        self.live_bytes, self.seconds = live_bytes.view(), seconds.view()
        starts = np.array([c.start for c in candidates], dtype=np.int64)
        stops = np.array([c.stop for c in candidates], dtype=np.int64)
        order = np.lexsort((starts, stops))
        self.candidates = tuple(candidates[index] for index in order.tolist())
        self.starts, stops = starts[order], stops[order]
        rows: dict[int, list[int]] = {}  # of candidates with so many slice lengths
        for row, c in enumerate(self.candidates):
            rows.setdefault(len(c.lengths), []).append(row)
        shape = (len(self.candidates), max(rows, default=1))
        self.peaks = np.full(shape, np.iinfo(np.int64).max, dtype=np.int64)
        self.times = np.full(shape, np.inf)
        for width, some in rows.items():
            self.peaks[some, :width] = [self.candidates[row].peak_bytes for row in some]
            self.times[some, :width] = [self.candidates[row].seconds for row in some]
        self.bounds = np.searchsorted(stops, np.arange(self.end + 2))
        for table in (self.live_bytes, self.seconds, self.starts, self.peaks, self.times, self.bounds):
            table.setflags(write=False)  # planners of users see them, and other budgets ask again

    @property
    def unsliced_seconds(self) -> float:
        """Time of all operators, unsliced."""
        return float(self.seconds[self.first :].sum())

    def solution(self, path: Sequence[tuple[int, int]]) -> Solution:
        """Describe a path given as (row, index of the slice length) of each region, in order."""
        choices = tuple(Choice(self.candidates[row], index) for row, index in path)
        peak = int(self.live_bytes[: self.first].max(initial=0))  # the inputs: all there is in a graph of no operators
        culprit, seconds, position = min(self.first, self.end - 1), 0.0, self.first
        for choice in (*choices, None):
            stop = self.end if choice is None else choice.candidate.start
            if stop > position:
                span = self.live_bytes[position:stop]
                if int(span.max()) > peak:
                    peak, culprit = int(span.max()), position + int(span.argmax())
                seconds += float(self.seconds[position:stop].sum())
            if choice is not None:
                if choice.peak_bytes > peak:
                    peak, culprit = choice.peak_bytes, choice.candidate.start
                seconds += choice.seconds
                position = choice.candidate.stop
        return Solution(choices, peak, seconds, culprit)


def solve(problem: Problem, budget_bytes: int) -> Solution | None:
    """The fastest path whose every peak is within the budget.

    D[j] = min(D[j-1] + time(op j) if it fits unsliced, min over regions that end at j and fit of D[start] + time)

    Args:
        problem: the graph's candidates.
        budget_bytes: of activations (weights left out).

    Returns:
        The fastest path, or None if no path fits.
    """
    first, end = problem.first, problem.end
    best = np.full(end + 1, np.inf)
    best[first] = 0.0
    taken = np.full(end + 1, -1, dtype=np.int64)
    times = np.where(problem.peaks <= budget_bytes, problem.times, np.inf)
    index = times.argmin(axis=1) if len(times) else np.zeros(0, dtype=np.int64)
    fastest = times.min(axis=1) if len(times) else np.zeros(0)
    for j in range(first + 1, end + 1):
        if problem.live_bytes[j - 1] <= budget_bytes:
            best[j] = best[j - 1] + problem.seconds[j - 1]
        lo, hi = problem.bounds[j], problem.bounds[j + 1]
        if lo < hi:
            reach = best[problem.starts[lo:hi]] + fastest[lo:hi]
            row = int(reach.argmin())
            if reach[row] < best[j]:
                best[j], taken[j] = reach[row], lo + row
    if not np.isfinite(best[end]):
        return None
    return problem.solution(_backtrack(problem, taken, index))


def floor(problem: Problem) -> Solution:
    """The path with the lowest peak: the same recurrence with maximum in place of sum."""
    first, end = problem.first, problem.end
    best = np.full(end + 1, np.iinfo(np.int64).max, dtype=np.int64)
    best[first] = 0
    taken = np.full(end + 1, -1, dtype=np.int64)
    index = problem.peaks.argmin(axis=1) if len(problem.peaks) else np.zeros(0, dtype=np.int64)
    lowest = problem.peaks.min(axis=1) if len(problem.peaks) else np.zeros(0, dtype=np.int64)
    for j in range(first + 1, end + 1):
        best[j] = max(best[j - 1], problem.live_bytes[j - 1])
        lo, hi = problem.bounds[j], problem.bounds[j + 1]
        if lo < hi:
            reach = np.maximum(best[problem.starts[lo:hi]], lowest[lo:hi])
            row = int(reach.argmin())
            if reach[row] < best[j]:
                best[j], taken[j] = reach[row], lo + row
    return problem.solution(_backtrack(problem, taken, index))


def _backtrack(problem: Problem, taken: npt.NDArray[np.int64], index: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    path = []
    j = problem.end
    while j > problem.first:
        row = int(taken[j])
        if row < 0:
            j -= 1
        else:
            path.append((row, int(index[row])))
            j = problem.candidates[row].start
    return path[::-1]
