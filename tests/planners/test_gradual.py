"""Searches that go only as far as a budget asks: the same answers as of whole searches, for less work."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import sicompiler
from sicompiler import testing
from sicompiler.axes.factor_map import Slicing
from sicompiler.compiler import search as search_module
from sicompiler.compiler.planner import Planner
from sicompiler.compiler.prepare import prepare
from sicompiler.planners.candidates import Candidate
from sicompiler.planners.dp import Problem, solve
from sicompiler.planners.gradual import GradualProblem

Region = tuple[int, int, int]  # start, how many operators, peak


def candidates(regions: list[Region], end: int) -> list[Candidate]:
    return [
        Candidate(start, min(start + count, end), Slicing(0, 1, 8, 1), (4,), np.array([peak]), np.array([1.0]))
        for start, count, peak in sorted(regions)
        if start < end
    ]


@settings(max_examples=300)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 6), st.integers(1, 9)), max_size=12),
    st.lists(st.integers(0, 10), min_size=1, max_size=4),
)
def test_a_path_is_known_to_fit_or_not_as_if_all_candidates_were_known(
    live: list[int], regions: list[Region], budgets: list[int]
) -> None:
    live_bytes, seconds = np.array([0, *live]), np.ones(len(live) + 1)
    found = candidates(regions, len(live_bytes))
    whole = Problem(1, live_bytes, seconds, found)
    gradual = GradualProblem(1, live_bytes, seconds, lambda: iter(found))
    for budget in budgets:
        assert gradual.fits(budget) == (solve(whole, budget) is not None)
    assert gradual.problem.candidates == whole.candidates
    assert gradual.is_complete
    for budget in budgets:
        assert gradual.fits(budget) == (solve(whole, budget) is not None)


def test_nothing_is_sought_behind_what_no_path_gets_past() -> None:
    live = np.array([0, 1, 9, 1, 9, 1])
    sought: list[int] = []

    def seek() -> Iterator[Candidate]:
        for candidate in candidates([(1, 1, 1), (2, 1, 5), (3, 1, 1), (4, 1, 3), (5, 1, 1)], len(live)):
            sought.append(candidate.start)
            yield candidate

    gradual = GradualProblem(1, live, np.ones(len(live)), seek)
    assert gradual.fits(9)
    assert sought == []
    assert not gradual.fits(4)
    assert sought == [1, 2, 3]
    assert gradual.fits(5)
    assert sought == [1, 2, 3, 4, 5]
    assert not gradual.is_complete
    assert len(gradual.problem.candidates) == 5
    assert sought == [1, 2, 3, 4, 5]


def test_an_interrupted_search_begins_anew() -> None:
    live, found, interrupts = np.array([0, 9, 9, 1]), candidates([(1, 1, 1), (2, 1, 1)], 4), [True, False]

    def seek() -> Iterator[Candidate]:
        yield found[0]
        if interrupts.pop(0):
            raise KeyboardInterrupt
        yield found[1]

    gradual = GradualProblem(1, live, np.ones(len(live)), seek)
    with pytest.raises(KeyboardInterrupt):
        gradual.fits(1)
    assert gradual.fits(1)
    assert list(gradual.problem.candidates) == found


class Watched(np.ndarray):
    """A peak; when it is read, something happens."""

    on_read: Callable[[], object]

    def tolist(self) -> list[int]:  # type: ignore[override]
        self.on_read()
        return [1]


def test_a_search_that_another_thread_interrupts_is_answered_all_the_same() -> None:
    live, found = np.array([0, 1, 9, 1, 1]), candidates([(1, 1, 1), (2, 1, 1), (3, 1, 1)], 5)
    interrupts = [True, False]

    def seek() -> Iterator[Candidate]:
        yield from found
        if interrupts.pop(0):
            raise KeyboardInterrupt

    def interrupted() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            _ = gradual.problem

    other = threading.Thread(target=interrupted)

    def interrupt() -> None:
        other.start()
        other.join(0.2)  # it has to wait, or is interrupted now

    peak = np.array([1]).view(Watched)
    peak.on_read = interrupt
    object.__setattr__(found[0], "peak_bytes", peak)
    gradual = GradualProblem(1, live, np.ones(len(live)), seek)
    assert gradual.fits(1)
    other.join()


class Mixing(nn.Module):
    """Layers that mix the rows of each sample: the samples alone go one by one through all of them."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.softmax(layer(x) @ x.transpose(1, 2), 1) @ x
        return x


