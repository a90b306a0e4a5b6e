"""What an error at one evaluation does to the final latents, from runs in which one evaluation was skipped.

A scheduler alone (`rehash.importance`) does not know how a trained denoiser answers to latents that moved: it takes
them for signal, and keeps or damps what they began. So a few evaluations are skipped, one a run. Between them the ratio
of what was measured to what the scheduler alone makes of an error is interpolated, by its logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from sicompiler.planners.skip_schedule import Floats, Prediction, Schedule, squared_error
from sicompiler.rehash.lessons import CutStats

PROBED = 6  # evaluations that are skipped, one a run


def probed(count: int) -> tuple[int, ...]:
    """The evaluations that are skipped: spread evenly, the first one left out, as nothing is known before it.

    Args:
        count: of all evaluations.
    """
    return tuple(sorted({round(i) for i in np.linspace(1, count - 1, PROBED)})) if count > 1 else ()


def skipping_one(count: int, step: int) -> Schedule:
    """A schedule that gives one evaluation the feature of the one before, and runs all others in full."""
    return tuple(Prediction((step - 1,), (1.0,)) if i == step else None for i in range(count))


def response_of(lessons: CutStats, errors: Mapping[int, Sequence[float]]) -> Floats | None:
    """[n]: relative error of the final latents per 2-norm of an error of the output, at each evaluation.

    Args:
        lessons: of the cut at which evaluations were skipped.
        errors: by evaluation, the relative errors of the final latents in the runs that skipped it alone.

    Returns:
        None where no run showed anything.
    """
    gram, gains = lessons.gram, lessons.gain
    found: dict[int, float] = {}
    for step, seen in errors.items():
        off = squared_error(gram, Prediction((step - 1,), (1.0,)), step) / max(float(gram[step, step]), 1e-300)
        moved = float(gains[step]) * math.sqrt(off)
        error = math.sqrt(float(np.mean(np.square(seen)))) if len(seen) else 0.0
        if moved > 0 and error > 0 and math.isfinite(error / moved):
            found[step] = error / moved
    if not found:
        return None
    steps = sorted(found)
    alone = lessons.floored_importance
    ratios = [math.log(found[step] / alone[step]) for step in steps]
    return np.asarray(alone * np.exp(np.interp(np.arange(len(alone)), steps, ratios)))
