"""Step Rehash: plans as values, targets that are met or refused, rules to compare with."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import sicompiler
from sicompiler import Rehash, RehashPlan
from sicompiler.pipelines.pipeline import pipeline_state
from sicompiler.pipelines.rehash.mode import Mode
from sicompiler.pipelines.rehash.trials import Run, difference, run_call
from sicompiler.rehash.importance import evaluation_times, scheduler_importance
from tests.mini_pipeline import mini
from tests.mini_rehash import (
    CALL,
    ROOMY,
    STEPS,
    call_list,
    error_of,
    plan_of,
    rehashed,
)
from tests.rehash_models import prompted

pytestmark = pytest.mark.usefixtures("fast_skips", "cached")


@pytest.mark.parametrize(
    ("change", "names"),
    [({"steps": STEPS + 1}, "evaluations 8, but this is 9"), ({}, "scheduler DDIMScheduler")],
    ids=["step count", "scheduler"],
)
def test_a_plan_of_something_else_is_refused(half: RehashPlan, change: dict[str, Any], names: str) -> None:
    pipe = mini()
    if not change:
        pipe.scheduler = diffusers.EulerDiscreteScheduler()
    sicompiler.compile_for_budget(pipe, ROOMY, rehash=Rehash(plan=half))
    with pytest.raises(sicompiler.StalePlan, match=names):
        pipe(**{**CALL, **change})


def test_plans_are_saved_and_loaded(half: RehashPlan, tmp_path: Path) -> None:
    pipe = mini()
    half.save(tmp_path / "plan.json")
    assert RehashPlan.load(tmp_path / "plan.json") == half
    sicompiler.compile_for_budget(pipe, ROOMY, rehash=Rehash(plan=tmp_path / "plan.json"))
    pipe(**CALL)
    assert sicompiler.rehash_report(pipe).plan == half
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(sicompiler.StalePlan, match="not a rehash plan"):
        RehashPlan.load(tmp_path / "other.json")
    with pytest.raises(sicompiler.BadInput, match="can't read the plan"):
        sicompiler.compile_for_budget(pipe, ROOMY, rehash=Rehash(plan=tmp_path / "none.json"))
    pipe(**CALL)
    assert sicompiler.rehash_report(pipe).plan == half, "after a failure the pipeline is compiled as it was"


def test_targets_that_cannot_be_met_name_the_nearest() -> None:
    pipe = mini()
    with pytest.raises(sicompiler.BadInput, match=r"nearest target is speedup="):
        rehashed(pipe, speedup=1000)
    with pytest.raises(sicompiler.BadInput, match=r"the nearest is rel_error="):
        rehashed(pipe, rel_error=1e-15)
    with pytest.raises(sicompiler.BadInput, match="held_out"):
        rehashed(pipe, psnr=30)
    with pytest.raises(sicompiler.NotCompiled):
        sicompiler.report(pipe)
    assert "progress_bar" not in pipe.__dict__, "after a failure the pipeline is as it was"
    sicompiler.compile_for_budget(pipe, "3MiB")
    with pytest.raises(sicompiler.BadInput):
        rehashed(pipe, speedup=1000)
    assert sicompiler.report(pipe).budget_bytes == 3 * 2**20, "and as compiled as it was"
    pipe(**CALL)


def test_an_error_that_was_asked_for_is_verified_on_runs_that_were_held_out() -> None:
    pipe = rehashed(rel_error=0.05, calls=call_list(4), held_out=2)
    pipe(**CALL)
    plan = plan_of(pipe)
    assert plan.verified is not None
    assert plan.verified.runs == 2
    assert plan.verified.rel_error <= 0.05
    assert plan.verified.confidence == pytest.approx(2 / 3)
    points = plan.frontier()
    assert [p.speedup for p in points] == sorted((p.speedup for p in points), reverse=True)
    pipe = rehashed(psnr=25, calls=call_list(4), held_out=2)
    pipe(**CALL)
    assert (verified := plan_of(pipe).verified) is not None
    assert verified.psnr >= 25


def test_a_plan_knows_what_it_competes_with_on_the_same_runs(caplog: pytest.LogCaptureFixture) -> None:
    calls = [{"prompt": "a cat", "generator": torch.Generator().manual_seed(number)} for number in range(3)]
    pipe = rehashed(prompted(), rel_error=0.3, calls=calls, held_out=2)
    pipe(**calls[0])
    plan = plan_of(pipe)
    assert plan.verified is not None
    even, fewer = plan.verified.others
    assert (even.method, fewer.method) == ("uniform", "fewer steps")
    steps = round(plan.evaluations / plan.speedup)
    assert (even.full, fewer.full) == (len(plan.full), steps)
    state = pipeline_state(pipe, "compare")
    assert state.rehash is not None
    found = []
    for call in calls[1:]:
        with state.rehash.running(Mode.EXACT):
            reference = run_call(state, call)
            found.append(difference(run_call(state, {**call, "num_inference_steps": steps}), reference))
    assert fewer.rel_error == pytest.approx(max(d.rel_error for d in found), rel=1e-5)
    assert fewer.psnr == pytest.approx(min(d.psnr for d in found), rel=1e-5)
    assert len(plan.verified.nearer) == sum(o.rel_error < plan.verified.rel_error for o in (even, fewer))
    assert all(f"Step Rehash: {line}" in caplog.messages for line in plan.verified.nearer)


@pytest.mark.parametrize("strategy", ["uniform", "taylor", "similarity", "deepcache"])
def test_rules_to_compare_with(strategy: str) -> None:
    pipe = rehashed(rel_error=0.45, strategy=strategy)
    state = pipeline_state(pipe, "compare")
    assert state.rehash is not None
    with state.rehash.running(Mode.EXACT):
        reference = run_call(state, CALL)
    assert 0 < difference(run_call(state, CALL), reference).rel_error <= 0.45
    plan = plan_of(pipe)
    assert plan.strategy == strategy
    assert sicompiler.rehash_report(pipe).skipped == plan.evaluations - len(plan.full) > 0
    if strategy == "deepcache":
        assert len({b - a for a, b in itertools.pairwise(plan.full)}) <= 1


@pytest.mark.pure
@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({}, "exactly one"),
        ({"speedup": 2, "psnr": 30}, "exactly one"),
        ({"speedup": 0.5}, "above 1"),
        ({"rel_error": 2}, "between 0 and 1"),
        ({"speedup": 2, "order": 3}, "order is 0, 1 or 2"),
        ({"speedup": 2, "held_out": 1}, "can be held out"),
        ({"speedup": 2, "predictor": "magic"}, "predictor is one of"),
        ({"speedup": 2, "strategy": "magic"}, "strategy is one of"),
        ({"psnr": 30}, "held_out of at least 1"),
        ({"plan": "plan.json", "calls": [CALL]}, "leave the calls out"),
    ],
)
def test_requests_that_make_no_sense(wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(sicompiler.BadInput, match=message):
        Rehash(**wanted)


def test_rehash_belongs_to_pipelines() -> None:
    with pytest.raises(sicompiler.BadInput, match="belongs to a pipeline"):
        sicompiler.compile_for_budget(mini().unet, 1, rehash=Rehash(speedup=2))
    pipe = sicompiler.compile_for_budget(mini(), ROOMY)
    with pytest.raises(sicompiler.NotCompiled, match="without Step Rehash"):
        sicompiler.rehash_report(pipe)


def test_a_first_call_is_not_lost_for_a_target_out_of_reach(caplog: pytest.LogCaptureFixture) -> None:
    pipe = mini()
    exact = pipe(**CALL)
    sicompiler.compile_for_budget(pipe, ROOMY, rehash=Rehash(speedup=1000, accept_worse=True))
    with caplog.at_level("WARNING"):
        assert error_of(pipe(**CALL), exact) < 1e-5
    assert "will skip nothing: speedup=1000 can't be reached by skipping" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING"):
        assert error_of(pipe(**CALL), exact) < 1e-5
    assert "skips nothing: speedup=1000" in caplog.text


def test_held_out_calls_of_another_setting_are_refused() -> None:
    calls = [*call_list(2), *call_list(1, steps=STEPS + 2)]
    with pytest.raises(sicompiler.BadInput, match="of 8 evaluations, but this is one of 10"):
        rehashed(rel_error=0.9, calls=calls, held_out=1)


@pytest.mark.pure
def test_runs_that_are_not_finite_match_nothing() -> None:
    good = Run([torch.ones(1)], torch.ones(2), (), 0.0)
    bad = Run([torch.ones(1)], torch.tensor([1.0, float("nan")]), (), 0.0)
    assert difference(bad, good).rel_error == float("inf")
    assert difference(bad, good).psnr == -float("inf")
    with pytest.raises(sicompiler.BadInput, match="not finite"):
        difference(good, bad)


@pytest.mark.pure
@pytest.mark.parametrize("name", ["CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "DDPMScheduler"])
def test_schedulers_of_other_kinds_are_weighed(name: str) -> None:
    scheduler = getattr(diffusers, name)(**({} if name == "DDPMScheduler" else {"rescale_betas_zero_snr": True}))
    scheduler.set_timesteps(6)
    times = evaluation_times(scheduler)
    assert len(times) == 6
    assert all(map(math.isfinite, times))
    before = torch.get_rng_state()
    weights = scheduler_importance(scheduler)
    assert torch.equal(torch.get_rng_state(), before)
    assert weights.shape == (6,)
    assert (weights > 1e-3).all(), "no step is free"
