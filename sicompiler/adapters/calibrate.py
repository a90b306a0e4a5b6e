"""Calibration: learn from full runs, choose, and verify on runs that were held out."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from sicompiler.adapters.pipeline import PipelineState
from sicompiler.adapters.rehash import PipelineRehash
from sicompiler.adapters.resume import Notes
from sicompiler.adapters.trials import Difference, Trials, peak_of, run_call, tell, worst_guard
from sicompiler.errors import BadInput
from sicompiler.rehash.choose import fastest_within, guarded, most_exact_at, unguarded, with_frontier
from sicompiler.rehash.plan import RehashPlan, Verified
from sicompiler.rehash.request import Rehash
from sicompiler.rehash.setting import Setting

TRIALS = 3  # calls that plans are tried on where the target is a speed-up
RETRIES = 8  # plans tried where the target is an error


def calibrate(state: PipelineState) -> RehashPlan:
    """Learn from the calls of the request, choose the plan that meets its target, verify it on those held out.

    Args:
        state: of the pipeline, compiled with a request that has calls.

    Raises:
        BadInput: the target can't be reached, or not be told without held-out calls; the calls are of several settings,
            or of another one than the lessons of the file that the request names.
        StalePlan: that file holds no lessons of this version.
    """
    rehash = state.rehash
    assert rehash is not None
    request, calls = rehash.request, list(rehash.request.calls)
    learned, held_out = calls[: len(calls) - request.held_out], calls[len(calls) - request.held_out :]
    if request.psnr is not None and not held_out:
        raise BadInput("psnr= can only be met by measuring: give held_out of at least 1")
    learn(state, learned)
    if not rehash.lessons:
        raise BadInput(f"nothing can be learned from these calls: {rehash.unlearned}; Step Rehash needs every step")
    if len(rehash.lessons) != 1:
        raise BadInput(
            f"the calls are of {len(rehash.lessons)} settings (model, scheduler, number of steps); calibrate one at a "
            "time"
        )
    setting = next(iter(rehash.lessons))
    plans = rehash.candidates(setting)
    verifying = Trials(state, setting, held_out)
    verifying.references()
    if request.speedup is not None:
        plan, plans = _at_speedup(state, setting, plans, request.speedup, learned[:TRIALS])
        if held_out:
            found = verifying.run(plan)
            assert found is not None  # it fitted while it was tried
            plan = _verified(plan, found)
    elif held_out:
        plan, plans = _within_error(verifying, plans, request)
    else:
        plan = rehash.plan_for(setting)
    rehash.plans[setting] = plan = with_frontier(plan, plans)
    rehash.expected = rehash.last = None  # later calls may be of other settings, and reports are of those calls
    tell(state, "calibrated", len(calls), len(calls))
    return plan


def learn(state: PipelineState, calls: Sequence[Mapping[str, Any]]) -> None:
    """Run calls in full and learn from them; those that are in the file of lessons, if there is one, are not run again.

    Args:
        state: of the pipeline.
        calls: keyword arguments.

    Raises:
        BadInput: the file of lessons is of another setting, or can't be read.
        StalePlan: it holds no lessons of this version.
    """
    assert state.rehash is not None
    notes = Notes(state.rehash, state.pipe, calls)
    with _learning(state.rehash):
        for number in notes.waiting:
            tell(state, "learning", number, len(calls))
            notes.add(number, run_call(state, calls[number]).final)


def _at_speedup(
    state: PipelineState,
    setting: Setting,
    plans: list[RehashPlan],
    speedup: float,
    learned: Sequence[Mapping[str, Any]],
) -> tuple[RehashPlan, list[RehashPlan]]:
    """The most exact plan of a speed, tried on calls that were learned from: what is held out takes no part in it.

    Returns:
        The plan, and all plans with seconds as far as they were measured.
    """
    assert state.rehash is not None
    most_exact_at(plans, speedup)  # names the nearest if even predictions reach none
    trials = Trials(state, setting, learned)
    plan = trials.most_exact([*plans, *state.rehash.by_rules(setting)], speedup)
    return plan, trials.corrected(plans)


def _within_error(trials: Trials, plans: list[RehashPlan], request: Rehash) -> tuple[RehashPlan, list[RehashPlan]]:
    """The fastest plan whose error on held-out calls is within the target.

    Returns:
        The plan, and all plans with seconds as far as they were measured.
    """
    wanted = request.rel_error if request.rel_error is not None else _error_of(request.psnr, trials)
    best: RehashPlan | None = None
    missed: RehashPlan | None = None
    tried: set[object] = set()
    for _ in range(RETRIES):
        faster = best.speedup if best is not None else 1.0
        waiting = [p for p in trials.corrected(plans) if p.speedup > faster and (p.cut, p.steps) not in tried]
        if not waiting:
            break
        try:
            plan = fastest_within(waiting, wanted)
        except BadInput:
            if best is None and missed is None:
                raise
            break
        tried.add((plan.cut, plan.steps))
        found = trials.run(unguarded(plan))
        if found is None:
            continue
        (plan,) = trials.corrected([_verified(guarded(plan, worst_guard(found)), found)])
        if _met(plan, request):
            if plan.speedup > faster:
                best = plan
            continue
        missed = plan
        worst = max(d.rel_error for d in found)
        wanted = min(wanted * 0.7, wanted * wanted / worst if worst else wanted * 0.7)
    if best is not None:
        return best, trials.corrected(plans)
    if missed is not None and missed.verified is not None:
        raise BadInput(
            f"the target was not met on {missed.verified.runs} held-out runs; the nearest plan tried has relative "
            f"error {missed.verified.rel_error:.3g} and PSNR {missed.verified.psnr:.1f} dB at "
            f"speedup={missed.speedup:.3g}"
        )
    raise BadInput("no plan that skips is faster than running in full: the features leave too little of the budget")


def _met(plan: RehashPlan, request: Rehash) -> bool:
    verified = plan.verified
    assert verified is not None
    if request.rel_error is not None:
        return verified.rel_error <= request.rel_error
    return verified.psnr >= (request.psnr or 0)


def _error_of(psnr: float | None, trials: Trials) -> float:
    """A first guess of the relative error of latents at which frames have some PSNR: as if both were alike."""
    frames = trials.references()[0].frames
    level = math.sqrt(float(torch.cat([f.double().flatten() for f in frames]).square().mean())) / peak_of(frames)
    return float(10 ** (-(psnr or 0) / 20) / max(level, 1e-6))


def _verified(plan: RehashPlan, found: list[Difference]) -> RehashPlan:
    verified = Verified(len(found), max(d.rel_error for d in found), min(d.psnr for d in found))
    return replace(plan, verified=verified)


@contextlib.contextmanager
def _learning(rehash: PipelineRehash) -> Iterator[None]:
    before, rehash.learning = rehash.learning, True
    try:
        yield
    finally:
        rehash.learning = before
