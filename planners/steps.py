"""Step schedules: which denoising evaluations run in full, so that predicting a feature at the others costs least.

All that a schedule needs of a calibration is the Gram matrix of the feature over the evaluations of a run, as features
are predicted by linear combinations of earlier ones: with weights w over sources S,

    |X_i - sum_j w_j X_j|^2 = G_ii - 2 sum_j w_j G_ij + sum_jk w_j w_k G_jk,   G_ij = <X_i, X_j>.

Errors of evaluations that are skipped one after the other point the same way, as all of them miss the same change: what
they do to the result adds up. What stretches of them do, with full evaluations in between, adds up in squares.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Predictor = Literal["least squares", "lagrange"]

RIDGE = 1e-6
"""Of the mean squared norm of the sources, added to the diagonal of the normal equations."""

DEEPEST = 64
"""Evaluations beyond which schedules remember two full ones at most: the table of three has their fourth power."""


@dataclass(frozen=True)
class Prediction:
    """How one skipped evaluation gets its feature.

    Attributes:
        sources: earlier evaluations, oldest first.
        weights: of their features, summing to one for Lagrange.
    """

    sources: tuple[int, ...]
    weights: tuple[float, ...]


Schedule = tuple[Prediction | None, ...]  # for each evaluation, None where it runs in full


def lagrange_weights(times: Sequence[float], time: float) -> tuple[float, ...]:
    """Weights that continue the polynomial through values at `times` to `time`.

    Exact on polynomials of degree `len(times) - 1`, however uneven the gaps (Lagrange's formula).
    """
    return tuple(
        float(np.prod([(time - other) / (own - other) for k, other in enumerate(times) if k != j]))
        for j, own in enumerate(times)
    )


def least_squares_weights(gram: Floats, sources: Sequence[int], step: int) -> tuple[float, ...]:
    """Weights of least squared error over the runs a Gram matrix was summed over, with a small ridge towards the last.

    Args:
        gram: [n, n].
        sources: earlier evaluations, oldest first.
        step: the evaluation to predict.
    """
    index = list(sources)
    normal = gram[np.ix_(index, index)]
    prior = np.zeros(len(index))
    prior[-1] = 1.0
    ridge = RIDGE * float(np.trace(normal)) / len(index) * np.eye(len(index))
    return tuple(float(w) for w in np.linalg.solve(normal + ridge, gram[index, step] + ridge @ prior))


def squared_error(gram: Floats, prediction: Prediction, step: int) -> float:
    """Squared error of a prediction over the runs a Gram matrix was summed over; never negative."""
    index, weights = list(prediction.sources), np.array(prediction.weights)
    found = gram[step, step] - 2 * weights @ gram[index, step] + weights @ gram[np.ix_(index, index)] @ weights
    return max(float(found), 0.0)


class StepCosts:
    """What skipping each evaluation costs, by the full evaluations before it.

    Args:
        gram: [n, n], of the feature, summed over calibration runs, each scaled to its own norm.
        importance: [n], what an error of the feature, relative to its norm, at an evaluation does to the result.
        times: [n], where each evaluation stands: sigmas, their logarithm or indices.
        predictor: how weights are found.
        order: of the predictor at most, 0 to 2: it uses up to `order + 1` sources.
    """

    def __init__(self, gram: Floats, importance: Floats, times: Sequence[float], predictor: Predictor, order: int):
        self.gram, self.times, self.predictor = gram, list(times), predictor
        self.scale = np.square(importance) / np.maximum(np.diag(gram), 1e-300)
        self.memory = order + 1 if len(times) <= DEEPEST else min(order + 1, 2)
        self._known: dict[tuple[tuple[int, ...], int], tuple[float, Prediction]] = {}

    @property
    def count(self) -> int:
        """Number of evaluations."""
        return len(self.times)

    def best(self, sources: tuple[int, ...], step: int) -> tuple[float, Prediction]:
        """The cheapest prediction from the newest of some sources, and what it costs."""
        key = (sources, step)
        if key not in self._known:
            used = sources[-1:]
            weights = self.weights(used, step)
            prediction = Prediction(used, weights)
            found = (squared_error(self.gram, prediction, step) * self.scale[step], prediction)
            if len(sources) > 1:
                full = Prediction(sources, self.weights(sources, step))
                cost = squared_error(self.gram, full, step) * self.scale[step]
                found = min(found, (cost, full), self.best(sources[1:], step), key=lambda row: row[0])
            self._known[key] = found
        return self._known[key]

    def weights(self, sources: tuple[int, ...], step: int) -> tuple[float, ...]:
        """The weights of the predictor with all of some sources."""
        if len(sources) == 1:
            return (1.0,)
        if self.predictor == "lagrange":
            own = [self.times[s] for s in sources]
            if len(set(own)) < len(own):  # Heun evaluates twice at some times: reuse the newer
                return (*(0.0 for _ in own[1:]), 1.0)
            return lagrange_weights(own, self.times[step])
        return least_squares_weights(self.gram, sources, step)


def best_schedules(costs: StepCosts) -> dict[int, tuple[float, Schedule]]:
    """For every number of full evaluations, the schedule of least cost, by dynamic programming over the last full ones.

    Args:
        costs: of predicting each evaluation.

    Returns:
        By the number of full evaluations, from 1 to all: root of the summed cost, and the schedule.
    """
    n, memory = costs.count, costs.memory
    segment = _segments(costs)
    shape = (n + 1,) * memory  # number j + 1 stands for evaluation j, 0 for none yet
    start = np.full(shape, np.inf)
    start[(0,) * (memory - 1) + (1,)] = 0.0
    ends = np.take(segment, n + 1, axis=-1)
    table, back = start, list[npt.NDArray[np.int64]]()
    found: dict[int, tuple[float, Schedule]] = {}
    for full in range(1, n + 1):
        if full > 1:
            reached = table[..., None] + segment[..., : n + 1]
            back.append(reached.argmin(axis=0))
            table = reached.min(axis=0)
        total = table + ends
        last = tuple(int(i) for i in np.unravel_index(int(total.argmin()), shape))
        if np.isfinite(total[last]):
            steps = _traced(last, back[: full - 1])
            found[full] = (float(np.sqrt(total[last])), schedule_of(costs, steps))
    return found


def _segments(costs: StepCosts) -> Floats:
    """[last full ones ..., next full one]: cost of the stretch in between; the last column stands for the end."""
    n, memory = costs.count, costs.memory
    segment = np.full((n + 1,) * memory + (n + 2,), np.inf)
    for sources in (s for size in range(1, memory + 1) for s in itertools.combinations(range(n), size)):
        if len(sources) < memory and sources[0] != 0:
            continue  # fewer than memory allows are known only while the first evaluation is among them
        index = (0,) * (memory - len(sources)) + tuple(s + 1 for s in sources)
        root = 0.0
        for following in range(sources[-1] + 1, n + 1):
            segment[(*index, following + 1)] = root**2
            if following < n:
                root += costs.best(sources, following)[0] ** 0.5
    return segment


def _traced(last: tuple[int, ...], back: Sequence[npt.NDArray[np.int64]]) -> tuple[int, ...]:
    steps, state = [i - 1 for i in last if i], last
    for table in reversed(back):
        oldest = int(table[state])
        state = (oldest, *state[:-1])
        if oldest:
            steps.insert(0, oldest - 1)
    return tuple(sorted(set(steps)))


def schedule_of(costs: StepCosts, full: Sequence[int]) -> Schedule:
    """The schedule with given full evaluations, and the cheapest prediction at each of the others."""
    found: list[Prediction | None] = []
    before: list[int] = []
    for step in range(costs.count):
        if step in full:
            found.append(None)
            before.append(step)
        else:
            found.append(costs.best(tuple(before[-costs.memory :]), step)[1])
    return tuple(found)


def cost_of(costs: StepCosts, schedule: Schedule) -> float:
    """Root of the summed cost of a schedule, whatever its weights."""
    total = stretch = 0.0  # of the stretches that have ended; of the one at hand, its root
    for step, prediction in enumerate((*schedule, None)):
        if prediction is None:
            total, stretch = total + stretch**2, 0.0
        else:
            stretch += math.sqrt(squared_error(costs.gram, prediction, step) * costs.scale[step])
    return math.sqrt(total)


def uniform_steps(count: int, full: int) -> tuple[int, ...]:
    """`full` evaluations spread evenly over `count`, the first among them."""
    return tuple(sorted({int(i * count / full) for i in range(full)}))


def similar_steps(gram: Floats, threshold: float) -> tuple[int, ...]:
    """The rule of Streamlined Inference (arXiv 2411.01171): skip while the feature is like that of the last full one.

    Args:
        gram: [n, n].
        threshold: the least cosine similarity that counts as alike.
    """
    norms = np.sqrt(np.maximum(np.diag(gram), 1e-300))
    alike = gram / np.outer(norms, norms)
    full = [0]
    for step in range(1, len(gram)):
        if alike[full[-1], step] < threshold:
            full.append(step)
    return tuple(full)


def similar_steps_of(gram: Floats, full: int) -> tuple[int, ...]:
    """The same with the threshold at which the number of full evaluations comes nearest to `full`, not above it."""
    low, high = -1.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if len(similar_steps(gram, middle)) <= full:
            low = middle
        else:
            high = middle
    return similar_steps(gram, low)
