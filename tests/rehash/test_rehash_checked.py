"""Step Rehash skips by plans that were checked on calls, and are nearer to the full run than fewer steps as fast."""

from __future__ import annotations

import dataclasses
import logging
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

import sicompiler
from sicompiler import Rehash
from sicompiler.pipelines.pipeline import pipeline_state
from sicompiler.pipelines.rehash.calibrate import learn
from sicompiler.pipelines.rehash.contest import without_a_call
from sicompiler.pipelines.rehash.mode import Mode
from sicompiler.pipelines.rehash.runs import Difference, difference, run_call
from sicompiler.pipelines.rehash.trials import Trials
from sicompiler.rehash.choose import GUARD, LEAST_BOUND, PlanInputs, guarded, planned
from sicompiler.rehash.lessons import CutStats, RunStats
from sicompiler.rehash.plan import RehashPlan
from tests.mini_pipeline import mini
from tests.mini_rehash import CALL, ROOMY, STEPS, call_list, error_of, plan_of, rehashed
from tests.rehash_models import prompted

pytestmark = pytest.mark.usefixtures("fast_skips", "cached")


def test_nothing_is_skipped_without_calls_to_check_a_plan_on(caplog: pytest.LogCaptureFixture) -> None:
    pipe = mini()
    exact = pipe(**CALL)
    sicompiler.compile_for_budget(pipe, ROOMY, rehash=Rehash(speedup=1.8))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert error_of(pipe(**CALL), exact) < 1e-12
    report = sicompiler.rehash_report(pipe)
    assert (report.plan, report.skipped) == (None, 0)
    assert "calls=[...]" in report.why
    assert "accept_worse=True" in report.why
    assert f"nothing is skipped: {report.why}" in str(report)
    assert "skips nothing: no plan was checked yet" in caplog.text


def test_what_is_predicted_was_measured_on_calls_that_the_weights_had_not_learned_from() -> None:
    pipe = rehashed(rel_error=0.3, calls=call_list(4), held_out=1, order=1)
    plan = plan_of_next(pipe)
    assert plan.checked == 4
    state = pipeline_state(pipe, "measure")
    assert state.rehash is not None
    (setting,) = state.rehash.plans
    refit = without_a_call(state.rehash.lessons[setting], range(3), "least squares")
    found = []
    for number, call in enumerate(call_list(4)):
        with state.rehash.running(Mode.EXACT):
            full = run_call(state, call)
        state.rehash.plans[setting] = refit(plan, number)
        found.append(difference(run_call(state, call), full))
    assert plan.predicted_error == pytest.approx(statistics.median(d.rel_error for d in found), rel=1e-6)
    assert plan.frames_error == pytest.approx(statistics.median(d.frames for d in found), rel=1e-6)
    assert f"(median of {plan.checked} calls)" in str(sicompiler.rehash_report(pipe))


def test_a_guess_is_printed_as_no_prediction(half: RehashPlan) -> None:
    pipe = mini()
    sicompiler.compile_for_budget(pipe, ROOMY, rehash=Rehash(plan=half))
    pipe(**CALL)
    assert "error unknown: it was checked on no call" in str(sicompiler.rehash_report(pipe))
    assert "predicted" not in str(sicompiler.rehash_report(pipe))


def plan_of_next(pipe: Any) -> RehashPlan:
    """The plan of a call that is made now."""
    pipe(**CALL)
    return plan_of(pipe)


def _prompted_calls(count: int) -> list[dict[str, Any]]:
    return [{"prompt": "a cat", "generator": torch.Generator().manual_seed(number)} for number in range(count)]


