"""Step Rehash in a pipeline: what it counts, keeps, charges and refuses; on a pipeline of few layers."""

from __future__ import annotations

import dataclasses
import logging
import threading
from typing import Any

import diffusers
import pytest
import torch

import sicompiler
from sicompiler import Rehash, RehashPlan
from sicompiler.pipelines.component import CompiledComponent
from sicompiler.pipelines.pipeline import pipeline_state
from sicompiler.pipelines.rehash.mode import Mode
from sicompiler.pipelines.roles import Phase
from sicompiler.rehash.request import Strategy
from tests.mini_pipeline import MiniPipeline, MiniText, MiniUNet, MiniVae, mini, picture
from tests.mini_rehash import (
    CALL,
    ROOMY,
    STEPS,
    call_list,
    error_of,
    half_plan,
    plan_of,
    rehashed,
)

pytestmark = pytest.mark.usefixtures("fast_skips", "cached")


def test_the_output_is_near_and_the_calls_are_those_of_the_plan(half: RehashPlan) -> None:
    pipe = mini()
    exact = pipe(**CALL)
    sicompiler.compile_for_budget(pipe, ROOMY, rehash=Rehash(plan=half))
    found = pipe(**CALL)
    assert 0 < error_of(found, exact) < 0.05
    report = sicompiler.rehash_report(pipe)
    assert report.plan == half
    assert [e.step for e in report.evaluations if e.prediction is None] == list(half.full)
    assert (report.full, report.skipped) == (STEPS // 2, STEPS - STEPS // 2)
    assert torch.equal(pipe(**CALL), found), "nothing is left over from the run before"


def test_off_is_bit_identical() -> None:
    pipe = mini()
    compiled = sicompiler.compile_for_budget(pipe, ROOMY)(**CALL)
    rehashed(pipe)
    state = pipeline_state(pipe, "ask")
    assert state.rehash is not None
    with state.rehash.running(Mode.EXACT):
        assert torch.equal(pipe(**CALL), compiled)
    sicompiler.compile_for_budget(pipe, ROOMY)
    assert torch.equal(pipe(**CALL), compiled)


SCHEDULERS = {
    "DDIM": lambda: diffusers.DDIMScheduler(clip_sample=False),
    "Euler": diffusers.EulerDiscreteScheduler,
    "Euler ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "DPM++ 2M": diffusers.DPMSolverMultistepScheduler,
    "UniPC": diffusers.UniPCMultistepScheduler,
    "Heun": diffusers.HeunDiscreteScheduler,
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_counts_its_own_evaluations(name: str) -> None:
    pipe = mini(scheduler=SCHEDULERS[name]())
    torch.manual_seed(0)
    exact = pipe(**CALL)
    sicompiler.compile_for_budget(pipe, ROOMY, rehash=Rehash(plan=half_plan(pipe)))
    torch.manual_seed(0)
    found = pipe(**CALL)
    report = sicompiler.rehash_report(pipe)
    assert len(report.evaluations) == (2 * STEPS - 1 if name == "Heun" else STEPS)
    assert report.plan is not None
    assert report.full == len(report.plan.full) < len(report.evaluations)
    assert error_of(found, exact) < 0.2
    assert "step" not in pipe.scheduler.__dict__, "the scheduler is as it was"


class SeparateGuidance(MiniPipeline):
    """Calls its denoiser once for each branch of the guidance."""

    @torch.no_grad()
    def __call__(self, image: torch.Tensor, steps: int = 2) -> torch.Tensor:  # type: ignore[override]
        self.check_inputs(image)
        prompt = self.text_encoder(torch.arange(3).reshape(1, 3))
        latents = self.vae.encode(image).latent_dist.mode()
        self.scheduler.set_timesteps(steps)
        with self.progress_bar(total=steps):
            for t in self.scheduler.timesteps:
                with_prompt = self.unet(latents, t, encoder_hidden_states=prompt).sample
                without = self.unet(latents, t, encoder_hidden_states=0 * prompt).sample
                latents = self.scheduler.step(without + 3 * (with_prompt - without), t, latents).prev_sample
        found: torch.Tensor = self.vae.decode(latents, return_dict=False)[0]
        return found


def _separate() -> Any:
    torch.manual_seed(0)
    parts = {"text_encoder": MiniText(), "unet": MiniUNet(), "vae": MiniVae()}
    pipe = SeparateGuidance(
        **{k: v.double().eval() for k, v in parts.items()}, scheduler=diffusers.DDIMScheduler(clip_sample=False)
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_branches_of_separate_guidance_keep_their_own_features() -> None:
    pipe = _separate()
    exact = pipe(**CALL)
    plan = half_plan(pipe)
    assert plan.branches == 2
    assert error_of(sicompiler.compile_for_budget(pipe, ROOMY, rehash=Rehash(plan=plan))(**CALL), exact) < 0.05
    report = sicompiler.rehash_report(pipe)
    assert [(e.step, e.branch) for e in report.evaluations] == [(i, b) for i in range(STEPS) for b in (0, 1)]
    assert plan.full_snapshots >= 1, "the other branch's feature is charged"


def test_an_interrupted_run_leaves_nothing_to_the_next() -> None:
    pipe = rehashed()
    wanted = pipe(**CALL)

    def stop(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step == STEPS - 3:
            raise KeyboardInterrupt
        return values

    with pytest.raises(KeyboardInterrupt):
        pipe(**CALL, callback_on_step_end=stop)
    assert torch.equal(pipe(**CALL), wanted)


def test_interrupt_by_the_callback_ends_the_loop_quietly() -> None:
    pipe = rehashed()

    def stop(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = True
        return values

    pipe(**CALL, callback_on_step_end=stop)
    assert len(sicompiler.rehash_report(pipe).evaluations) == 1
    assert len(pipe(**CALL)) == 1


def test_two_pipelines_in_two_threads_do_not_meet() -> None:
    pipes = [rehashed(mini()) for _ in range(2)]
    inputs = call_list(2)
    wanted = [pipe(**call) for pipe, call in zip(pipes, inputs, strict=True)]
    found: dict[int, list[torch.Tensor]] = {0: [], 1: []}

    def work(number: int) -> None:
        for _ in range(5):
            found[number].append(pipes[number](**inputs[number]))

    threads = [threading.Thread(target=work, args=(number,)) for number in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(x, wanted[number]) for number, row in found.items() for x in row)


@pytest.mark.parametrize("target", [{"rel_error": 0.9}, {"psnr": 20}, {"speedup": 1.5}], ids=lambda t: next(iter(t)))
def test_other_step_counts_are_planned_again_and_said_to_be_uncertified(
    caplog: pytest.LogCaptureFixture, target: dict[str, Any]
) -> None:
    pipe = rehashed(calls=call_list(3), held_out=1, accept_worse=True, **target)
    pipe(**CALL)
    certified = plan_of(pipe)
    assert certified.certified
    with caplog.at_level(logging.WARNING):
        pipe(**{**CALL, "steps": 12})
    assert "not certified" in caplog.text
    assert plan_of(pipe).evaluations == 12
    assert not plan_of(pipe).certified
    assert plan_of(pipe).predicted_error <= certified.predicted_error or "speedup" in target
    assert sicompiler.rehash_report(pipe).skipped > 0


def test_other_sizes_run_by_the_same_plan(half: RehashPlan) -> None:
    pipe = mini()
    exact = pipe(picture(16), steps=STEPS)
    sicompiler.compile_for_budget(pipe, ROOMY, rehash=Rehash(plan=half))
    assert error_of(pipe(picture(16), steps=STEPS), exact) < 0.05
    assert sicompiler.rehash_report(pipe).skipped == STEPS // 2


def test_without_calls_the_first_run_is_full_and_learned_from(caplog: pytest.LogCaptureFixture) -> None:
    pipe = mini()
    exact = pipe(**CALL)
    sicompiler.compile_for_budget(pipe, ROOMY, rehash=Rehash(rel_error=0.5, accept_worse=True))
    with caplog.at_level(logging.WARNING):
        first = pipe(**CALL)
    assert "runs in full and is learned from" in caplog.text
    assert error_of(first, exact) <= 1e-12
    pipe(**CALL)
    assert sicompiler.rehash_report(pipe).skipped > 0


def test_features_are_charged_to_the_budget(half: RehashPlan) -> None:
    pipe = mini()
    sicompiler.compile_for_budget(pipe, ROOMY)
    pipe(**CALL)
    low = int(sicompiler.report(pipe).floor_bytes)
    sicompiler.compile_for_budget(pipe, ROOMY, rehash=Rehash(plan=half))
    found = sicompiler.verify(pipe, ((), dict(CALL)))
    assert found.fits, str(found)
    rows = {row.component: row for row in found.phases}
    for kind in ("unet, full", "unet, skip"):
        row = rows[kind]
        assert row.measured_peak_bytes is not None
        assert row.predicted_peak_bytes is not None
        assert row.measured_peak_bytes <= row.predicted_peak_bytes
    least = max(row.floor_bytes or 0 for row in rows.values())
    assert least > low, "features need room of their own"
    sicompiler.compile_for_budget(pipe, f"{least}B", offload="none", rehash=Rehash(plan=half))
    assert sicompiler.verify(pipe, ((), dict(CALL))).fits
    sicompiler.compile_for_budget(pipe, f"{least - 1}B", offload="none", rehash=Rehash(plan=half))
    with pytest.raises(sicompiler.OverBudget, match="kept from step to step"):
        pipe(**CALL)


def test_features_are_freed_before_the_decoder_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = rehashed()
    pipe(**CALL)
    forward, decoding = CompiledComponent.forward, list[int]()

    def watched(self: CompiledComponent, *args: Any, **kwargs: Any) -> Any:
        rehash = self.pipeline.rehash
        if self.role.phase is Phase.DECODE and rehash is not None and rehash.last is not None:
            decoding.append(rehash.last.held_bytes + sum(t.nbytes for t in rehash.kept()))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(CompiledComponent, "forward", watched)
    pipe(**CALL)
    assert decoding == [0]
    held = sicompiler.rehash_report(pipe).evaluations
    assert max(e.held_bytes for e in held) <= plan_of(pipe).snapshots_bytes


@pytest.mark.parametrize("strategy", ["planned", "uniform", "taylor", "similarity", "deepcache"])
def test_the_guard_ends_skipping_where_features_move_as_never_before(
    caplog: pytest.LogCaptureFixture, strategy: Strategy
) -> None:
    pipe = mini()
    plan = half_plan(pipe, strategy=strategy)
    strict = dataclasses.replace(plan, checks=tuple(c and dataclasses.replace(c, bound=0.0) for c in plan.checks))
    sicompiler.compile_for_budget(pipe, ROOMY, rehash=Rehash(plan=strict))
    with caplog.at_level(logging.WARNING):
        pipe(**CALL)
    assert "the guard measured" in caplog.text
    report = sicompiler.rehash_report(pipe)
    assert any(e.guard_error is not None for e in report.evaluations)
    assert 0 < report.skipped < STEPS - len(plan.full)
    assert "the guard measured" in str(report)


def test_features_that_are_not_finite_end_skipping(half: RehashPlan, caplog: pytest.LogCaptureFixture) -> None:
    pipe = mini()
    sicompiler.compile_for_budget(pipe, ROOMY, rehash=Rehash(plan=half))
    with caplog.at_level(logging.WARNING):
        pipe(picture() * float("nan"), steps=STEPS)
    assert "not finite" in caplog.text
    assert sicompiler.rehash_report(pipe).skipped == 0


def test_release_gives_everything_back() -> None:
    pipe = mini()
    wanted = pipe(**CALL)
    before = (set(pipe.__dict__), set(pipe.scheduler.__dict__))
    rehashed(pipe)
    pipe(**CALL)
    sicompiler.release(pipe)
    assert set(pipe.__dict__) == before[0]
    assert set(pipe.scheduler.__dict__) == before[1]
    assert torch.equal(pipe(**CALL), wanted)


def test_a_plan_whose_steps_are_never_reached_is_told(half: RehashPlan, caplog: pytest.LogCaptureFixture) -> None:
    pipe = mini()
    sicompiler.compile_for_budget(pipe, ROOMY, rehash=Rehash(plan=half))

    def stop(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = True
        return values

    with caplog.at_level(logging.WARNING):
        pipe(**CALL, callback_on_step_end=stop)
    assert "Step Rehash skips nothing: the steps of the plan were never reached" in caplog.text
