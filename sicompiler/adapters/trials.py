"""Plans tried: what error they make, and how fast they are within the budget as it is.

Predicted errors rank schedules of one cut well, but say less between cuts, between orders, and of rules. Seconds that
were measured while learning say nothing of what it costs to hold a plan's features in a tight budget.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence

from sicompiler.adapters.pipeline import PipelineState
from sicompiler.adapters.runs import Call, Difference, Run, difference, relative_error, run_call, shortened, tell
from sicompiler.errors import BadInput, OverBudget
from sicompiler.rehash.choose import guarded, most_exact_at, unguarded, worth_trying
from sicompiler.rehash.plan import RehashPlan
from sicompiler.rehash.setting import Setting
from sicompiler.rehash.timings import Seconds

__all__ = ["Difference", "Run", "Trials", "difference", "key_of", "relative_error", "run_call", "worst_guard"]

TRIED = 5  # plans that are compared, beside those of rules
MOST_TRIES = 16  # tries in all: what turns out to be too slow is tried again with fewer evaluations in full


class Trials:
    """Plans of one setting, tried.

    Args:
        state: of the pipeline.
        setting: what the plans are for.
        calls: on which to try them; each is made in full first.
        refit: a plan as it is without what a call has taught, by the number of the call; the plan itself where it has
            learned from none of them.
    """

    def __init__(
        self,
        state: PipelineState,
        setting: Setting,
        calls: Sequence[Call],
        refit: Callable[[RehashPlan, int], RehashPlan] | None = None,
    ) -> None:
        assert state.rehash is not None
        self._refit = refit or (lambda plan, _: plan)
        self._state, self._rehash, self._setting, self._calls = state, state.rehash, setting, list(calls)
        self._known: dict[object, list[Difference]] = {}
        self._references: list[Run] = []
        for component in state.components.values():
            component.keep_analyses()

    @property
    def calls(self) -> int:
        """How many there are."""
        return len(self._calls)

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
                outside = min(run.outside for run in self._references)  # the first may plan, too
                self._rehash.timings.seen(_mean(last, skipped=False), _beside(last), outside)
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
        try:
            with self._rehash.switched("timed"):
                for number, call in enumerate(calls):
                    self._tell("trying plans", min(number, len(references) - 1))
                    self._rehash.plans[self._setting] = self._refit(plan, number % len(self._calls))
                    runs.append(run_call(self._state, call))
                with self._rehash.switched("exact"):  # machines are faster now and slower then: both run side by side
                    again = run_call(self._state, self._calls[0])
        except OverBudget:
            self._rehash.timings.too_big(plan)
            return None
        finally:
            self._rehash.plans.pop(self._setting, None)
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

    def fast_enough(
        self, plans: Sequence[RehashPlan], speedup: float, tries: int = MOST_TRIES
    ) -> Iterator[tuple[RehashPlan, list[Difference]]]:
        """Plans that are measured to be fast enough, the one of least measured error first; their guards are set.

        Raises:
            BadInput: none is; names the nearest that can be had.
        """
        tried: dict[object, tuple[RehashPlan, list[Difference]]] = {}
        self.references()  # they show what an evaluation takes
        while len(tried) < tries:
            enough = [p for p in self.corrected(plans) if p.speedup >= speedup]
            waiting = [p for p in worth_trying(enough, TRIED) if key_of(p) not in tried]
            if not waiting:
                break
            found = self.run(unguarded(waiting[0])) or []
            tried[key_of(waiting[0])] = guarded(waiting[0], worst_guard(found)), found
        measured = [(p, found) for own, found in tried.values() for p in self.corrected([own])]
        met = [(p, found) for p, found in measured if p.speedup >= speedup]
        if met:
            yield from sorted(met, key=lambda row: statistics.median(d.frames for d in row[1]) if row[1] else math.inf)
            return
        if not measured:
            most_exact_at(self.corrected(plans), speedup)  # names the nearest, unless too big features are the reason
            raise BadInput(f"speedup={speedup:g} can't be reached: the features leave too little of the budget")
        raise BadInput(
            f"speedup={speedup:g} is not reached in this budget; of {len(tried)} plans that were tried the fastest is "
            f"measured at speedup={max(p.speedup for p, _ in measured):.3g}"
        )

    def most_exact(self, plans: Sequence[RehashPlan], speedup: float, tries: int = MOST_TRIES) -> RehashPlan:
        """The first of those that are fast enough.

        Raises:
            BadInput: none is; names the nearest that can be had.
        """
        return next(iter(self.fast_enough(plans, speedup, tries)))[0]

    def _measure(self, plan: RehashPlan, runs: Sequence[Run], whole: Run) -> None:
        """Means of a run, as an evaluation in full is slower where weights have to be moved after a skipped one."""
        timed = runs[1:]
        full = [_mean(run, skipped=False) for run in timed]
        skip = [_mean(run, skipped=True) for run in timed]
        if not any(map(math.isnan, (*full, *skip))):
            found = statistics.median(full), statistics.median(skip)
            outside = min(run.outside for run in (*timed, whole))  # without any planning
            seconds = Seconds(_mean(whole, skipped=False), *found, _beside(whole), outside)
            self._rehash.timings.measured(plan, seconds)

    def _tell(self, what: str, number: int) -> None:
        tell(self._state, what, number, len(self._calls))


def worst_guard(found: Sequence[Difference]) -> dict[int, float]:
    """The worst error the guard measured, by evaluation."""
    return {step: max(d.guard.get(step, 0.0) for d in found) for d in found for step in d.guard}


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
