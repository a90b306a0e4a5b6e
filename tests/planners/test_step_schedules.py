"""Schedules of Step Rehash: predictors are exact where they should be, and no schedule beats the planned one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sicompiler.planners.skip_schedule import (
    Floats,
    Prediction,
    Predictor,
    StepCosts,
    best_schedules,
    cost_of,
    lagrange_weights,
    least_squares_weights,
    schedule_of,
    similar_steps,
    similar_steps_of,
    squared_error,
    uniform_steps,
)

pytestmark = pytest.mark.pure


def _walk(count: int, width: int = 3, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((count, width)).cumsum(0)


def _costs(count: int, order: int, predictor: Predictor = "least squares") -> StepCosts:
    features = _walk(count)
    importance = np.random.default_rng(1).random(count)
    return StepCosts(features @ features.T, importance, list(np.linspace(0, 1, count) ** 2), predictor, order)


@given(
    st.lists(st.floats(-3, 3), min_size=2, max_size=4, unique=True), st.lists(st.floats(-2, 2), min_size=3, max_size=3)
)
def test_lagrange_continues_polynomials_of_its_order_over_uneven_gaps(times: list[float], factors: list[float]) -> None:
    *known, wanted = times
    if min(abs(a - b) for a, b in itertools.combinations(times, 2)) < 1e-2:
        return  # weights of a thousand and more round away what is tested

    def polynomial(time: float) -> float:
        return sum(factor * time**power for power, factor in enumerate(factors[: len(known)]))

    weights = lagrange_weights(known, [wanted])[:, 0]
    found = sum(w * polynomial(t) for w, t in zip(weights, known, strict=True))
    assert found == pytest.approx(polynomial(wanted), abs=1e-6 * max(map(abs, weights)))
    assert sum(weights) == pytest.approx(1, abs=1e-9 * max(map(abs, weights)))


def test_errors_of_predictions_are_those_of_the_features() -> None:
    features = _walk(6, width=40)
    prediction = Prediction((0, 2, 3), (0.5, -1.25, 1.5))
    direct = features[5] - sum(w * features[s] for s, w in zip(prediction.sources, prediction.weights, strict=True))
    assert squared_error(features @ features.T, prediction, 5) == pytest.approx(float(direct @ direct), rel=1e-9)


@pytest.mark.parametrize("sources", [(0,), (1, 3), (0, 2, 4)])
def test_least_squares_beats_every_other_weights(sources: tuple[int, ...]) -> None:
    gram = (features := _walk(7, width=30)) @ features.T
    best = squared_error(gram, Prediction(sources, tuple(least_squares_weights(gram, sources)[:, 5])), 5)
    rng = np.random.default_rng(2)
    for _ in range(200):
        other = tuple(float(w) for w in rng.standard_normal(len(sources)))
        assert best <= squared_error(gram, Prediction(sources, other), 5) * (1 + 1e-4)


@pytest.mark.parametrize("predictor", ["least squares", "lagrange"])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_planned_schedules_cost_least_of_all(order: int, predictor: Predictor) -> None:
    costs = _costs(9, order, predictor)
    found = best_schedules(costs)
    assert set(found) == set(range(1, 10))
    for full, (cost, schedule) in found.items():
        assert sum(p is None for p in schedule) == full
        assert schedule[0] is None
        every = (schedule_of(costs, (0, *rest)) for rest in itertools.combinations(range(1, 9), full - 1))
        assert cost == pytest.approx(min(cost_of(costs, s) for s in every), rel=1e-9, abs=1e-9)
        assert cost == pytest.approx(cost_of(costs, schedule), rel=1e-9, abs=1e-9)


def test_more_full_evaluations_never_cost_more() -> None:
    costs = [cost for _, (cost, _) in sorted(best_schedules(_costs(25, 1)).items())]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] == 0


def test_sources_come_before_what_they_predict() -> None:
    for _, schedule in best_schedules(_costs(14, 2)).values():
        for step, prediction in enumerate(schedule):
            if prediction is not None:
                assert max(prediction.sources) < step
                assert all(schedule[source] is None for source in prediction.sources)
                assert len(prediction.sources) <= 3


def test_two_evaluations_at_one_time_are_no_division_by_zero() -> None:
    features = _walk(6)
    costs = StepCosts(features @ features.T, np.ones(6), [3, 2, 2, 1, 1, 0], "lagrange", 1)
    assert costs.weights((1, 2), 3) == (0.0, 1.0)
    assert all(np.isfinite(cost) for cost, _ in best_schedules(costs).values())


def test_uniform_steps() -> None:
    assert uniform_steps(10, 5) == (0, 2, 4, 6, 8)
    assert len(uniform_steps(25, 13)) == 13
    assert uniform_steps(4, 4) == (0, 1, 2, 3)


def test_the_rule_of_streamlined_inference() -> None:
    features = np.array([[1, 0], [1, 0.01], [0, 1], [0.01, 1], [1, 1]], dtype=float)
    gram = features @ features.T
    assert similar_steps(gram, 0.99) == (0, 2, 4)
    assert similar_steps(gram, -1) == (0,)
    assert similar_steps_of(gram, 3) == (0, 2, 4)
    assert len(similar_steps_of(gram, 2)) <= 2