def planned() -> Planner:
    torch.manual_seed(0)
    model = Mixing().double().eval()
    return prepare(model, (torch.randn(4, 64, 8, dtype=torch.float64),), {})[1]


def test_candidates_are_found_in_the_order_of_their_starts() -> None:
    for seed in range(3):
        module, args, kwargs = testing.random_network(seed)
        _, planner = prepare(module, args, kwargs)
        for search in (*planner.searches, *planner.source.offloaded):
            starts = [candidate.start for candidate in search.sought._seek()]
            assert starts == sorted(starts)


def test_a_graph_that_does_not_fit_is_not_searched_to_its_end() -> None:
    """The graph of one sample fits where the whole one does not; the floor beside its plan is that of all graphs."""
    floor = planned().floor()
    planner = planned()
    plan = planner.plan(floor[0])
    assert plan.outer is not None
    whole, *others = (search.sought.is_complete for search in planner.searches)
    assert not whole
    assert all(others)
    assert (plan.floor_bytes, plan.floor_operator) == floor
    assert planner.floor() == floor
    with pytest.raises(sicompiler.OverBudget) as refused:
        planned().plan(floor[0] - 1)
    assert refused.value.floor_bytes == floor[0]


def test_a_budget_that_fits_after_one_that_left_searches_off_has_no_floor_of_a_part() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
            self.norm, self.linear = nn.GroupNorm(2, 8), nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            u = self.linear(self.b(self.norm(torch.sigmoid(y))))
            result: torch.Tensor = u + y + torch.softmax(u, -1)
            return result

    model, x = Model().eval(), torch.randn(4, 8, 64, 64)
    _, whole = prepare(model, (x,), {})
    resident, offloaded = (whole.floor(way)[0] for way in ("none", "auto"))
    _, planner = prepare(model, (x,), {})
    assert planner.plan((resident + offloaded) // 2, offload="auto").uses_offload
    plan = planner.plan(2 * planner.unsliced_bytes, offload="auto")
    assert plan.floor_bytes in (None, resident)
    assert planner.floor("none")[0] == resident


def test_where_loops_save_no_time_only_what_a_budget_asks_for_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = (
        nn.Sequential(*(nn.Sequential(nn.Linear(8, 8 * i), nn.SiLU(), nn.Linear(8 * i, 8)) for i in (1, 4, 2, 8))),
        torch.randn(4096, 8),
    )
    _, whole = prepare(model, (x,), {}, device_type="cuda")
    floor, most = whole.floor(), whole.unsliced_bytes
    monkeypatch.setattr(search_module, "SMALL_GRAPH", 0)
    _, planner = prepare(model, (x,), {}, device_type="cuda")
    for share in (0, 0.3, 0.6, 0.9):
        budget = floor[0] + int(share * (most - floor[0]))
        plan, theirs = planner.plan(budget), whole.plan(budget)
        assert plan.regions == theirs.regions
        assert (plan.floor_bytes, theirs.floor_bytes) == (None, floor[0])
        search = planner.source.whole
        assert not search.may_save_time
        assert not search.sought.is_complete
        some = {(c.start, c.stop, c.seed) for c in search.within(budget - planner.weights_bytes).problem.candidates}
        above = search.sought.live_bytes > budget - planner.weights_bytes
        all_of_them = whole.source.whole.problem.candidates
        assert some == {(c.start, c.stop, c.seed) for c in all_of_them if above[c.start : c.stop].any()}
    assert planner.plan_within(floor[0] - 1) is None
    assert not planner.source.whole.sought.is_complete
    assert planner.floor() == floor
    assert planner.plan(floor[0]).floor_bytes == floor[0]
