"""Plans tried: what error they make, and how fast they are within the budget as it is.

Predicted errors rank schedules of one cut well, but say less between cuts, between orders, and of rules. Seconds that
were measured while learning say nothing of what it costs to hold a plan's features in a tight budget.
"""

from __future__ import annotations

import inspect
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sicompiler.adapters.pipeline import PipelineState
from sicompiler.adapters.verify import frames_of, rewinder
from sicompiler.errors import BadInput, OverBudget
from sicompiler.rehash.choose import guarded, most_exact_at, unguarded, worth_trying
from sicompiler.rehash.evaluation import Evaluation
from sicompiler.rehash.plan import RehashPlan
from sicompiler.rehash.setting import Setting
from sicompiler.rehash.timings import Seconds

TRIED = 5  # plans that are compared, beside those of rules
MOST_TRIES = 16  # tries in all: what turns out to be too slow is tried again with fewer evaluations in full

STEPS = "num_inference_steps"  # what all pipelines of diffusers call it

Call = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """What one call of a pipeline gave.

    Attributes:
        frames: as tensors.
        final: the latents at the end of the denoising loop.
        evaluations: of the denoiser.
        seconds: of the loop, without capturing the denoiser; of a loop that was learned from, those beside it.
    """

    frames: list[torch.Tensor]
    final: torch.Tensor
    evaluations: tuple[Evaluation, ...]
    seconds: float

    @property
    def steps(self) -> int:
        """Evaluations, those of several branches of guidance counted once."""
        return len({e.step for e in self.evaluations})

    @property
    def guard(self) -> dict[int, float]:
        """The worst error that the guard measured, by evaluation."""
        found: dict[int, float] = {}
        for evaluation in self.evaluations:
            if evaluation.guard_error is not None:
                found[evaluation.step] = max(evaluation.guard_error, found.get(evaluation.step, 0.0))
        return found


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


class Trials:
    """Plans of one setting, tried.

    Args:
        state: of the pipeline.
        setting: what the plans are for.
        calls: on which to try them; each is made in full first.
    """

    def __init__(self, state: PipelineState, setting: Setting, calls: Sequence[Call]) -> None:
        assert state.rehash is not None
        self._state, self._rehash, self._setting, self._calls = state, state.rehash, setting, list(calls)
        self._known: dict[object, list[Difference]] = {}
        self._references: list[Run] = []
        for component in state.components.values():
            component.keep_analyses()

    def corrected(self, plans: Sequence[RehashPlan]) -> list[RehashPlan]:
        """The plans with seconds as they were measured, as far as they were; those that fit."""
        return self._rehash.timings.corrected(plans)

    def references(self) -> list[Run]:
        """The calls in full."""
        if not self._references and self._calls:
            with self._rehash.switched("exact"):
                for number, call in enumerate(self._calls):
                    self._tell("runs in full", number)
                    self._references.append(run_call(self._state, call))
            last = self._references[-1]
            if last.evaluations:
                self._rehash.timings.seen(_mean(last, skipped=False), _beside(last))
        return self._references

    def run(self, plan: RehashPlan) -> list[Difference] | None:
        """Run the calls by a plan and compare each with its full run; its seconds are put down.

        Returns:
            None where its features leave too little of the budget.
        """
        if (known := self._known.get(key_of(plan))) is not None:
            return known
        references, runs = self.references(), list[Run]()
        calls = self._calls if len(self._calls) > 1 else 2 * self._calls  # the first run plans, too: it is not timed
        before = self._rehash.plans.get(self._setting)
        self._rehash.plans[self._setting] = plan
        try:
            with self._rehash.switched("timed"):
                for number, call in enumerate(calls):
                    self._tell("trying plans", min(number, len(references) - 1))
                    runs.append(run_call(self._state, call))
                with self._rehash.switched("exact"):  # machines are faster now and slower then: both run side by side
                    again = run_call(self._state, self._calls[0])
        except OverBudget:
            self._rehash.timings.too_big(plan)
            return None
        finally:
            self._rehash.plans.pop(self._setting)
            if before is not None:
                self._rehash.plans[self._setting] = before
        self._measure(plan, runs, again)
        found = [difference(run, reference) for run, reference in zip(runs, references, strict=False)]
        self._known[key_of(plan)] = found
        return found

    def fewer_steps(self, share: float) -> tuple[list[Difference], int] | None:
        """Make the calls in full with a share of their steps, and compare each with its full run.

        Args:
            share: of the steps, above 0.

        Returns:
            The differences, and the evaluations of one call; None where the pipeline takes no `num_inference_steps`,
            or takes its steps from elsewhere, so that there are as many as before.
        """
        fewer = [shortened(self._state.pipe, call, share) for call in self._calls]
        references, runs = self.references(), list[Run]()
        expected, self._rehash.expected = self._rehash.expected, None  # these are of another setting
        try:
            with self._rehash.switched("exact"):
                for number, call in enumerate(fewer):
                    if call is None:
                        return None
                    self._tell("runs of fewer steps", number)
                    runs.append(run_call(self._state, call))
        finally:
            self._rehash.expected = expected
        if len(runs[0].evaluations) >= len(references[0].evaluations):
            return None
        return [difference(run, own) for run, own in zip(runs, references, strict=True)], runs[0].steps

    def most_exact(self, plans: Sequence[RehashPlan], speedup: float, tries: int = MOST_TRIES) -> RehashPlan:
        """The plan of least measured error among those that are measured to be fast enough; its guard is set.

        Raises:
            BadInput: none is; names the nearest that can be had.
        """
        tried: dict[object, tuple[float, RehashPlan]] = {}
        self.references()  # they show what an evaluation takes
        while len(tried) < tries:
            enough = [p for p in self.corrected(plans) if p.speedup >= speedup]
            waiting = [p for p in worth_trying(enough, TRIED) if key_of(p) not in tried]
            if not waiting:
                break
            found = self.run(unguarded(waiting[0]))
            error = math.inf if found is None else statistics.median(d.rel_error for d in found)
            tried[key_of(waiting[0])] = error, guarded(waiting[0], worst_guard(found or ()))
        measured = [(error, p) for error, own in tried.values() for p in self.corrected([own])]
        met = [(error, p) for error, p in measured if p.speedup >= speedup]
        if met:
            return min(met, key=lambda row: row[0])[1]
        if not measured:
            most_exact_at(self.corrected(plans), speedup)  # names the nearest, unless too big features are the reason
            raise BadInput(f"speedup={speedup:g} can't be reached: the features leave too little of the budget")
        raise BadInput(
            f"speedup={speedup:g} is not reached in this budget; of {len(tried)} plans that were tried the fastest is "
            f"measured at speedup={max(p.speedup for _, p in measured):.3g}"
        )

    def _measure(self, plan: RehashPlan, runs: Sequence[Run], whole: Run) -> None:
        """Means of a run, as an evaluation in full is slower where weights have to be moved after a skipped one."""
        timed = runs[1:]
        full = [_mean(run, skipped=False) for run in timed]
        skip = [_mean(run, skipped=True) for run in timed]
        if not any(map(math.isnan, (*full, *skip))):
            found = statistics.median(full), statistics.median(skip)
            self._rehash.timings.measured(plan, Seconds(_mean(whole, skipped=False), *found, _beside(whole)))

    def _tell(self, what: str, number: int) -> None:
        tell(self._state, what, number, len(self._calls))


