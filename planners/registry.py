"""Planners by name, and those of users: what every planner is called with, and what its answer is held to.

A planner is a function from a problem and a budget to a solution. What one of a user answers is looked at before
anything is carried out: regions that the problem does not have, that overlap, or a peak above the budget are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from sicompiler.errors import BadInput
from sicompiler.planners import dp, exhaustive, greedy
from sicompiler.planners.dp import Problem, Solution
from sicompiler.units import format_bytes


class Solver(Protocol):
    """A planner: chooses the regions of one graph, so that its peak stays within a budget.

    It is asked only where some choice fits, for one graph at a time: that of the model, and those of one slice of an
    outer loop. Of all answers the fastest is taken.
    """

    def __call__(self, problem: Problem, budget_bytes: int, /) -> Solution | None:
        """Choose.

        Args:
            problem: operators and candidate regions with their peaks and times; `problem.solution(path)` makes the
                answer. It is shared, and must not be changed.
            budget_bytes: of activations; weights are not counted in any peak of the problem.

        Returns:
            A solution whose peak is within the budget; None where this planner finds none.
        """
        ...


@dataclass(frozen=True)
class ChosenPlanner:
    """A planner as it was asked for.

    Attributes:
        name: what plans say they were made by.
        solve: it, with its answers checked.
        code: the function of a user, which answers on disk depend on; None for a planner of ours.
    """

    name: str
    solve: Solver = field(compare=False)
    code: Solver | None = None


BUILT_IN: Mapping[str, Solver] = MappingProxyType(
    {"dp": dp.solve, "exhaustive": exhaustive.solve, "greedy": greedy.solve}
)
DP = ChosenPlanner("dp", dp.solve)

_REGISTERED: dict[str, Solver] = {}


def register_planner(name: str, planner: Solver | None = None) -> Callable[[Solver], Solver] | Solver:
    """Give a planner a name, by which `compile_for_budget(..., planner=name)` and `--planner` find it.

    A decorator, or a call with the function:

        @sicompiler.register_planner("shortest")
        def shortest(problem, budget_bytes): ...

    Args:
        name: of the planner; one word.
        planner: the function, see `Solver`.

    Raises:
        BadInput: the name is taken or is no word, or the planner can't be called.
    """
    if not isinstance(name, str) or not name or ":" in name or name.split() != [name]:
        raise BadInput(f"a planner is registered by one word without a colon, got {name!r}")
    if name in known_planners():
        raise BadInput(f"there is a planner {name!r} already; known planners: {', '.join(known_planners())}")

    def register(function: Solver) -> Solver:
        if not callable(function):
            raise BadInput(f"a planner is called with a problem and a budget, but {function!r} can't be called")
        _REGISTERED[name] = function
        return function

    return register if planner is None else register(planner)


def known_planners() -> Mapping[str, Solver]:
    """All planners by name: ours, then those of users."""
    return {**BUILT_IN, **_REGISTERED}


def chosen_planner(planner: str | Solver | ChosenPlanner) -> ChosenPlanner:
    """Find a planner.

    Args:
        planner: its name, or the planner itself.

    Raises:
        BadInput: there is none of that name (lists those there are), or it is neither a name nor a function.
    """
    if isinstance(planner, ChosenPlanner):
        return planner
    if isinstance(planner, str):
        if planner in BUILT_IN:
            return ChosenPlanner(planner, BUILT_IN[planner])
        if planner not in _REGISTERED:
            raise BadInput(f"unknown planner {planner!r}; known planners: {', '.join(known_planners())}")
        return _of_user(planner, _REGISTERED[planner])
    if not callable(planner):
        raise BadInput(
            f"planner is a name ({', '.join(known_planners())}) or a function of a problem and a budget, "
            f"got {type(planner).__name__}"
        )
    function = planner if hasattr(planner, "__qualname__") else type(planner)
    return _of_user(f"{function.__module__}.{function.__qualname__}", planner)


def _of_user(name: str, planner: Solver) -> ChosenPlanner:
    def solve(problem: Problem, budget_bytes: int, /) -> Solution | None:
        answer = planner(problem, budget_bytes)
        return None if answer is None else _checked(name, problem, answer, budget_bytes)

    return ChosenPlanner(name, solve, planner)


def _checked(name: str, problem: Problem, answer: Any, budget_bytes: int) -> Solution:
    """The answer of a user's planner, with peak and time worked out here.

    Raises:
        BadInput: it is no solution of the problem, or above the budget.
    """
    if not isinstance(answer, Solution):
        raise BadInput(
            f"planner {name!r} returned a {type(answer).__name__}; it returns problem.solution(path), or None"
        )
    rows = {id(candidate): row for row, candidate in enumerate(problem.candidates)}
    path: list[tuple[int, int]] = []
    end = problem.first
    for choice in sorted(answer.choices, key=lambda choice: choice.candidate.start):
        candidate, where = choice.candidate, f"{choice.candidate.start} to {choice.candidate.stop}"
        if id(candidate) not in rows:
            raise BadInput(f"planner {name!r} chose a region from {where} that is none of problem.candidates")
        if not 0 <= choice.index < len(candidate.lengths):
            raise BadInput(
                f"planner {name!r} chose slice length number {choice.index} of the region from {where}, which has "
                f"{len(candidate.lengths)} of them"
            )
        if candidate.start < end:
            raise BadInput(f"planner {name!r} chose regions that overlap: one ends at {end}, the next is from {where}")
        path.append((rows[id(candidate)], choice.index))
        end = candidate.stop
    solution = problem.solution(path)
    if solution.peak_bytes > budget_bytes:
        raise BadInput(
            f"planner {name!r} returned a plan above the budget: its activations peak at "
            f"{format_bytes(solution.peak_bytes)} (position {solution.culprit}), and {format_bytes(budget_bytes)} are "
            "allowed"
        )
    return solution
