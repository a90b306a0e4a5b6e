"""What graphs of a component are planned from, kept while many of them are planned one after the other."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from sicompiler.compiler.planner import Planner
from sicompiler.planners.candidates import Regions
from sicompiler.planners.repeats import Answers


class Analyses:
    """Planners by what they plan; analyses are large, so they are kept for a while only.

    Attributes:
        regions: what grew in these graphs, most of whose operators are the same; None while nothing is kept.
    """

    def __init__(self) -> None:
        self.regions: Regions | None = None
        self._planners: dict[Hashable, Planner] = {}

    def keep(self) -> None:
        """Keep what is planned from, until it is forgotten."""
        self.regions = self.regions or Answers()

    def planner(self, key: Hashable, make: Callable[[], Planner]) -> Planner:
        """A planner, made if it is not kept.

        Args:
            key: what it plans. What is held beside that is told when it is asked for a plan.
            make: it.
        """
        found = self._planners.get(key) or make()
        if self.regions is not None:
            self._planners[key] = found
        return found

    def forget(self) -> None:
        """Let go of all."""
        if self.regions is not None:
            self.regions.forget()  # planners that somebody else keeps know it, and it is as large as they are
        self.regions = None
        self._planners.clear()