def worst_guard(found: Sequence[Difference]) -> dict[int, float]:
    """The worst error the guard measured, by evaluation."""
    return {step: max(d.guard.get(step, 0.0) for d in found) for d in found for step in d.guard}


def difference(run: Run, reference: Run) -> Difference:
    """Compare a run with the full one."""
    if not bool(torch.isfinite(reference.final).all()):
        raise BadInput("a full run ends in latents that are not finite: nothing can be compared with it")
    if not bool(torch.isfinite(run.final).all()):
        return Difference(math.inf, -math.inf, run.guard)
    off = relative_error(run.final, reference.final)
    pairs = list(zip(run.frames, reference.frames, strict=True))
    squares = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    mean = squares / max(sum(a.numel() for a, _ in pairs), 1)
    psnr = math.inf if mean == 0 else 10 * math.log10(peak_of(reference.frames) ** 2 / mean)
    return Difference(off, psnr, run.guard)


def relative_error(found: torch.Tensor, reference: torch.Tensor) -> float:
    """Of latents, by 2-norms; infinite where they are not finite."""
    off = float((found.double() - reference.double()).norm() / reference.double().norm())
    return off if math.isfinite(off) else math.inf


def peak_of(frames: Sequence[torch.Tensor]) -> float:
    """The greatest value of a pixel."""
    return 1.0 if frames and frames[0].is_floating_point() else 255.0


def run_call(state: PipelineState, call: Call) -> Run:
    """Call the pipeline; random generators among the arguments, and torch's own, are left as they were.

    Raises:
        BadInput: the pipeline has no denoising loop, or none whose steps are seen.
    """
    assert state.rehash is not None
    rewind = rewinder((), dict(call))
    try:
        with state.rehash.switched("observed"):
            output = state.pipe(**call)
    finally:
        rewind()
    loop = state.rehash.last
    if loop is None:
        raise BadInput(f"no denoising loop was seen in this call of {state.name}: Step Rehash can't calibrate it")
    if loop.final is None:
        raise BadInput(f"the loop took no step of the scheduler of {state.name}: does it use a copy?")
    frames = [frame.cpu() for frame in frames_of(output)]  # on the device they would take from the budget
    return Run(frames, loop.final.cpu(), tuple(loop.evaluations), loop.seconds - loop.busy)


def shortened(pipe: Any, call: Call, share: float) -> dict[str, Any] | None:
    """A call with a share of its denoising steps; None where the pipeline is not told how many by number."""
    parameter = inspect.signature(type(pipe).__call__).parameters.get(STEPS)
    steps = call.get(STEPS, None if parameter is None else parameter.default)
    return {**call, STEPS: max(round(share * steps), 1)} if isinstance(steps, int) else None


def tell(state: PipelineState, what: str, done: int, total: int) -> None:
    """Tell whoever watches how far a calibration is."""
    if state.progress is not None:
        state.progress(f"Step Rehash: {what}", done, total)


def key_of(plan: RehashPlan) -> object:
    """What a plan does at every evaluation, whatever its guard."""
    return plan.cut, plan.steps


def _mean(run: Run, *, skipped: bool) -> float:
    """Seconds of evaluations that were skipped, or of those in full; nan where there are none."""
    seconds = [e.seconds for e in run.evaluations if (e.prediction is not None) == skipped]
    return statistics.fmean(seconds) if seconds else math.nan


def _beside(run: Run) -> float:
    """Seconds of a step beside the denoiser."""
    return max(run.seconds - sum(e.seconds for e in run.evaluations), 0.0) / max(run.steps, 1)
