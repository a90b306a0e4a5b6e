"""Which sizes to capture: the corners of what is asked for, and two more that tell the forms apart."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from sicompiler.scaling.form import Point, corners, tells_apart, varying

MOST_TRIES = 1000


def choose_points(wanted: Sequence[Point], steps: Point) -> tuple[Point, ...] | None:
    """Sizes to capture: the largest wanted one first, then the smallest, so that what changes between is noticed.

    Args:
        wanted: the sizes asked for.
        steps: by how much frames, height and width change at least; 0 for one that has to stay.

    Returns:
        The four, and a fifth where the smallest can't be among them; None where such sizes are not found.
    """
    low, high = corners(wanted)
    free = {axis for axis, step in enumerate(steps) if step}
    axes = [_values(a, b, step) for a, b, step in zip(low, high, steps, strict=True)]
    # Never above the largest: a model has a most frames, and a graph may change with size.
    pool = [p for p in itertools.product(*axes) if p not in (low, high)]
    random.Random(0).shuffle(pool)  # neighbours in order are alike
    for base in ([(high, low)] if low != high else []) + [(high,)]:
        for rest in itertools.islice(itertools.combinations(pool, 4 - len(base)), MOST_TRIES):
            points = (*base, *rest)
            if varying(points) == free and tells_apart(points, free):
                return points if low in points else (*points, low)
    return None


def _values(low: int, high: int, step: int) -> list[int]:
    """Sizes of one axis to try: from the smallest to the largest, and a few below them."""
    if step == 0:
        return [high]
    inner = range(high, max(low, high - 6 * step) - 1, -step)
    below = range(high, max(step, high - 6 * step), -step)
    return list(dict.fromkeys([*inner, *below, low]))
