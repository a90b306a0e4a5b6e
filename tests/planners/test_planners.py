"""The planner finds the best plan there is: the exhaustive one agrees, and the greedy one never beats it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sicompiler.api import prepare
from sicompiler.axes.factor_map import Slicing
from sicompiler.errors import BadInput
from sicompiler.planners import dp, exhaustive, greedy
from sicompiler.planners.candidates import Candidate
from sicompiler.planners.dp import Problem, Solution
from sicompiler.planners.registry import chosen_planner

OPERATORS = 8


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """A schedule of a few operators and regions over it, with made-up peaks and times."""
    numbers = st.integers(1, 40)
    live = np.array(draw(st.lists(numbers, min_size=OPERATORS, max_size=OPERATORS)), dtype=np.int64)
    seconds = np.array(draw(st.lists(numbers, min_size=OPERATORS, max_size=OPERATORS)), dtype=np.float64)
    candidates = []
    for _ in range(draw(st.integers(0, 6))):
        start = draw(st.integers(0, OPERATORS - 1))
        stop = draw(st.integers(start + 1, OPERATORS))
        lengths = (4, 2, 1)[: draw(st.integers(1, 3))]
        peaks = draw(st.lists(numbers, min_size=len(lengths), max_size=len(lengths)))
        times = draw(st.lists(numbers, min_size=len(lengths), max_size=len(lengths)))
        peak, time = np.array(peaks, dtype=np.int64), np.array(times, dtype=np.float64)
        candidates.append(Candidate(start, stop, Slicing(0, 1, 8, 1), lengths, peak, time))
    return Problem(0, live, seconds, candidates)


def assert_consistent(problem: Problem, solution: Solution, budget_bytes: int) -> None:
    """A solution's regions are disjoint and in order, and its peak is within the budget."""
    position = problem.first
    for choice in solution.choices:
        assert choice.candidate.start >= position
        assert choice.peak_bytes <= budget_bytes
        position = choice.candidate.stop
    assert solution.peak_bytes <= budget_bytes


@given(problems(), st.integers(1, 40))
def test_dp_agrees_with_the_oracle(problem: Problem, budget_bytes: int) -> None:
    ours, oracle = dp.solve(problem, budget_bytes), exhaustive.solve(problem, budget_bytes)
    assert (ours is None) == (oracle is None)
    if ours is not None and oracle is not None:
        assert ours.seconds == oracle.seconds
        assert_consistent(problem, ours, budget_bytes)


@given(problems())
def test_the_floor_is_the_lowest_budget_that_works(problem: Problem) -> None:
    lowest = dp.floor(problem).peak_bytes
    assert lowest == exhaustive.floor(problem).peak_bytes
    assert dp.solve(problem, lowest) is not None
    assert dp.solve(problem, lowest - 1) is None


@given(problems(), st.integers(1, 40))
def test_greedy_never_beats_dp(problem: Problem, budget_bytes: int) -> None:
    baseline = greedy.solve(problem, budget_bytes)
    if baseline is not None:
        assert_consistent(problem, baseline, budget_bytes)
        best = dp.solve(problem, budget_bytes)
        assert best is not None
        assert best.seconds <= baseline.seconds


class FeedForward(nn.Module):
    """A gated feed-forward with a residual: few operators, several ways to slice them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 64), nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = self.up(self.norm(x)).chunk(2, -1)
        result: torch.Tensor = x + self.down(value * nn.functional.gelu(gate))
        return result


@pytest.mark.parametrize("share", [1.0, 0.7, 0.5, 0.0])
def test_dp_agrees_with_the_oracle_on_a_real_graph(share: float) -> None:
    _, planner = prepare(FeedForward().eval(), (torch.randn(1, 48, 8),), {})
    whole = planner.searches[0].problem
    shortest = [c for c in whole.candidates if c.seed.size <= 8 or c.stop - c.start >= 5][:24]
    problem = Problem(whole.first, whole.live_bytes, whole.seconds, shortest)
    lowest = dp.floor(problem).peak_bytes
    assert lowest == exhaustive.floor(problem).peak_bytes
    budget = lowest + int((int(whole.live_bytes.max()) - lowest) * share)
    ours, oracle = dp.solve(problem, budget), exhaustive.solve(problem, budget)
    assert ours is not None
    assert oracle is not None
    assert ours.seconds == pytest.approx(oracle.seconds, rel=1e-12)


def test_unknown_planner_lists_the_known() -> None:
    with pytest.raises(BadInput, match="known planners: dp, exhaustive, greedy"):
        chosen_planner("ilp")


def test_the_oracle_refuses_big_problems() -> None:
    one = Candidate(0, 1, Slicing(0, 1, 8, 1), (1,), np.ones(1, dtype=np.int64), np.ones(1))
    with pytest.raises(BadInput, match="use planner='dp'"):
        exhaustive.solve(Problem(0, np.ones(1, dtype=np.int64), np.ones(1), [one] * 201), 1)
