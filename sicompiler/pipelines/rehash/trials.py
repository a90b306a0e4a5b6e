"""Plans tried: what error they make, and how fast they are within the budget as it is.

Predicted errors rank schedules of one cut well, but say less between cuts, between orders, and of rules. Seconds that
were measured while learning say nothing of what it costs to hold a plan's features in a tight budget.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence

from sicompiler.errors import BadInput, OverBudget
from sicompiler.pipelines.pipeline import CompiledPipeline
from sicompiler.pipelines.rehash.mode import Mode
from sicompiler.pipelines.rehash.references import References
from sicompiler.pipelines.rehash.runs import (
    Call,
    Difference,
    Run,
    difference,
    ending_after,
    relative_error,
    run_call,
    shortened,
    tell,
)
from sicompiler.rehash.choose import guarded, most_exact_at, unguarded, worth_trying
from sicompiler.rehash.plan import RehashPlan
from sicompiler.rehash.setting import Setting
from sicompiler.rehash.timings import Seconds, median_of

__all__ = ["Difference", "Run", "Trials", "difference", "key_of", "relative_error", "run_call", "worst_guard"]

MOST_TRIES = 16  # tries in all: what turns out to be too slow is tried again with fewer evaluations in full
HOPELESS = 1.5  # times the error of the best plan so far, at which a run on the first call is ended
PACED = 4  # steps in full that are timed beside a run; the first of them, which may move weights, is not counted


class Trials:
    """Plans of one setting, tried.

    Args:
        state: of the pipeline.
        setting: what the plans are for.
        calls: on which to try them; each is made in full once.
        refit: a plan as it is without what a call has taught, by the number of the call; the plan itself where it has
            learned from none of them.
        references: full runs of these calls and perhaps of more behind them; some may be made.
        timed: whether runs say what plans take; each then is with a few steps in full beside it.
    """

    def __init__(
        self,
        state: CompiledPipeline,
        setting: Setting,
        calls: Sequence[Call],
        refit: Callable[[RehashPlan, int], RehashPlan] | None = None,
        references: References | None = None,
        *,
        timed: bool = True,
    ) -> None:
        assert state.rehash is not None
        self._refit = refit or (lambda plan, _: plan)
        self._state, self._rehash, self._setting, self._calls = state, state.rehash, setting, list(calls)
        self._references, self._timed = references or References(state, calls), timed
        self._known: dict[tuple[object, int], Difference] = {}  # by plan and call
        self._seen: dict[object, list[Seconds]] = {}  # by plan, one a run
        self._shorter: dict[float, list[tuple[Difference, int]]] = {}  # by share of the steps, one a call
        for component in state.components.values():
            component.analyses.keep()

    @property
    def calls(self) -> int:
        """How many there are."""
        return len(self._calls)

    def corrected(self, plans: Sequence[RehashPlan]) -> list[RehashPlan]:
        """The plans with seconds as they were measured, as far as they were; those that fit."""
        return self._rehash.timings.corrected(plans)

    def references(self) -> list[Run]:
        """The calls in full."""
        for number in range(len(self._calls)):
            if not self._references.has(number):
                self._tell("runs in full", number)
                self._references.make(number, Mode.EXACT)
        self._time_whole(self._references.timed)
        return [self._references.of(number) for number in range(len(self._calls))]

    def run(self, plan: RehashPlan, good: Callable[[Difference], bool] = lambda _: True) -> list[Difference] | None:
        """Run the calls by a plan and compare each with its full run; its seconds are put down.

        Args:
            plan: to run by.
            good: whether the next call is made, too.

        Returns:
            None where its features leave too little of the budget.
        """
        found: list[Difference] = []
        for number in range(len(self._calls)):
            self._tell("trying a plan on all calls", number)
            shown = self.try_on(plan, number)
            if shown is None:
                return None
            found.append(shown)
            if not good(shown):
                break
        return found

    def try_on(self, plan: RehashPlan, number: int, limit: float = math.inf) -> Difference | None:
        """Run one call by a plan and compare it with its full run; its seconds are put down.

        Args:
            plan: to try.
            number: of the call.
            limit: relative error of the latents beyond which the run is ended: it is as good as infinite then.

        Returns:
            None where its features leave too little of the budget.
        """
        key = key_of(plan)
        if (key, number) in self._known:
            return self._known[key, number]
        reference = self._references.of(number)
        before = self._rehash.plans.get(self._setting)
        try:
            self._rehash.plans[self._setting] = self._refit(plan, number)
            with self._rehash.switched("timed"):
                run = run_call(self._state, self._calls[number], self._references.ending_beyond(number, limit))
                if self._timed:
                    self._measure(plan, run)
        except OverBudget:
            self._rehash.timings.too_big(plan)
            return None
        finally:
            self._rehash.plans.pop(self._setting, None)
            if before is not None:
                self._rehash.plans[self._setting] = before
        ended = not run.frames
        found = Difference(math.inf, -math.inf, run.guard, math.inf) if ended else difference(run, reference)
        if not ended:
            self._known[key, number] = found
        return found

    def fewer_steps(
        self, share: float, enough: Callable[[Sequence[Difference]], bool] = lambda _: False
    ) -> tuple[list[Difference], int] | None:
        """Make the calls in full with a share of their steps, and compare each with its full run.

        Args:
            share: of the steps, above 0.
            enough: whether what the first calls have shown will do, so that the others need not be made.

        Returns:
            The differences, and the evaluations of one call; None where the pipeline takes no `num_inference_steps`,
            or takes its steps from elsewhere, so that there are as many as before.
        """
        references, rows = self.references(), self._shorter.setdefault(share, [])
        expected, self._rehash.expected = self._rehash.expected, None  # these are of another setting
        try:
            for number in range(len(rows), len(self._calls)):
                if rows and enough([found for found, _ in rows]):
                    break
                call = shortened(self._state.pipe, self._calls[number], share)
                if call is None:
                    return None
                self._tell("runs of fewer steps", number)
                with self._rehash.running(Mode.EXACT):
                    run = run_call(self._state, call)
                if len(run.evaluations) >= len(references[number].evaluations):
                    return None
                rows.append((difference(run, references[number]), run.steps))
        finally:
            self._rehash.expected = expected
        return [found for found, _ in rows], rows[0][1]

    def fast_enough(
        self, plans: Sequence[RehashPlan], speedup: float, tries: int = MOST_TRIES
    ) -> Iterator[tuple[RehashPlan, list[Difference]]]:
        """Plans that are measured to be fast enough, the one of least measured error first; their guards are set.

        All are tried on one call, each until its latents are further from the full run than those of the best so far
        may end; those that are left, the nearest first, on all calls as they are asked for.

        Raises:
            BadInput: none is; names the nearest that can be had.
        """
        first: dict[object, tuple[RehashPlan, Difference | None]] = {}
        on_all = set[object]()
        any_met = False
        self.time()
        while True:
            self._try_on_one(plans, speedup, tries, first)
            left = [(p, d) for p, d in first.values() if d is not None and key_of(p) not in on_all]
            waiting = [(p, d) for own, d in left for p in self.corrected([own]) if p.speedup >= speedup]
            if not waiting:
                break
            plan, _ = min(waiting, key=lambda row: (row[1].frames, row[0].predicted_error))
            on_all.add(key_of(plan))
            found = self.run(unguarded(plan))
            for now in self.corrected([guarded(plan, worst_guard(found or []))]):
                if found is not None and now.speedup >= speedup:
                    any_met = True
                    yield now, found
        if any_met:
            return
        measured = [p for own, d in first.values() if d is not None for p in self.corrected([own])]
        if not measured:
            most_exact_at(self.corrected(plans), speedup)  # names the nearest, unless too big features are the reason
            raise BadInput(f"speedup={speedup:g} can't be reached: the features leave too little of the budget")
        raise BadInput(
            f"speedup={speedup:g} is not reached in this budget; of {len(first)} plans that were tried the fastest is "
            f"measured at speedup={max(p.speedup for p in measured):.3g}"
        )

    def _try_on_one(
        self,
        plans: Sequence[RehashPlan],
        speedup: float,
        tries: int,
        tried: dict[object, tuple[RehashPlan, Difference | None]],
    ) -> None:
        """Try what may be fast enough on the first call; what was is added to those tried.

        Estimates are rather too small: what is estimated further from the full run than another plan was measured to be
        is not tried. Within a cut they order plans well: neither is what is estimated further than a plan there that
        was measured to be no nearer than the best.
        """
        while len(tried) < tries:
            enough = [p for p in self.corrected(plans) if p.speedup >= speedup]
            met = [d.rel_error for own, d in tried.values() if d for p in self.corrected([own]) if p.speedup >= speedup]
            best = min(met, default=math.inf)
            beaten = [own for own, d in tried.values() if d is not None and d.rel_error >= best]
            waiting = [
                p
                for p in worth_trying(enough)
                if key_of(p) not in tried
                and p.predicted_error < best
                and all(p.cut != own.cut or p.predicted_error < own.predicted_error for own in beaten)
            ]
            if not waiting:
                return
            self._tell("trying plans on one call", len(tried), tries)
            plan = min(waiting, key=lambda p: (p.snapshot_bytes, p.predicted_error))  # small features cost least
            tried[key_of(plan)] = plan, self.try_on(unguarded(plan), 0, HOPELESS * best)

    def most_exact(self, plans: Sequence[RehashPlan], speedup: float, tries: int = MOST_TRIES) -> RehashPlan:
        """The first of those that are fast enough.

        Raises:
            BadInput: none is; names the nearest that can be had.
        """
        return next(iter(self.fast_enough(plans, speedup, tries)))[0]

    def time(self) -> None:
        """Have seconds of a call in which nothing is skipped, learned or planned, which plans are held against."""
        if not self._rehash.timings.seen_whole:
            with self._rehash.running(Mode.EXACT):
                self._time_whole(run_call(self._state, self._calls[0]))

    def _time_whole(self, run: Run | None) -> None:
        if run is not None and run.evaluations:
            self._rehash.timings.seen(typical_seconds(run, skipped=False), _beside(run), run.outside)

    def _measure(self, plan: RehashPlan, run: Run) -> None:
        """Put down what a run took.

        Machines are faster now and slower then: the beginning of a call in full is timed beside every run.
        """
        with self._rehash.running(Mode.EXACT):
            whole = run_call(self._state, self._calls[0], ending_after(PACED))
        paced = [e.seconds for e in whole.evaluations if e.step > 0] or [e.seconds for e in whole.evaluations]
        full, skip = typical_seconds(run, skipped=False), typical_seconds(run, skipped=True)
        if not math.isnan(full + skip):
            rows = self._seen.setdefault(key_of(plan), [])
            rows.append(Seconds(statistics.median(paced), full, skip, _beside(run), self._rehash.timings.outside))
            self._rehash.timings.measured(plan, median_of(rows))

    def _tell(self, what: str, number: int, total: int | None = None) -> None:
        tell(self._state, what, number, total or len(self._calls))


def worst_guard(found: Sequence[Difference]) -> dict[int, float]:
    """The worst error the guard measured, by evaluation."""
    return {step: max(d.guard.get(step, 0.0) for d in found) for d in found for step in d.guard}


def key_of(plan: RehashPlan) -> object:
    """What a plan does at every evaluation, whatever its guard."""
    return plan.cut, plan.steps


def typical_seconds(run: Run, *, skipped: bool) -> float:
    """Mean seconds of evaluations that were skipped, or of those in full; nan where there are none.

    An evaluation in full is slower where weights have to be moved after a skipped one, so of those alike the median
    stands for all: what else the machine did for a moment counts for nothing.
    """
    alike: dict[bool, list[float]] = {}
    before = None
    for evaluation in run.evaluations:
        if (evaluation.prediction is not None) == skipped:
            alike.setdefault((before is None) == skipped, []).append(evaluation.seconds)
        before = evaluation.prediction
    rows = [statistics.median(seconds) for seconds in alike.values() for _ in seconds]
    return statistics.fmean(rows) if rows else math.nan


def _beside(run: Run) -> float:
    """Seconds of a step beside the denoiser."""
    return max(run.seconds - sum(e.seconds for e in run.evaluations), 0.0) / max(run.steps, 1)
