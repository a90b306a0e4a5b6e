"""What full runs teach: how the features of cuts move from step to step, and what their errors do to the output."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from sicompiler.planners.skip_schedule import Floats
from sicompiler.rehash.kinds import CallKind, StepKinds, apart

TEMPER = 0.25
"""Power of the weights of evaluations around their mean: 1 believes the scheduler alone, 0 weighs all the same. Found
on the demo pipeline's training captions (decision 23)."""


@dataclass(frozen=True)
class RunStats:
    """What one full run showed of one cut.

    Attributes:
        grams: for each branch, [n, n]: inner products of the feature at all evaluations; zero where it was not watched,
            and between features of calls of different kinds.
        gains: [n]: change of the output, as a 2-norm, per relative error of the feature; nan where not probed.
        full_seconds: of one evaluation in full.
        skip_seconds: of one that is skipped.
        step_seconds: of a step of the loop, beside the denoiser.
        kinds: of the calls, at each evaluation; empty where all calls of a branch were alike.
    """

    grams: tuple[Floats, ...]
    gains: Floats
    full_seconds: float
    skip_seconds: float
    step_seconds: float = 0.0
    kinds: tuple[StepKinds, ...] = ()

    @property
    def stretches(self) -> tuple[int, ...]:
        """For each evaluation, in which stretch of calls of one kind it is; empty where there is only one."""
        found = [0]
        for before, now in itertools.pairwise(self.kinds):
            found.append(found[-1] + apart(before, now))
        return tuple(found) if found[-1] else ()


