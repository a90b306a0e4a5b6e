"""Step Rehash inside a run that changes: what is kept of one kind of call never serves another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

import sicompiler
from sicompiler import Rehash, RehashPlan
from tests.mini_pipeline import MiniPipeline, MiniText, MiniUNet, MiniVae, picture
from tests.mini_rehash import ROOMY, STEPS, error_of, skipping_is_fast, told_clock

pytestmark = pytest.mark.usefixtures("fast_skips", "cached")

Change = Callable[[Any, int], None]  # what happens to a pipeline before a step


class Changing(MiniPipeline):
    """Guidance in one call of the denoiser, or in one call a branch; what is done before each step is up to a test."""

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        image: torch.Tensor,
        steps: int = STEPS,
        change: Change | None = None,
        strength: float = 1.0,
        separate: str = "",
        scale: float = 2.0,
        told: bool = True,
    ) -> torch.Tensor:
        self.check_inputs(image)
        self._guidance_scale, self.size = scale, None
        ids = torch.arange(6).reshape(2, 3)
        without, prompt = self.text_encoder(ids).chunk(2)
        both, dtype = torch.cat([without, prompt]), image.dtype
        latents = self.vae.encode(image).latent_dist.mode()
        self.scheduler.set_timesteps(steps)
        times = self.scheduler.timesteps[steps - round(steps * strength) :]
        with self.progress_bar(total=len(times) if told else steps):
            for step, t in enumerate(times):
                if change is not None:
                    change(self, step)
                    latents = latents if self.size is None else latents[..., : self.size]
                guided = self._guidance_scale > 1
                if separate and guided:
                    order = (without, prompt) if separate == "without first" else (prompt, without)
                    one, two = (self._denoised(latents, t, x) for x in order)
                    away, to = (one, two) if separate == "without first" else (two, one)
                elif guided:
                    away, to = self._denoised(torch.cat([latents] * 2), t, both).chunk(2)
                else:
                    away = to = self._denoised(latents, t, prompt)
                noise = away + self._guidance_scale * (to - away) if guided else to
                latents = self.scheduler.step(noise.to(dtype), t, latents).prev_sample
        found: torch.Tensor = self.vae.decode(latents, return_dict=False)[0]
        return found

    def _denoised(self, latents: torch.Tensor, t: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        dtype = self.unet.dtype
        found: torch.Tensor = self.unet(latents.to(dtype), t, encoder_hidden_states=prompt.to(dtype)).sample
        return found


def _changing(scheduler: Any = None) -> Any:
    torch.manual_seed(0)
    parts = {"text_encoder": MiniText(), "unet": MiniUNet(), "vae": MiniVae()}
    scheduler = scheduler or DDIMScheduler(clip_sample=False)
    pipe = Changing(**{k: v.double().eval() for k, v in parts.items()}, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _off_at(step: int, on_at: int = STEPS) -> Change:
    """Guidance is off for a while, as documented callbacks switch it off."""

    def change(pipe: Any, now: int) -> None:
        if step <= now:
            pipe._guidance_scale = 0.0 if now < on_at else 2.0

    return change


def _weaker_at(step: int) -> Change:
    def change(pipe: Any, now: int) -> None:
        pipe._guidance_scale = 1.5 if now >= step else 2.0

    return change


def _narrow_at(step: int) -> Change:
    def change(pipe: Any, now: int) -> None:
        pipe.size = 6 if now >= step else None

    return change


def _float_at(step: int) -> Change:
    def change(pipe: Any, now: int) -> None:
        pipe.unet.to(torch.float32 if now >= step else torch.float64)

    return change


def _gain_at(step: int) -> Change:
    def change(pipe: Any, now: int) -> None:
        pipe.unet.gain = 0.5 if now >= step else 1.0

    return change


def _calibrated(pipe: Any, **wanted: Any) -> Any:
    calls = [{"image": picture() + 0.1 * number, **wanted} for number in range(2)]
    return sicompiler.compile_for_budget(pipe, ROOMY, rehash=Rehash(rel_error=0.1, calls=calls, order=0))


@pytest.fixture(scope="module")
def guided() -> Any:
    """A pipeline that was calibrated on runs in which nothing changes."""
    with pytest.MonkeyPatch.context() as patch:
        told_clock(patch, skipping_is_fast)
        return _calibrated(_changing())


CHANGES = {
    "guidance off": (_off_at(4), "1/2 of the values"),
    "guidance off early": (_off_at(1), "1/2 of the values"),
    "guidance off and on": (_off_at(3, on_at=5), "1/2 of the values"),
    "guidance weaker": (_weaker_at(4), "guidance_scale 1.5 where it was guidance_scale 2"),
    "size": (_narrow_at(4), "sample: 1/2 of the values"),
    "dtype": (_float_at(4), "sample: float64 -> float32"),
    "model": (_gain_at(4), "the model itself has changed"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_in_the_middle_of_a_run_is_evaluated_in_full(name: str, guided: Any) -> None:
    change, reason = CHANGES[name]
    pipe, exact = guided, _changing()(picture(), change=change)
    found = pipe(picture(), change=change)
    pipe.unet.double().gain = 1.0
    assert found.shape == exact.shape
    report = sicompiler.rehash_report(pipe)
    rows = [e for e in report.evaluations if reason in e.reason]
    assert rows, f"no reason names it: {[e.reason for e in report.evaluations]}"
    assert all(e.prediction is None and not e.held_bytes for e in rows)
    assert rows[0].step == {"guidance off early": 1, "guidance off and on": 3}.get(name, 4)
    assert error_of(found, exact) <= 0.3
    exact = _changing()(picture())
    assert error_of(pipe(picture()), exact) <= 0.3, "the next run knows nothing of it"
    assert not any(e.reason for e in sicompiler.rehash_report(pipe).evaluations)


@pytest.mark.parametrize("off", [pytest.param(2, marks=pytest.mark.slow), 4, pytest.param(6, marks=pytest.mark.slow)])
def test_calibrating_on_runs_that_switch_guidance_off(off: int) -> None:
    change = _off_at(off)
    exact = _changing()(picture(), change=change)
    pipe = _calibrated(_changing(), change=change)
    found = pipe(picture(), change=change)
    report = sicompiler.rehash_report(pipe)
    assert 0 < error_of(found, exact) <= 0.3
    assert report.skipped > 0
    assert not any(e.reason for e in report.evaluations)
    assert report.plan is not None
    assert off in report.plan.full, "nothing before can foretell it"
    assert RehashPlan.from_json(report.plan.to_json()) == report.plan
    early = _changing()(picture(), change=_off_at(1))
    assert error_of(pipe(picture(), change=_off_at(1)), early) <= 0.3
    assert any("1/2 of the values" in e.reason for e in sicompiler.rehash_report(pipe).evaluations)


@pytest.mark.parametrize("separate", ["with first", "without first"])
def test_a_branch_that_goes_is_not_taken_for_the_other(separate: str) -> None:
    """Features of the call without the prompt never serve the one with it, whichever comes first."""
    change = _off_at(4)
    exact = _changing()(picture(), separate=separate, change=change)
    pipe = _calibrated(_changing(), separate=separate)
    found = pipe(picture(), separate=separate, change=change)
    rows = [e for e in sicompiler.rehash_report(pipe).evaluations if e.step >= 4]
    assert all(e.prediction is None for e in rows), "the plan knows two calls a step, with other guidance"
    assert error_of(found, exact) <= 0.3
    pipe = _calibrated(_changing(), separate=separate, change=change)
    found = pipe(picture(), separate=separate, change=change)
    report = sicompiler.rehash_report(pipe)
    assert [e.branch for e in report.evaluations] == [0, 1] * 4 + [0] * 4
    assert any(e.prediction is not None for e in report.evaluations)
    assert not any(e.reason for e in report.evaluations)
    assert error_of(found, exact) <= 0.3


LATE = [(0.4, DDIMScheduler, True), (0.6, EulerDiscreteScheduler, False)]
LATER = [(s, c, t) for s in (0.4, 0.6, 0.9) for c in (DDIMScheduler, EulerDiscreteScheduler) for t in (True, False)]


@pytest.mark.parametrize(
    ("strength", "scheduler", "told"),
    [*LATE, *(pytest.param(*row, marks=pytest.mark.slow) for row in LATER if row not in LATE)],
)
def test_a_run_that_starts_late_has_a_plan_for_the_steps_that_run(strength: float, scheduler: Any, told: bool) -> None:
    """Whether the bar is told of the steps that run or of all."""
    call = {"steps": 2 * STEPS, "strength": strength, "told": told}
    exact = _changing(scheduler())(picture(), **call)
    pipe = _calibrated(_changing(scheduler()), **call)
    found = pipe(picture(), **call)
    report = sicompiler.rehash_report(pipe)
    assert report.plan is not None
    assert report.plan.evaluations == len(report.evaluations) == round(2 * STEPS * strength)
    assert report.skipped > 0
    assert error_of(found, exact) <= 0.3
    whole = _changing(scheduler())(picture(), steps=2 * STEPS)
    assert error_of(pipe(picture(), steps=2 * STEPS), whole) < 1e-12, "nothing was checked of runs from the start"
    assert sicompiler.rehash_report(pipe).skipped == 0
    assert "evaluations, but this is one of" in sicompiler.rehash_report(pipe).evaluations[0].reason


def test_other_guidance_than_was_calibrated_runs_in_full(guided: Any) -> None:
    pipe, exact = guided, _changing()(picture(), scale=7.5)
    assert error_of(pipe(picture(), scale=7.5), exact) < 1e-12
    (reason,) = {e.reason for e in sicompiler.rehash_report(pipe).evaluations}
    assert "guidance_scale 2, but this is guidance_scale 7.5" in reason
    assert "accept_worse=True" in reason
    pipe(picture(), scale=2.0)
    assert sicompiler.rehash_report(pipe).skipped > 0
    narrow = picture(16)
    assert error_of(pipe(narrow), _changing()(narrow)) < 1e-12
    assert "inputs of 4x12x12, but these are of 4x8x8" in sicompiler.rehash_report(pipe).evaluations[0].reason


def test_a_run_that_was_interrupted_leaves_nothing_to_one_of_another_kind(guided: Any) -> None:
    def stop(pipe: Any, step: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    pipe = guided
    with pytest.raises(KeyboardInterrupt):
        pipe(picture(), change=stop)
    exact = _changing()(picture(), change=_off_at(0))
    assert error_of(pipe(picture(), change=_off_at(0)), exact) < 1e-12, "of guidance that is off nothing was checked"
    assert sicompiler.rehash_report(pipe).skipped == 0
