"""A plan against fewer steps that take the same time, on the same calls: what users would do without Step Rehash."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Sequence

from sicompiler.pipelines.rehash.runs import Difference
from sicompiler.pipelines.rehash.trials import Trials
from sicompiler.planners.skip_schedule import Predictor
from sicompiler.rehash.choose import refitted
from sicompiler.rehash.lessons import CutStats
from sicompiler.rehash.plan import Other, RehashPlan

log = logging.getLogger("sicompiler")

FEWER = "fewer steps"

MARGIN = 0.8
"""A plan wins if its errors are within this share of those of fewer steps: a few calls say little of the next ones."""


def without_a_call(
    lessons: Sequence[CutStats], order: Sequence[int], predictor: Predictor
) -> Callable[[RehashPlan, int], RehashPlan]:
    """How a plan is as it would be had one call not been learned from: with weights from the others.

    Args:
        lessons: one a cut.
        order: for each run in the lessons, the number of its call.
        predictor: whose weights they are.
    """

    def refit(plan: RehashPlan, call: int) -> RehashPlan:
        rows = next((row for row in lessons if row.cut == plan.cut), None)
        if rows is None or len(rows.lessons) != len(order) or len(order) < 2 or call not in order:
            return plan
        return refitted(plan, rows.without(order.index(call)), predictor)

    return refit


EXACT = Difference(0.0, math.inf, {}, 0.0)  # no run can be nearer


class Contest:
    """Plans against fewer steps, on calls that each plan was checked on.

    Args:
        trials: of the calls that were learned from.
        verifying: of those that were held out.
        accept_worse: whether a plan may lose.

    Attributes:
        lost: what was nearer than a plan that is not used for it, in words, newest last.
    """

    def __init__(self, trials: Trials, verifying: Trials, *, accept_worse: bool) -> None:
        self.trials, self.verifying, self._accept_worse = trials, verifying, accept_worse
        self.lost: list[str] = []

    def won(self, plan: RehashPlan, found: Sequence[Difference], *, held_out: bool) -> bool:
        """Whether frames by a plan are clearly nearer to the full run than by fewer steps: their median and the worst.

        Args:
            plan: that was run.
            found: on which calls it ended how far from the full run.
            held_out: whether these are the calls that were held out.
        """
        own = worst_of("plan", len(plan.full), found)
        other = self._fewer(plan, own, held_out=held_out)
        if other is None:
            return True  # the pipeline can't take fewer steps
        if _is_nearer(own, other):
            return True
        line = (
            f"{other.full} steps in full end nearer to the full run, or not clearly further from it, than the best "
            f"plan as fast: relative error of the frames {told(other)} against {told(own)} on {other.runs} "
            f"{'held-out ' * held_out}calls"
        )
        if self._accept_worse:
            log.warning("Step Rehash: %s", line)
        else:
            self.lost.append(line)
        return self._accept_worse

    def fewer(self, plan: RehashPlan) -> Other | None:
        """What fewer steps make of the calls held out in the time of a plan; None where a pipeline can't take fewer."""
        return self._fewer(plan, None, held_out=True)

    def _fewer(self, plan: RehashPlan, own: Other | None, *, held_out: bool) -> Other | None:
        """What fewer steps make of some calls in the time of a plan; None where a pipeline can't take fewer.

        Args:
            plan: whose time they take.
            own: what it has shown. Of calls that were learned from, no more are made than it takes to see that it wins:
                the others, however near, would not change that.
            held_out: whether of the calls that were held out, all of which are told of.
        """
        trials = self.verifying if held_out else self.trials
        steps = math.ceil(plan.evaluations / plan.loop_speedup)  # for them: seconds are not that exact

        def enough(found: Sequence[Difference]) -> bool:
            rest = [EXACT] * (trials.calls - len(found))
            return own is not None and not held_out and _is_nearer(own, worst_of(FEWER, steps, [*found, *rest]))

        runs = trials.fewer_steps(steps / plan.evaluations, enough)
        if runs is None:
            return None
        rest = [EXACT] * (trials.calls - len(runs[0]))
        return worst_of(FEWER, runs[1], [*runs[0], *rest])


def _is_nearer(own: Other, other: Other) -> bool:
    """Whether a plan wins: its worst frames and their median are clearly below those of fewer steps."""
    return own.frames < MARGIN * other.frames and own.median_frames < MARGIN * other.median_frames


def worst_of(method: str, full: int, runs: Sequence[Difference]) -> Other:
    """The worst that some runs have shown, and the median of their frames."""
    return Other(
        method,
        full,
        max(d.rel_error for d in runs),
        min(d.psnr for d in runs),
        max(d.frames for d in runs),
        statistics.median(d.frames for d in runs),
        len(runs),
    )


def told(other: Other) -> str:
    """Errors of frames, for people."""
    return f"{other.median_frames:.3g} (worst {other.frames:.3g})"
