"""Calibration: learn from full runs, choose, and verify on runs that were held out."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from sicompiler.adapters.pipeline import PipelineState
from sicompiler.adapters.rehash import PipelineRehash
from sicompiler.adapters.resume import Notes
from sicompiler.adapters.verify import frames_of, rewinder
from sicompiler.errors import BadInput
from sicompiler.rehash.choose import fastest_within, guarded, most_exact_at, unguarded, with_frontier, worth_trying
from sicompiler.rehash.plan import RehashPlan, Verified
from sicompiler.rehash.setting import Setting

TRIED = 5  # plans that are compared where the target is a speed-up, beside those of rules
TRIALS = 3  # calls they are compared on
RETRIES = 6  # plans tried, one slower than the other, where the target is an error


@dataclass(frozen=True)
class Run:
    """What one call of a pipeline gave.

    Attributes:
        frames: as tensors.
        final: the latents at the end of the denoising loop.
        guard: errors the guard measured, by evaluation.
    """

    frames: list[torch.Tensor]
    final: torch.Tensor
    guard: Mapping[int, float]


@dataclass(frozen=True)
class Difference:
    """One run against the full one.

    Attributes:
        rel_error: of the final latents, by 2-norms.
        psnr: of the frames, in dB.
        guard: errors the guard measured, by evaluation.
    """

    rel_error: float
    psnr: float
    guard: Mapping[int, float]


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
    references = []
    for number, call in enumerate(held_out):
        _tell(state, "held-out runs in full", number, len(held_out))
        with in_full(rehash):
            references.append(run_call(state, call))
    plan = _chosen(state, setting, plans, (learned, held_out), references)
    rehash.plans[setting] = plan = with_frontier(plan, plans)
    rehash.expected = rehash.last = None  # later calls may be of other settings, and reports are of those calls
    _tell(state, "calibrated", len(calls), len(calls))
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
            _tell(state, "learning", number, len(calls))
            notes.add(number, run_call(state, calls[number]).final)


def _chosen(
    state: PipelineState,
    setting: Setting,
    plans: list[RehashPlan],
    calls: tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]],
    references: list[Run],
) -> RehashPlan:
    rehash, (learned, held_out) = state.rehash, calls
    assert rehash is not None
    request = rehash.request
    if not held_out:
        return rehash.plan_for(setting)
    if request.speedup is not None:
        most_exact_at(plans, request.speedup)  # names the nearest if there is none
        pool = [*plans, *rehash.by_rules(setting)]
        plan = most_exact_of(state, setting, [p for p in pool if p.speedup >= request.speedup], learned)
        return _verified(plan, differences(state, setting, plan, held_out, references))
    wanted = request.rel_error if request.rel_error is not None else _error_of(request.psnr, references)
    best: RehashPlan | None = None
    for _ in range(RETRIES):
        try:
            plan = fastest_within(plans, wanted)
        except BadInput:
            break
        found = differences(state, setting, unguarded(plan), held_out, references)
        best = _verified(guarded(plan, _worst_guard(found)), found)
        if _met(best, request.rel_error, request.psnr):
            return best
        worst = max(d.rel_error for d in found)
        wanted = min(wanted * 0.7, wanted * wanted / worst if worst else wanted * 0.7)
    if best is None:
        fastest_within(plans, wanted)
    assert best is not None and best.verified is not None
    raise BadInput(
        f"the target was not met on {len(held_out)} held-out runs; the nearest plan tried has relative error "
        f"{best.verified.rel_error:.3g} and PSNR {best.verified.psnr:.1f} dB at speedup={best.speedup:.3g}"
    )


def most_exact_of(
    state: PipelineState, setting: Setting, plans: Sequence[RehashPlan], learned: Sequence[Mapping[str, Any]]
) -> RehashPlan:
    """The plan of least measured error on a few of the calls that were learned from.

    Predicted errors rank schedules of one cut well, but say less between cuts, between orders, and of rules. What is
    held out takes no part in the choice, or it would prove nothing.

    Args:
        state: of the pipeline.
        setting: what the plans are for.
        plans: among which to choose; those worth it by their predicted errors are tried.
        learned: the calls; the first few are made again, in full and by each plan.
    """
    assert state.rehash is not None
    some = list(learned[:TRIALS])
    with in_full(state.rehash):
        references = [run_call(state, call) for call in some]

    tried = []
    for plan in worth_trying(plans, TRIED):
        found = differences(state, setting, unguarded(plan), some, references)
        tried.append((statistics.median(d.rel_error for d in found), guarded(plan, _worst_guard(found))))
    return min(tried, key=lambda row: row[0])[1]


def _worst_guard(found: Sequence[Difference]) -> dict[int, float]:
    return {step: max(d.guard.get(step, 0.0) for d in found) for d in found for step in d.guard}


def _met(plan: RehashPlan, rel_error: float | None, psnr: float | None) -> bool:
    verified = plan.verified
    assert verified is not None
    return verified.rel_error <= rel_error if rel_error is not None else verified.psnr >= (psnr or 0)


def _error_of(psnr: float | None, references: list[Run]) -> float:
    """A first guess of the relative error of latents at which frames have some PSNR: as if both were alike."""
    frames = references[0].frames
    peak = _peak(frames)
    level = math.sqrt(float(torch.cat([f.double().flatten() for f in frames]).square().mean())) / peak
    return 10 ** (-(psnr or 0) / 20) / max(level, 1e-6)


def _verified(plan: RehashPlan, found: list[Difference]) -> RehashPlan:
    verified = Verified(len(found), max(d.rel_error for d in found), min(d.psnr for d in found))
    return replace(plan, verified=verified)


def differences(
    state: PipelineState,
    setting: Setting,
    plan: RehashPlan,
    calls: list[Mapping[str, Any]],
    references: list[Run],
) -> list[Difference]:
    """Run calls by a plan and compare each with its full run.

    Args:
        state: of the pipeline.
        setting: what the plan is for.
        plan: by which to run.
        calls: keyword arguments.
        references: of the same calls, in full.
    """
    rehash = state.rehash
    assert rehash is not None
    before = rehash.plans.get(setting)
    rehash.plans[setting] = plan
    found = []
    try:
        for number, (call, reference) in enumerate(zip(calls, references, strict=True)):
            _tell(state, "verifying", number, len(calls))
            found.append(difference(run_call(state, call), reference))
    finally:
        rehash.plans.pop(setting)
        if before is not None:
            rehash.plans[setting] = before
    return found


def difference(run: Run, reference: Run) -> Difference:
    """Compare a run with the full one."""
    off = float((run.final.double() - reference.final.double()).norm() / reference.final.double().norm())
    pairs = list(zip(run.frames, reference.frames, strict=True))
    squares = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    mean = squares / max(sum(a.numel() for a, _ in pairs), 1)
    psnr = math.inf if mean == 0 else 10 * math.log10(_peak(reference.frames) ** 2 / mean)
    return Difference(off, psnr, run.guard)


def _peak(frames: list[torch.Tensor]) -> float:
    return 1.0 if frames and frames[0].is_floating_point() else 255.0


def run_call(state: PipelineState, call: Mapping[str, Any]) -> Run:
    """Call the pipeline; random generators among the arguments, and torch's own, are left as they were."""
    rehash = state.rehash
    assert rehash is not None
    rewind = rewinder((), dict(call))
    try:
        output = state.pipe(**call)
    finally:
        rewind()
    loop = rehash.last
    if loop is None or loop.final is None:
        raise BadInput(f"no denoising loop was seen in this call of {state.name}: Step Rehash can't calibrate it")
    guard: dict[int, float] = {}
    for evaluation in loop.evaluations:
        if evaluation.guard_error is not None:
            guard[evaluation.step] = max(evaluation.guard_error, guard.get(evaluation.step, 0.0))
    return Run(frames_of(output), loop.final, guard)


@contextlib.contextmanager
def in_full(rehash: PipelineRehash) -> Iterator[None]:
    """A context in which loops are seen but nothing is skipped."""
    before, rehash.exact = rehash.exact, True
    try:
        yield
    finally:
        rehash.exact = before


@contextlib.contextmanager
def _learning(rehash: PipelineRehash) -> Iterator[None]:
    before, rehash.learning = rehash.learning, True
    try:
        yield
    finally:
        rehash.learning = before


def _tell(state: PipelineState, what: str, done: int, total: int) -> None:
    if state.progress is not None:
        state.progress(f"Step Rehash: {what}", done, total)
