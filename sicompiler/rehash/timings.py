"""Seconds of evaluations within a budget, as they were measured while plans were tried."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

from sicompiler.rehash.plan import RehashPlan

Room = tuple[tuple[int, ...], int, int, bool]  # what a plan holds, of which its seconds depend


@dataclass(frozen=True)
class Seconds:
    """Means over the evaluations of a run, median over the runs.

    Attributes:
        whole: where nothing is skipped or kept.
        full: in full.
        skip: skipped.
        step: of a step of the loop, beside the denoiser.
        outside: of a call, before and after its loop.
    """

    whole: float
    full: float
    skip: float
    step: float
    outside: float


def median_of(rows: Sequence[Seconds]) -> Seconds:
    """The median of each, over several runs."""
    return Seconds(*(statistics.median(column) for column in zip(*map(astuple, rows), strict=True)))


class Timings:
    """What trying plans has shown of time and room."""

    def __init__(self) -> None:
        self._seconds: dict[Room, Seconds] = {}
        self._whole: tuple[float, float, float] | None = None  # where nothing is skipped: an evaluation, and beside
        self._too_big: set[Room] = set()

    @property
    def seen_whole(self) -> bool:
        """Whether a call was timed in which nothing is skipped or kept."""
        return self._whole is not None

    @property
    def outside(self) -> float:
        """Seconds of a call before and after its loop."""
        return 0.0 if self._whole is None else self._whole[2]

    def measured(self, plan: RehashPlan, seconds: Seconds) -> None:
        """Put down what a plan took.

        An evaluation in full that keeps features does all that one does which keeps nothing: where it looked faster,
        the machine was busier while the others were timed.
        """
        self._seconds[_room(plan)] = replace(seconds, full=max(seconds.full, seconds.whole))

    def seen(self, whole: float, step: float, outside: float) -> None:
        """Put down what a call takes where nothing is skipped or kept.

        Args:
            whole: seconds of an evaluation.
            step: of a step of the loop, beside the denoiser.
            outside: of the call, before and after its loop.
        """
        self._whole = whole, step, outside if self._whole is None else min(outside, self._whole[2])

    def too_big(self, plan: RehashPlan) -> None:
        """Put down that a plan's features leave too little of the budget."""
        self._too_big.add(_room(plan))

    def corrected(self, plans: Sequence[RehashPlan]) -> list[RehashPlan]:
        """The plans with seconds as measured, where one that holds as much was tried; those too big are left out.

        Of others, evaluations in full are taken to be as fast as where nothing is kept: while learning, much was.
        """
        found = []
        for plan in plans:
            room = _room(plan)
            if room in self._too_big:
                continue
            if (seconds := self._seconds.get(room)) is not None:
                plan = replace(
                    plan,
                    whole_seconds=seconds.whole,
                    full_seconds=seconds.full,
                    skip_seconds=seconds.skip,
                    step_seconds=seconds.step,
                    outside_seconds=seconds.outside,
                )
            elif self._whole is not None:
                whole, step, outside = self._whole
                plan = replace(
                    plan, whole_seconds=whole, full_seconds=whole, step_seconds=step, outside_seconds=outside
                )
            found.append(plan)
        return found


def _room(plan: RehashPlan) -> Room:
    return plan.cut, plan.full_snapshots, plan.skip_snapshots, any(plan.checks)
