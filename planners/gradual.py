"""The candidates of one graph, sought from its start on, and only as far as a budget asks.

Whether a path fits a budget is known as soon as no path gets past some operator: what lies behind need not be searched.
Of a graph and that of one slice of its outer loop, often only one fits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sicompiler.planners.candidates import Candidate
from sicompiler.planners.dp import Problem
from sicompiler.planners.op_costs import Floats


class GradualProblem:
    """A problem whose candidates are sought when somebody asks for them.

    Args:
        first: first position of the schedule that is an operator.
        live_bytes: live activations while each operator runs unsliced.
        seconds: time of each unsliced operator.
        seek: finds the candidates, those that start earlier before the others.
        working: entered while they are sought.
    """

    def __init__(
        self,
        first: int,
        live_bytes: npt.NDArray[np.int64],
        seconds: Floats,
        seek: Callable[[], Iterator[Candidate]],
        working: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.first, self.end = first, len(live_bytes)
        self.live_bytes, self.seconds = live_bytes, seconds
        self._seek, self._working, self._lock = seek, working, threading.RLock()
        self._begin()

    def _begin(self) -> None:
        self._found: list[Candidate] = []
        self._from: dict[int, list[Candidate]] = {}  # by their start
        self._stops: dict[int, list[tuple[int, int]]] = {}  # of those asked about: where they stop, their lowest peaks
        self._behind = self.first - 1  # every candidate that starts here or before has been found
        self._rest: Iterator[Candidate] | None = self._seek()

    @property
    def is_complete(self) -> bool:
        """Whether all candidates have been found."""
        return self._behind >= self.end

    @cached_property
    def problem(self) -> Problem:
        """With all candidates."""
        with self._lock:
            self._go_on(self.end)
            with self._working():
                return Problem(self.first, self.live_bytes, self.seconds, self._found)

    def fits(self, budget_bytes: int) -> bool:
        """Whether any path stays within a budget; candidates are sought up to the operator that none gets past.

        One thread asks at a time: what is found begins anew where the search of another is interrupted.

        Args:
            budget_bytes: of activations (weights left out).
        """
        with self._lock:
            return self._fits(budget_bytes)

    def _fits(self, budget_bytes: int) -> bool:
        above = self.first + np.flatnonzero(self.live_bytes[self.first :] > budget_bytes)
        reached = bytearray(self.end + 1)
        reached[self.first] = True
        done = furthest = self.first
        while True:
            index = int(np.searchsorted(above, furthest))
            if index == len(above):
                return True
            barrier = int(above[index])
            self._go_on(barrier)
            for p in range(done, barrier + 1):
                if reached[p]:
                    stops = [stop for stop, lowest in self._lowest(p) if lowest <= budget_bytes]
                    if self.live_bytes[p] <= budget_bytes:
                        stops.append(p + 1)
                    for stop in stops:
                        reached[stop] = True
                        furthest = max(furthest, stop)
            done = barrier + 1
            if furthest <= barrier:
                return False

    def _go_on(self, position: int) -> None:
        """Find every candidate that starts at a position or before."""
        if self._behind >= position:
            return
        with self._lock, self._working():
            try:
                while self._behind < position and self._rest is not None:
                    self._take(next(self._rest, None))
            except BaseException:  # an interrupt, say: what was half done is begun anew when asked for again
                self._begin()
                raise

    def _take(self, candidate: Candidate | None) -> None:
        if candidate is None:
            self._behind, self._rest = self.end, None
            return
        self._behind = max(self._behind, candidate.start - 1)
        self._found.append(candidate)
        self._from.setdefault(candidate.start, []).append(candidate)

    def _lowest(self, start: int) -> list[tuple[int, int]]:
        """Where candidates from a start stop, all of which have been found, and the lowest peak of each."""
        found = self._stops.get(start)
        if found is None:
            found = self._stops[start] = [(c.stop, min(c.peak_bytes.tolist())) for c in self._from.get(start, ())]
        return found
