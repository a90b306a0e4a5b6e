"""The exhaustive planner: tries every plan. Slow on purpose, the oracle of the fast one."""

from __future__ import annotations

from collections.abc import Iterator

from sicompiler.errors import BadInput
from sicompiler.planners.dp import Problem, Solution

MAX_CANDIDATES = 200

Path = list[tuple[int, int]]


def _paths(problem: Problem, position: int) -> Iterator[Path]:
    """Every set of disjoint regions at or after a position, with every slice length."""
    yield []
    for row, candidate in enumerate(problem.candidates):
        if candidate.start >= position:
            for rest in _paths(problem, candidate.stop):
                for index in range(len(candidate.lengths)):
                    yield [(row, index), *rest]


def _solutions(problem: Problem) -> Iterator[Solution]:
    if len(problem.candidates) > MAX_CANDIDATES:
        raise BadInput(
            f"the exhaustive planner takes graphs of up to {MAX_CANDIDATES} candidates, this one has "
            f"{len(problem.candidates)}; use planner='dp'"
        )
    for path in _paths(problem, problem.first):
        yield problem.solution(path)


def solve(problem: Problem, budget_bytes: int) -> Solution | None:
    """The fastest of all plans whose peak is within the budget; same signature as `dp.solve`.

    Raises:
        BadInput: the graph is too big to try everything.
    """
    fitting = [s for s in _solutions(problem) if s.peak_bytes <= budget_bytes]
    return min(fitting, key=lambda s: s.seconds, default=None)


def floor(problem: Problem) -> Solution:
    """The plan with the lowest peak of all; same signature as `dp.floor`.

    Raises:
        BadInput: the graph is too big to try everything.
    """
    return min(_solutions(problem), key=lambda s: s.peak_bytes)
