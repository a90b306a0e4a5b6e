"""Step Rehash where calls differ: another graph, another length, interrupted, or with patches of the user's own."""

from __future__ import annotations

import functools
import logging
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import sicompiler
from sicompiler import Rehash, RehashPlan
from sicompiler.pipelines.pipeline import pipeline_state
from sicompiler.pipelines.rehash.hooks import PipelineRehash
from sicompiler.pipelines.rehash.mode import Mode
from sicompiler.rehash.importance import evaluation_times
from sicompiler.rehash.lessons import CutStats, RunStats
from sicompiler.rehash.setting import Setting
from tests.mini_pipeline import MiniUNet, mini, picture
from tests.mini_rehash import CALL, ROOMY, STEPS, call_list, plan_of, rehashed

pytestmark = pytest.mark.usefixtures("fast_skips", "cached")


class TwoGraphs(MiniUNet):
    """More operators in front of large samples, as guidance puts them there."""

    def forward(self, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        for _ in range(5 if sample.shape[-1] > 8 else 0):
            sample = sample * 0.9
        return super().forward(sample, *args, **kwargs)


def _learning(pipe: Any = None, **target: Any) -> Any:
    """A pipeline whose first call is learned from."""
    return sicompiler.compile_for_budget(
        pipe or mini(), ROOMY, rehash=Rehash(accept_worse=True, **(target or {"rel_error": 0.9}))
    )


def _rehash(pipe: Any) -> PipelineRehash:
    state = pipeline_state(pipe, "look")
    assert state.rehash is not None
    return state.rehash


@pytest.mark.parametrize("sizes", [(16, 24), (24, 16)], ids=["short graph first", "long graph first"])
def test_every_graph_is_learned_by_itself(sizes: tuple[int, int]) -> None:
    pipe = _learning(mini(unet=TwoGraphs()))
    for size in sizes:
        pipe(picture(size), steps=STEPS)
        pipe(picture(size), steps=STEPS)
        assert sicompiler.rehash_report(pipe).skipped > 0
    first, second = _rehash(pipe).lessons.values()
    for one, other in zip(first, second, strict=True):
        assert one.cut != other.cut
        assert one.names == other.names, "the same operators, at other positions"


def test_the_report_is_of_the_plan_of_the_newest_loop() -> None:
    pipe = _learning(mini(unet=TwoGraphs()))
    for size in (16, 24):
        pipe(picture(size), steps=STEPS)
        found = plan_of(pipe)
        assert found is list(_rehash(pipe).plans.values())[-1]
    pipe(picture(16), steps=STEPS)
    assert plan_of(pipe) is next(iter(_rehash(pipe).plans.values()))


def test_an_interrupted_first_call_is_not_the_last_to_learn_from(caplog: pytest.LogCaptureFixture) -> None:
    def stop(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = True
        return values

    pipe = _learning()
    with caplog.at_level(logging.WARNING):
        pipe(**CALL, callback_on_step_end=stop)
    assert "learned nothing: the loop ran unet at 1 of its 8 steps" in caplog.text
    pipe(**CALL)
    pipe(**CALL)
    assert sicompiler.rehash_report(pipe).skipped > 0


class Hidden(diffusers.DDIMScheduler):  # type: ignore[misc]
    """Steps are taken where nobody sees them, as by a copy."""

    step = property(lambda self: functools.partial(diffusers.DDIMScheduler.step, self))


def test_a_loop_whose_steps_are_not_seen_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    pipe = _learning(mini(scheduler=Hidden(clip_sample=False)))
    with caplog.at_level(logging.WARNING):
        pipe(**CALL)
    assert "learned nothing: the loop took no step of the scheduler" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        pipe(**CALL)
    assert "skips nothing: the loop took no step" in caplog.text
    with pytest.raises(sicompiler.BadInput, match="took no step of the scheduler of MiniPipeline"):
        rehashed(mini(scheduler=Hidden(clip_sample=False)), speedup=1.5, calls=call_list(1))


@pytest.mark.parametrize("first", [True, False], ids=["first call", "later call"])
def test_a_call_in_which_nothing_can_be_skipped_runs_in_full(caplog: pytest.LogCaptureFixture, first: bool) -> None:
    pipe = _learning()
    if not first:
        pipe(**CALL)
    with caplog.at_level(logging.WARNING):
        assert torch.isfinite(pipe(picture(), steps=1)).all()
        pipe(picture(), steps=1)
    assert "skips nothing: no plan skips any of 1 evaluations" in caplog.text
    assert sicompiler.rehash_report(pipe).skipped == 0


def test_a_speed_that_fewer_steps_do_not_reach_is_no_error_of_the_call(caplog: pytest.LogCaptureFixture) -> None:
    pipe = rehashed(speedup=2.5, calls=call_list(2), accept_worse=True)
    with caplog.at_level(logging.WARNING):
        assert torch.isfinite(pipe(picture(), steps=2)).all()
    assert "skips nothing: speedup=2.5 can't be reached" in caplog.text
    pipe(**CALL)
    assert sicompiler.rehash_report(pipe).skipped > 0


def test_steps_and_bars_that_users_have_patched_stay_theirs() -> None:
    pipe, seen = mini(), list[str]()
    step, bar = pipe.scheduler.step, pipe.progress_bar

    def own_step(*args: Any, **kwargs: Any) -> Any:
        seen.append("step")
        return step(*args, **kwargs)

    def own_bar(*args: Any, **kwargs: Any) -> Any:
        seen.append("bar")
        return bar(*args, **kwargs)

    pipe.scheduler.step, pipe.progress_bar = own_step, own_bar
    _learning(pipe)
    for _ in range(2):
        seen.clear()
        pipe(**CALL)
        assert seen == ["bar", *["step"] * STEPS]
    sicompiler.release(pipe)
    assert pipe.scheduler.step is own_step
    assert pipe.progress_bar is own_bar


def test_nothing_of_a_loop_stays_on_the_device() -> None:
    pipe = _learning()
    for _ in range(2):
        pipe(**CALL)
        loop = _rehash(pipe).last
        assert loop is not None
        assert loop.final is None
        assert loop.held_bytes == 0


def test_features_that_are_kept_count_once(half: RehashPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the denoiser's plans have room for is no part of what the rest of the pipeline holds."""
    pipe = mini()
    sicompiler.compile_for_budget(pipe, ROOMY, rehash=Rehash(plan=half))
    pipe(**CALL)
    rehash, held, kept = _rehash(pipe), list[int](), list[int]()
    evaluate = PipelineRehash.evaluate

    def watched(self: PipelineRehash, component: Any, loop: Any, *args: Any) -> Any:
        held.append(component.reserved.held_bytes)
        kept.append(loop.held_bytes)
        return evaluate(self, component, loop, *args)

    monkeypatch.setattr(PipelineRehash, "evaluate", watched)
    pipe(**CALL)
    with rehash.running(Mode.EXACT):
        pipe(**CALL)
    assert max(kept[:STEPS]) > 0 == max(kept[STEPS:])
    assert all(own <= exact for own, exact in zip(held[:STEPS], held[STEPS:], strict=True))


def test_plans_of_other_lengths_see_the_whole_run() -> None:
    """Schedulers whose last noise level is zero have no logarithms of it: shares of the run take their place."""
    scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    times = []
    for steps in (6, 11):
        scheduler.set_timesteps(steps)
        times.append(evaluation_times(scheduler))
    assert times[0] == pytest.approx(np.linspace(0, 1, 6))
    features = np.arange(6.0)[:, None]  # moves evenly: so it has to in twice as many steps
    rows = CutStats((3,), ("add",), 64, times[0], np.ones(6))
    rows.add(RunStats((features @ features.T,), np.ones(6), 1.0, 0.1), 1.0)
    found = rows.at(times[1], np.ones(11)).lessons[0].grams[0]
    assert np.sqrt(np.diag(found)) == pytest.approx(np.linspace(0, 5, 11))


def test_lessons_say_nothing_of_times_of_another_kind() -> None:
    falling, shares = Setting("a", "DDIM()", (3.0, 1.0, -2.0)), Setting("a", "Zero()", (0.0, 0.5, 1.0))
    assert falling.is_like(Setting("a", "Euler()", (2.0, -1.0)))
    assert not falling.is_like(shares)
    assert not falling.is_like(Setting("b", "DDIM()", (3.0, 1.0, -2.0)))