@dataclass
class CutStats:
    """What all runs showed of one cut.

    Attributes:
        cut: positions in the clean graph.
        names: of the nodes there.
        nbytes: of the values there.
        times: where each evaluation stands.
        importance: [n]: what an error of the output does to the final latents (`rehash.importance`).
        final_norm: of the latents at the end, mean over the runs.
        lessons: one a run.
        response: [n]: relative error of the final latents per 2-norm of an error of the output, as runs with skipped
            evaluations have shown (`rehash.response`); None where there were none.
    """

    cut: tuple[int, ...]
    names: tuple[str, ...]
    nbytes: int
    times: tuple[float, ...]
    importance: Floats
    final_norm: float = 0.0
    lessons: list[RunStats] = field(default_factory=list)
    response: Floats | None = None

    def add(self, lesson: RunStats, final_norm: float) -> None:
        """Put down one more run, and the norm of its latents at the end."""
        self.final_norm = (self.final_norm * len(self.lessons) + final_norm) / (len(self.lessons) + 1)
        self.lessons.append(lesson)

    def without(self, number: int) -> CutStats:
        """What the other runs showed, had one not been made."""
        return replace(self, lessons=[x for i, x in enumerate(self.lessons) if i != number])

    @property
    def gram(self) -> Floats:
        """[n, n], summed over runs and branches, each scaled to its own norm."""
        grams = [gram / _mean_square(gram) for lesson in self.lessons for gram in lesson.grams]
        return np.asarray(np.sum(grams, axis=0))

    @property
    def apart(self) -> npt.NDArray[np.bool_] | None:
        """[n, n]: whether a feature is of no use at a later evaluation, in any run; None where all are of use."""
        rows = [np.array(lesson.stretches) for lesson in self.lessons if lesson.stretches]
        return np.any([row[:, None] != row for row in rows], axis=0) if rows else None

    @property
    def kinds(self) -> tuple[tuple[StepKinds, ...], ...]:
        """For each evaluation, the calls of that step in every way they were seen; empty where none differed."""
        branches = max(len(lesson.grams) for lesson in self.lessons)
        alike = ((CallKind(),) * branches,) * len(self.times)
        runs = [lesson.kinds or alike for lesson in self.lessons]
        if all(run == alike for run in runs):
            return ()
        return tuple(tuple(dict.fromkeys(step)) for step in zip(*runs, strict=True))

    @property
    def gain(self) -> Floats:
        """[n]: change of the output, as a 2-norm, per relative error of the feature; interpolated where not probed."""
        rows = np.array([lesson.gains for lesson in self.lessons])
        seen = np.isfinite(rows)
        gains = np.where(seen, rows, 0.0).sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
        known = np.flatnonzero(seen.any(axis=0))
        return np.interp(np.arange(len(gains)), known, gains[known]) if len(known) else np.ones_like(gains)

    @property
    def floored_importance(self) -> Floats:
        """[n]: the importance, nowhere zero, so that it has a logarithm."""
        return np.maximum(self.importance, 1e-9 * max(float(np.max(self.importance)), 1e-300))

    @property
    def weight(self) -> Floats:
        """[n]: relative error of the final latents per relative error of the feature, at each evaluation.

        Where that was not measured, what the scheduler alone makes of it, tempered: it forgets early errors, a trained
        denoiser answers to them and keeps what they began.
        """
        if self.response is not None:
            return self.gain * self.response
        weight = self.gain * self.importance / max(self.final_norm, 1e-300)
        return np.asarray(weight**TEMPER * float(np.mean(weight)) ** (1 - TEMPER))

    @property
    def full_seconds(self) -> float:
        """Median of one evaluation in full."""
        return statistics.median(lesson.full_seconds for lesson in self.lessons)

    @property
    def skip_seconds(self) -> float:
        """Median of one that is skipped, over the runs that have skipped any."""
        seen = [lesson.skip_seconds for lesson in self.lessons if lesson.skip_seconds > 0]
        return statistics.median(seen) if seen else 0.0

    @property
    def step_seconds(self) -> float:
        """Median of a step of the loop, beside the denoiser."""
        return statistics.median(lesson.step_seconds for lesson in self.lessons)

    @property
    def skip_share(self) -> float:
        """Time of a skipped evaluation, of that of a full one."""
        return self.skip_seconds / self.full_seconds if self.full_seconds else 0.0

    def at(self, times: Sequence[float], importance: Floats) -> CutStats:
        """The statistics for other evaluation times, between which features are taken to move evenly.

        Args:
            times: of the evaluations wanted.
            importance: of these.
        """
        matrix, nearest = _between(self.times, times, self.lessons), _nearest(self.times, times)
        moved = [
            RunStats(
                tuple(matrix @ gram @ matrix.T for gram in lesson.grams),
                matrix @ np.nan_to_num(lesson.gains, nan=float(np.nanmean(lesson.gains))),
                lesson.full_seconds,
                lesson.skip_seconds,
                lesson.step_seconds,
                tuple(lesson.kinds[i] for i in nearest) if lesson.kinds else (),
            )
            for lesson in self.lessons
        ]
        rows = CutStats(self.cut, self.names, self.nbytes, tuple(times), importance, self.final_norm, moved)
        if self.response is not None:
            ratios = matrix @ np.log(self.response / self.floored_importance)
            rows.response = rows.floored_importance * np.exp(ratios)
        return rows


def _mean_square(gram: Floats) -> float:
    """The mean square of the norms of the features that were watched."""
    return float(np.trace(gram)) / max(int(np.count_nonzero(np.diag(gram))), 1) or 1e-300


def _nearest(known: Sequence[float], wanted: Sequence[float]) -> list[int]:
    """[wanted]: the evaluation that stands nearest."""
    return [int(i) for i in np.abs(np.subtract.outer(wanted, known)).argmin(axis=1)]


def _between(known: Sequence[float], wanted: Sequence[float], lessons: Sequence[RunStats] = ()) -> Floats:
    """[wanted, known]: weights of linear interpolation; beyond the ends the nearest.

    Where calls changed in the runs, those of one kind only: each that is wanted is of the kind of the nearest.
    """
    order = np.argsort(known, kind="stable")
    grid = np.asarray(known)[order]
    unit = np.eye(len(known))[order]
    found = np.stack([np.interp(wanted, grid, column) for column in unit.T], axis=1)
    nearest = _nearest(known, wanted)
    for stretches in [np.array(lesson.stretches) for lesson in lessons if lesson.stretches]:
        found = np.where(stretches[nearest][:, None] == stretches, found, 0.0)
    return np.asarray(found / found.sum(axis=1, keepdims=True))
