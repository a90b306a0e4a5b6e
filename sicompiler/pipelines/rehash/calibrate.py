"""Calibration: learn from full runs, choose, and verify on runs that were held out."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from sicompiler.errors import BadInput
from sicompiler.pipelines.pipeline import CompiledPipeline
from sicompiler.pipelines.rehash.contest import Contest, without_a_call, worst_of
from sicompiler.pipelines.rehash.mode import Mode
from sicompiler.pipelines.rehash.parts import parts_of
from sicompiler.pipelines.rehash.references import References
from sicompiler.pipelines.rehash.response import CALLS, measure_response
from sicompiler.pipelines.rehash.resume import CalibrationLog
from sicompiler.pipelines.rehash.runs import Difference, peak_of, tell
from sicompiler.pipelines.rehash.script import Script
from sicompiler.pipelines.rehash.trials import Trials, key_of, worst_guard
from sicompiler.rehash.choose import fastest_within, guarded, most_exact_at, unguarded, uniform, with_frontier
from sicompiler.rehash.plan import RehashPlan, Verified
from sicompiler.rehash.recorder import ProbeTurn
from sicompiler.rehash.request import Rehash

log = logging.getLogger("sicompiler")

TRIALS = 4  # calls of those that were learned from that plans are tried on
RETRIES = 8  # plans tried on them where the target is an error
SEARCHES = 4  # for ever smaller errors, each verified on held-out calls
TIGHTER = 0.7  # of the error of before, where a plan missed the target


def calibrate(state: CompiledPipeline) -> RehashPlan | None:
    """Learn from the calls of the request, choose the plan that meets its target, check it on calls.

    Args:
        state: of the pipeline, compiled with a request that has calls.

    Returns:
        The plan; None where fewer steps that take the same time are nearer to the full run than every plan: then
        nothing is skipped, which is said.

    Raises:
        BadInput: the target can't be reached, or not be told without held-out calls; the calls are of several settings,
            or of another one than the lessons of the file that the request names.
        StalePlan: that file holds no lessons of this version.
    """
    rehash = state.rehash
    assert rehash is not None
    request, calls = rehash.request, list(rehash.request.calls)
    learned, held_out = calls[: len(calls) - request.held_out], calls[len(calls) - request.held_out :]
    references = References(state, learned)
    order = learn(state, learned, references)
    if not rehash.lessons:
        why = "; ".join(rehash.unskippable.values()) or "their loops ended before the last step"
        raise BadInput(f"nothing can be learned from these calls: {why}; Step Rehash needs every step")
    if len(rehash.lessons) != 1:
        first, second, *_ = rehash.lessons
        raise BadInput(
            f"the calls are of {len(rehash.lessons)} settings: one is a loop {first.difference(second)}; calibrate one "
            "at a time"
        )
    setting = rehash.expected = next(iter(rehash.lessons))  # held-out calls of another one would verify another plan
    plans = rehash.candidates(setting)
    if not plans:
        raise BadInput(f"no plan skips any of {len(setting.times)} evaluations: give the calls more steps")
    verifying = Trials(state, setting, held_out, timed=False)
    verifying.references()
    refit = without_a_call(rehash.lessons[setting], order, request.predictor)
    trials = Trials(state, setting, learned[:TRIALS], refit, references)
    by_name = request.strategy != "planned"  # a rule is asked for to be compared
    contest = Contest(trials, verifying, accept_worse=request.accept_worse or by_name)
    if request.speedup is not None:
        most_exact_at(plans, request.speedup)  # names the nearest if even predictions reach none
        plan = _as_fast(plans, request.speedup, contest)
    else:
        plan = _within_error(plans, request, contest)
    if plan is not None:
        plan = replace(plan, guidance=setting.guidance, size=setting.size)
        same = next(rows for rows in rehash.lessons[setting] if rows.cut == plan.cut)
        plan = _compared(plan, contest, uniform(rehash.subject(setting), same, len(plan.full), guard=False))
        rehash.plans[setting] = plan = with_frontier(plan, trials.corrected(plans))
    else:
        why = f"{contest.lost[-1]}; ask for less speed, or take it all the same with accept_worse=True"
        rehash.unskippable[setting] = why
        rehash.say(f"Step Rehash skips nothing: {why}")
    for component in state.components.values():
        component.forget_parts(but=() if plan is None else parts_of(plan))
    rehash.expected = rehash.last = None  # later calls may be of other settings, and reports are of those calls
    tell(state, "calibrated", len(calls), len(calls))
    return plan


def learn(
    state: CompiledPipeline, calls: Sequence[Mapping[str, Any]], references: References | None = None
) -> list[int]:
    """Learn from calls, run in full and with single evaluations skipped; what the file of lessons has is not run again.

    Args:
        state: of the pipeline.
        calls: keyword arguments.
        references: where full runs of these calls are kept.

    Returns:
        Numbers of the calls in the order in which their lessons are kept.

    Raises:
        BadInput: the file of lessons is of another setting, or can't be read.
        StalePlan: it holds no lessons of this version.
    """
    rehash, references, scripts = state.rehash, references or References(state, calls), dict[int, Script]()
    assert rehash is not None
    notes = CalibrationLog(rehash, state.pipe, calls)
    for component in state.components.values():
        component.analyses.keep()
    try:
        for number in notes.waiting:
            tell(state, "learning", number, len(calls))
            rehash.turn = ProbeTurn(number, len(calls))
            if number < CALLS:
                rehash.script = scripts[number] = Script()
            run = references.make(number, Mode.LEARNING)
            rehash.script = None
            notes.add(number, run.final)
    finally:
        rehash.script, rehash.turn = None, ProbeTurn()
    if len(rehash.lessons) == 1:
        measure_response(state, notes, references, scripts)
    return list(notes.order)


def _fitting(found: list[Difference] | None) -> list[Difference]:
    """What held-out calls showed.

    Raises:
        BadInput: a plan that fitted on the calls that were learned from does not fit on them.
    """
    if found is None:
        raise BadInput("the features leave too little of the budget on a held-out call: is it larger than the others?")
    return found


def _as_fast(plans: list[RehashPlan], speedup: float, contest: Contest) -> RehashPlan | None:
    """The plan of least measured error among those that are fast enough, if fewer steps are not nearer.

    Where held-out calls show that they are, the next best is tried; how often takes its part in the promise.
    """
    tries = 0
    for plan, found in contest.trials.fast_enough(plans, speedup):
        if not found or not contest.won(plan, found, held_out=False):
            continue
        if not contest.verifying.calls:
            return _checked(plan, found)
        tries += 1
        shown = _fitting(contest.verifying.run(plan))
        if contest.won(plan, shown, held_out=True):
            return _checked(_verified(plan, shown, tries), [*found, *shown])
        if tries == SEARCHES:
            break
    return None


def _within_error(plans: list[RehashPlan], request: Rehash, contest: Contest) -> RehashPlan | None:
    """The fastest plan within the target on calls that were learned from, if it is within it on held-out ones, too.

    If it is not, or fewer steps are nearer, the search goes on for a smaller error by a factor that is fixed
    beforehand: what held-out calls show takes no part in the choice but for how often it is made.
    """
    tried: dict[object, RehashPlan] = {}
    verified: dict[object, RehashPlan] = {}
    for number in range(SEARCHES):
        try:
            plan, found = _fastest(contest.trials, plans, request, TIGHTER**number)
        except BadInput:
            if not tried:
                raise
            break
        if key_of(plan) in tried:
            continue
        tried[key_of(plan)] = plan
        if not contest.won(plan, found, held_out=False):
            continue
        if not contest.verifying.calls:
            return _checked(plan, found)
        shown = _fitting(contest.verifying.run(plan))
        verified[key_of(plan)] = plan = _checked(_verified(plan, shown, len(verified) + 1), [*found, *shown])
        if not _met(shown, request, 1.0):
            continue
        if contest.won(plan, shown, held_out=True):
            return plan
    if contest.lost:
        return None
    best = list(verified.values())[-1]
    assert best.verified is not None
    raise BadInput(
        f"the target was not met on {best.verified.runs} held-out runs; the nearest plan tried has relative error "
        f"{best.verified.rel_error:.3g} and PSNR {best.verified.psnr:.1f} dB at speedup={best.speedup:.3g}"
    )


def _fastest(
    trials: Trials, plans: list[RehashPlan], request: Rehash, share: float
) -> tuple[RehashPlan, list[Difference]]:
    """The fastest plan whose error on the calls of the trials is within a share of the target; its guard is set.

    Predicted errors order plans, trials say which are within: the search closes in on the border between them.
    """
    wanted = share * (request.rel_error if request.rel_error is not None else _error_of(request.psnr, trials))
    best: tuple[RehashPlan, list[Difference]] | None = None
    missed: tuple[RehashPlan, list[Difference]] | None = None
    met_at, missed_at = 0.0, math.inf  # predicted errors, of the plans next to the border
    tried: set[object] = set()
    for _ in range(RETRIES):
        faster = best[0].speedup if best is not None else 1.0
        waiting = [
            p
            for p in trials.corrected(plans)
            if p.speedup > faster and key_of(p) not in tried and met_at < p.predicted_error < missed_at
        ]
        if not waiting:
            break
        if tried:
            wanted = max(wanted, min(p.predicted_error for p in waiting))
        plan = fastest_within(waiting, wanted)
        tried.add(key_of(plan))
        found = trials.run(unguarded(plan), lambda shown: _met([shown], request, share))
        if found is None:
            continue
        (plan,) = trials.corrected([guarded(plan, worst_guard(found))])
        if not _met(found, request, share):
            missed, missed_at = (plan, found), plan.predicted_error
        elif plan.speedup > faster:
            best, met_at = (plan, found), plan.predicted_error
        else:
            continue  # slower within the budget than it looked; others are as exact
        if math.isinf(missed_at):
            wanted = met_at / TIGHTER
        else:
            wanted = math.sqrt(met_at * missed_at) if met_at else missed_at * TIGHTER
    if best is not None:
        return best
    if missed is not None:
        (plan, found) = missed
        raise BadInput(
            f"the target was not met on {len(found)} calls that were learned from; the nearest plan tried has relative "
            f"error {max(d.rel_error for d in found):.3g} and PSNR {min(d.psnr for d in found):.1f} dB at "
            f"speedup={plan.speedup:.3g}"
        )
    raise BadInput("no plan that skips is faster than running in full: the features leave too little of the budget")


def _compared(plan: RehashPlan, contest: Contest, even: RehashPlan) -> RehashPlan:
    """The plan, told what uniform reuse and fewer steps make of the same held-out runs; warns where one is nearer."""
    if plan.verified is None:
        return plan
    others = []
    if key_of(even) != key_of(plan) and (found := contest.verifying.run(even)) is not None:
        others.append(worst_of("uniform", len(even.full), found))
    if (fewer := contest.fewer(plan)) is not None:
        others.append(fewer)
    verified = replace(plan.verified, others=tuple(others))
    for line in verified.nearer:
        log.warning("Step Rehash: %s", line)
    return replace(plan, verified=verified)


def _checked(plan: RehashPlan, found: Sequence[Difference]) -> RehashPlan:
    """The plan, which promises what calls have shown that its weights had not learned from."""
    return replace(
        plan,
        predicted_error=statistics.median(d.rel_error for d in found),
        frames_error=statistics.median(d.frames for d in found),
        checked=len(found),
    )


def _met(found: Sequence[Difference], request: Rehash, share: float) -> bool:
    """Whether all errors are within a share of the target."""
    if request.rel_error is not None:
        return max(d.rel_error for d in found) <= share * request.rel_error
    return min(d.psnr for d in found) >= (request.psnr or 0) - 20 * math.log10(share)


def _error_of(psnr: float | None, trials: Trials) -> float:
    """A first guess of the relative error of latents at which frames have some PSNR: as if both were alike."""
    frames = trials.references()[0].frames
    level = math.sqrt(float(torch.cat([f.double().flatten() for f in frames]).square().mean())) / peak_of(frames)
    return float(10 ** (-(psnr or 0) / 20) / max(level, 1e-6))


def _verified(plan: RehashPlan, found: Sequence[Difference], tries: int = 1) -> RehashPlan:
    worst = worst_of("", len(plan.full), found)
    return replace(plan, verified=Verified(len(found), worst.rel_error, worst.psnr, tries))
