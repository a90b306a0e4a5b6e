"""What an error at one evaluation does to the final latents: measured where one is skipped, interpolated between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sicompiler
from sicompiler import Rehash
from sicompiler.pipelines.pipeline import CompiledPipeline, pipeline_state
from sicompiler.pipelines.rehash import response
from sicompiler.pipelines.rehash.calibrate import learn
from sicompiler.pipelines.rehash.mode import Mode
from sicompiler.pipelines.rehash.trials import relative_error, run_call
from sicompiler.planners.skip_schedule import Floats, Prediction, squared_error
from sicompiler.rehash.book import CalibrationFile
from sicompiler.rehash.lessons import CutStats, RunStats
from sicompiler.rehash.plan import RehashPlan
from sicompiler.rehash.response import probed, response_of, skipping_one
from tests.mini_pipeline import mini
from tests.mini_rehash import ROOMY, STEPS, call_list

pytestmark = pytest.mark.usefixtures("cached")


def _lessons(importance: Floats) -> CutStats:
    """Of one run whose feature walks at random, with a change of the output of two per relative error."""
    features = np.random.default_rng(0).standard_normal((len(importance), 4)).cumsum(0)
    rows = CutStats((3,), ("add",), 64, tuple(map(float, range(len(importance)))), importance)
    rows.add(RunStats((features @ features.T,), np.full(len(importance), 2.0), 1.0, 0.1), 5.0)
    return rows


def _reused(rows: CutStats, step: int) -> float:
    """Relative error of the feature where that of the evaluation before is reused."""
    return float((squared_error(rows.gram, Prediction((step - 1,), (1.0,)), step) / rows.gram[step, step]) ** 0.5)


@pytest.mark.pure
def test_weights_foretell_what_skipping_one_evaluation_does() -> None:
    rows = _lessons(np.linspace(0.1, 1, 12))
    growth = 3.0 * rows.importance**-0.5  # of errors through the denoiser, beside what the scheduler makes of them
    errors = {step: [2.0 * _reused(rows, step) * rows.importance[step] * growth[step]] for step in probed(12)}
    rows.response = response_of(rows, errors)
    for step, (error,) in errors.items():
        assert rows.weight[step] * _reused(rows, step) == pytest.approx(error, rel=1e-9)
    whole = 2.0 * rows.importance * growth
    assert rows.weight[1:] == pytest.approx(whole[1:], rel=0.05), "between them, logarithms are interpolated"


@pytest.mark.pure
def test_runs_that_show_nothing_are_left_out() -> None:
    rows = _lessons(np.ones(6))
    assert response_of(rows, {1: [0.0], 3: [float("inf")], 5: []}) is None
    found = response_of(rows, {1: [float("inf")], 3: [0.5, 0.5]})
    assert found == pytest.approx(np.full(6, 0.5 / (2 * _reused(rows, 3))))


@pytest.mark.pure
def test_other_steps_keep_how_errors_grow() -> None:
    rows = _lessons(np.linspace(0.1, 1, 6))
    rows.response = 4 * rows.importance
    moved = rows.at(tuple(np.linspace(0, 5, 11)), np.linspace(0.05, 0.5, 11))
    assert moved.response == pytest.approx(4 * np.linspace(0.05, 0.5, 11))


@pytest.mark.pure
@pytest.mark.parametrize("count", [1, 2, 5, 25, 50])
def test_evaluations_that_are_skipped_are_never_the_first(count: int) -> None:
    steps = probed(count)
    assert len(steps) == min(count - 1, 6)
    assert all(0 < step < count for step in steps)
    for step in steps:
        schedule = skipping_one(count, step)
        assert [i for i, p in enumerate(schedule) if p is not None] == [step]


def _learned(calls: list[dict[str, Any]], **wanted: Any) -> CompiledPipeline:
    pipe = mini()
    sicompiler.compile_for_budget(pipe, ROOMY, rehash=Rehash(speedup=1.5, **wanted))
    state = pipeline_state(pipe, "learn")
    learn(state, calls)
    return state


def test_what_was_measured_is_what_a_run_shows() -> None:
    (call,) = call_list(1)
    state = _learned([call])
    assert state.rehash is not None
    ((setting, lessons),) = state.rehash.lessons.items()
    smallest = min(lessons, key=lambda rows: rows.nbytes)
    with state.rehash.running(Mode.EXACT):
        reference = run_call(state, call).final
    for step in probed(STEPS):
        state.rehash.plans[setting] = response.plan_skipping_one(state.rehash.subject(setting), smallest, step)
        found = relative_error(run_call(state, call).final, reference)
        assert smallest.weight[step] * _reused(smallest, step) == pytest.approx(found, rel=1e-3)
    assert all(rows.response is smallest.response for rows in lessons)


def test_no_part_that_gives_features_is_planned_for_runs_that_skip_one_evaluation() -> None:
    state = _learned(call_list(2))
    parts = [part for component in state.components.values() for _, part in component.parts]
    assert any(part.kind == "skip" for part in parts)
    assert all(part.looked_at for part in parts if part.kind == "full"), "only what learning watches"


class Interrupted(Exception):
    """Somebody pulled the plug."""


def test_what_was_measured_before_an_interruption_is_not_measured_again(tmp_path: Path) -> None:
    path, seen = tmp_path / "lessons.json", list[int]()

    def calibrated(stop: int | None) -> RehashPlan | None:
        def progress(what: str, done: int, total: int) -> None:
            if what == "Step Rehash: measuring how errors grow":
                seen.append(done)
                if done == stop:
                    raise Interrupted

        request = Rehash(rel_error=0.9, calls=call_list(3), lessons=path)
        return sicompiler.rehash_report(
            sicompiler.compile_for_budget(mini(), ROOMY, rehash=request, progress=progress)
        ).plan

    with pytest.raises(Interrupted):
        calibrated(4)
    assert [len(run.errors) for run in CalibrationFile.load(path).runs] == [3, 1, 0]
    seen.clear()
    whole = calibrated(None)
    assert seen == [4, 5]
    seen.clear()
    assert calibrated(None) is not None
    assert seen == []
    assert whole is not None


def test_without_room_the_scheduler_has_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise sicompiler.OverBudget("no room", budget_bytes=1, floor_bytes=2, culprit="unet")

    monkeypatch.setattr(response, "run_call", refuse)
    state = _learned(call_list(1))
    assert state.rehash is not None
    ((setting, lessons),) = state.rehash.lessons.items()
    assert all(rows.response is None for rows in lessons)
    assert setting not in state.rehash.plans
    assert (lessons[0].weight > 0).all()