@pytest.mark.parametrize(("where", "target"), [("learned", {"rel_error": 0.5}), ("held out", {"speedup": 1.3})])
def test_where_fewer_steps_are_nearer_nothing_is_skipped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, target: dict[str, Any], where: str
) -> None:
    """Fewer steps are told to be nearly exact, on the calls that were learned from or only on those held out."""
    calls, asked = _prompted_calls(3), list[int]()
    wanted: dict[str, Any] = {"calls": calls, "held_out": 1, "order": 0, **target}

    def fewer(self: Trials, share: float, _: object = None) -> tuple[list[Difference], int]:
        asked.append(round(share * STEPS))
        nearer = where == "learned" or self.calls == 1
        return [Difference(1e-6, 99.0, {}, 1e-6 if nearer else math.inf)] * self.calls, asked[-1]

    monkeypatch.setattr(Trials, "fewer_steps", fewer)
    pipe = prompted()
    pipe.set_progress_bar_config(disable=True)
    exact = pipe(**{**calls[0], "generator": torch.Generator().manual_seed(0)})["frames"]
    with caplog.at_level(logging.WARNING):
        sicompiler.compile_for_budget(pipe, ROOMY, rehash=Rehash(**wanted))
    (line,) = [m for m in caplog.messages if m.startswith("Step Rehash skips nothing")]
    assert f"{asked[-1]} steps in full end nearer to the full run" in line
    assert "accept_worse=True" in line
    found = pipe(**{**calls[0], "generator": torch.Generator().manual_seed(0)})["frames"]
    assert error_of(found, exact) < 1e-5
    assert sicompiler.rehash_report(pipe).skipped == 0
    assert "end nearer to the full run" in sicompiler.rehash_report(pipe).why
    sicompiler.compile_for_budget(pipe, ROOMY, rehash=Rehash(accept_worse=True, **wanted))
    pipe(**calls[0])
    assert sicompiler.rehash_report(pipe).skipped > 0


def _run(features: np.ndarray[Any, Any]) -> RunStats:
    return RunStats((features @ features.T,), np.ones(len(features)), 1.0, 0.1)


def test_a_call_is_run_with_what_the_others_have_taught() -> None:
    walks: Sequence[Any] = [np.random.default_rng(n).standard_normal((8, 4)).cumsum(0) for n in range(3)]
    rows = CutStats((3,), ("add",), 64, tuple(map(float, range(8))), np.ones(8))
    for walk in walks:
        rows.add(_run(walk), 1.0)
    subject = PlanInputs("Pipe", "unet", "a", "DDIM()", 1)
    plan = next(p for p in planned(subject, [rows], "least squares", 2) if len(p.full) == 4 and p.order)
    refit = without_a_call([rows], (0, 1, 2), "least squares")(plan, 1)
    assert [p and p.sources for p in refit.steps] == [p and p.sources for p in plan.steps]
    assert refit.steps != plan.steps
    for step, prediction in enumerate(refit.steps):
        if prediction is not None and len(prediction.sources) > 1:
            weights = np.linalg.lstsq(
                np.concatenate([_scaled(w)[list(prediction.sources)].T for w in (walks[0], walks[2])]),
                np.concatenate([_scaled(w)[step] for w in (walks[0], walks[2])]),
                rcond=None,
            )[0]
            assert prediction.weights == pytest.approx(tuple(weights), rel=1e-3, abs=1e-3)


def _scaled(walk: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Features of a run, scaled to their own norm, as runs are before they are added up."""
    return np.asarray(walk / math.sqrt(float(np.square(walk).sum()) / len(walk)))


def test_the_guard_ends_skipping_at_twice_what_is_predicted(half: RehashPlan) -> None:
    step = next(i for i, check in enumerate(half.checks) if check is not None)
    assert GUARD == 2.0
    set_by = guarded(half, {step: 0.3}).checks[step]
    assert set_by is not None
    assert set_by.bound == 0.6
    least = guarded(half, {step: 0.0}).checks[step]
    assert least is not None
    assert least.bound == LEAST_BOUND


def test_a_speed_is_that_of_a_whole_call() -> None:
    pipe = mini()
    state = pipeline_state(sicompiler.compile_for_budget(pipe, ROOMY, rehash=Rehash(speedup=2)), "learn")
    learn(state, call_list(1))
    assert state.rehash is not None
    (setting,) = state.rehash.lessons
    plan = min(state.rehash.candidates(setting), key=lambda p: len(p.full))
    slow = dataclasses.replace(plan, outside_seconds=plan.evaluations * plan.whole_seconds)
    assert slow.loop_speedup == plan.speedup > 1.5
    assert slow.speedup < 2 / (1 + 1 / plan.speedup) + 1e-9
