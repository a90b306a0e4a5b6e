"""What a growing region computes before its loop: running sums, as asked for at each place where it may end."""

from __future__ import annotations

from sicompiler.facts.storages import Origin
from sicompiler.planners.op_costs import OpCosts
from sicompiler.regions.builder import RegionBuilder


class Hoisted:
    """Peak, bytes that stay and time of what is computed whole before a loop.

    Args:
        evaluator: of the graph.
        walk: the region, grown by the caller.

    Attributes:
        peak_bytes: above what is alive before the region.
        kept_bytes: of what the loop, or what comes after it, still needs; less what is let go of that was made before
            the region.
        seconds: of the operators.
    """

    def __init__(self, evaluator: OpCosts, walk: RegionBuilder) -> None:
        self.evaluator, self.view, self.walk = evaluator, evaluator.view, walk
        self._begin()

    def _begin(self) -> None:
        self.peak_bytes = self.kept_bytes = self._current = 0
        self.seconds = 0.0
        self._passed = self.walk.start
        self._turned = self.walk.turned
        self._ending: dict[int, list[int]] = {}  # storages by the position of their last reader

    def advance(self) -> None:
        """Take in what the region has grown by since the last call."""
        if self._turned != self.walk.turned:  # something counted here has been sliced after all
            self._begin()
        for p in range(self._passed, self.walk.stop):
            if p in self.walk.hoisted:
                self._make(p)
                self._let_go(p)
            if p in self._ending:
                self._end(p)
        self._passed = self.walk.stop

    def _make(self, p: int) -> None:
        storages, last = self.view.facts.storages, self.view.lives.last
        made = self.view.made[p]
        if made:
            self.seconds += float(self.evaluator.whole[p])
            nbytes = sum(storages[s].nbytes for s in made)
            self._current += nbytes
            self.kept_bytes += nbytes
            self.peak_bytes = max(self.peak_bytes, self._current + int(self.evaluator.line.workspace_bytes[p]))
        for s in made:
            self._ending.setdefault(last[s], []).append(s)

    def _let_go(self, p: int) -> None:
        """Let go of what was made before the region and is read here for the last time."""
        view, start = self.view, self.walk.start
        for s in {view.tensor(value).storage for value in view.table.operands[p]}:
            storage = view.facts.storages[s]
            if view.lives.last[s] != p or view.born[s] >= start or storage.origin is not Origin.VALUE:
                continue
            if s not in view.offloaded and self.walk.last_needed(s, p + 1) < 0:
                self._current -= storage.nbytes
                self.kept_bytes -= storage.nbytes

    def _end(self, p: int) -> None:
        """Let go of what nothing reads behind a position, unless the body reads it."""
        for s in self._ending.pop(p):
            if self.walk.last_needed(s, p + 1) < 0:
                nbytes = self.view.facts.storages[s].nbytes
                self.kept_bytes -= nbytes
                if p in self.walk.hoisted:
                    self._current -= nbytes
