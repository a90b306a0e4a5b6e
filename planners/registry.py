"""Planners by name. All share one signature: `solve(problem, budget_bytes) -> Solution | None`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from sicompiler.errors import BadInput
from sicompiler.planners import dp, exhaustive, greedy
from sicompiler.planners.dp import Problem, Solution

Solver = Callable[[Problem, int], Solution | None]

PLANNERS: Mapping[str, Solver] = MappingProxyType(
    {"dp": dp.solve, "exhaustive": exhaustive.solve, "greedy": greedy.solve}
)


def planner_named(name: str) -> Solver:
    """Find a planner.

    Raises:
        BadInput: there is none of that name; lists those there are.
    """
    if name not in PLANNERS:
        raise BadInput(f"unknown planner {name!r}; known planners: {', '.join(PLANNERS)}")
    return PLANNERS[name]
