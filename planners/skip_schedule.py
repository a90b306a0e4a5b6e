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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Predictor = Literal["least squares", "lagrange"]

RIDGE = 1e-6
"""The share of the mean squared norm of the sources that is added to the diagonal of the normal equations."""

PART = 4096
"""Sets of sources that are worked on at a time."""

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


def lagrange_weights(times: npt.ArrayLike, wanted: npt.ArrayLike) -> Floats:
    """Weights that continue the polynomial through values at some times to others.

    Exact on polynomials of degree `k - 1`, however uneven the gaps (Lagrange's formula).

    Args:
        times: [..., k], of what is known; no two of a row the same.
        wanted: [n].

    Returns:
        [..., k, n].
    """
    known, to = np.asarray(times, dtype=np.float64)[..., None], np.asarray(wanted, dtype=np.float64)
    found = np.ones((*known.shape[:-1], len(to)))
    for j, k in itertools.permutations(range(known.shape[-2]), 2):
        found[..., j, :] *= (to - known[..., k, :]) / (known[..., j, :] - known[..., k, :])
    return found


def least_squares_weights(gram: Floats, sources: npt.ArrayLike) -> Floats:
    """Weights of least squared error over the runs a Gram matrix was summed over, with a small ridge towards the last.

    Args:
        gram: [n, n].
        sources: [..., k], earlier evaluations, oldest first.

    Returns:
        [..., k, n], to predict every evaluation.
    """
    index = np.asarray(sources)
    normal = gram[index[..., :, None], index[..., None, :]]
    prior = np.zeros((index.shape[-1], 1))
    prior[-1] = 1.0
    trace = np.maximum(np.trace(normal, axis1=-2, axis2=-1), 1e-300)[..., None, None]
    ridge = RIDGE * trace / len(prior)
    return np.asarray(np.linalg.solve(normal + ridge * np.eye(len(prior)), gram[index] + ridge * prior))


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
        apart: [n, n], where an evaluation can't be predicted from an earlier one, whatever the Gram matrix says: its
            call was of another kind. None where every one can.
    """

    def __init__(
        self,
        gram: Floats,
        importance: Floats,
        times: Sequence[float],
        predictor: Predictor,
        order: int,
        apart: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        self.apart = np.zeros(gram.shape, dtype=bool) if apart is None else apart
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
            prediction = Prediction(sources, self.weights(sources, step))
            cost = squared_error(self.gram, prediction, step) * self.scale[step]
            found = (cost if self.reaches(sources, step) else math.inf, prediction)
            if len(sources) > 1:
                found = min(self.best(sources[1:], step), found, key=lambda row: row[0])
            self._known[key] = found
        return self._known[key]

    def reaches(self, sources: Sequence[int], step: int) -> bool:
        """Whether an evaluation can be predicted from some sources."""
        return not self.apart[list(sources), step].any()

    def weights(self, sources: tuple[int, ...], step: int) -> tuple[float, ...]:
        """The weights of the predictor with all of some sources."""
        return tuple(map(float, self._weights(np.array([sources]))[0, :, step]))

    def table(self, sources: npt.NDArray[np.int64]) -> Floats:
        """[m, n]: what predicting each evaluation costs.

        Args:
            sources: [m, k], all of which are used.
        """
        parts = np.array_split(sources, max(len(sources) // PART, 1))
        return np.concatenate([self._costs(part) for part in parts])

    def _costs(self, sources: npt.NDArray[np.int64]) -> Floats:
        weights = self._weights(sources)
        normal = self.gram[sources[:, :, None], sources[:, None, :]]
        off = np.diag(self.gram) + ((normal @ weights - 2 * self.gram[sources]) * weights).sum(axis=1)
        return np.where(self.apart[sources].any(axis=1), np.inf, np.maximum(off, 0.0) * self.scale)

    def _weights(self, sources: npt.NDArray[np.int64]) -> Floats:
        """[m, k, n]: weights of [m, k] sources for each evaluation."""
        if sources.shape[1] == 1:
            return np.ones((len(sources), 1, self.count))
        if self.predictor == "least squares":
            return least_squares_weights(self.gram, sources)
        own = np.array(self.times)[sources]
        twice = np.array([len(set(row)) < len(row) for row in own.tolist()])  # Heun evaluates twice at some times:
        found = np.zeros((*sources.shape, self.count))
        found[twice, -1] = 1.0  # reuse the newer
        found[~twice] = lagrange_weights(own[~twice], self.times)
        return found


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
    least = np.empty(0)  # [sources ..., step]: of the cheapest prediction from the newest of some sources
    for size in range(1, memory + 1):
        sources = np.array(list(itertools.combinations(range(n), size)), dtype=np.int64).reshape(-1, size)
        found = costs.table(sources)
        if size > 1:
            found = np.minimum(found, least[tuple(sources[:, 1:].T)])
        least = np.full((n,) * (size + 1), np.inf)
        least[tuple(sources.T)] = found
        if size < memory:  # fewer than memory allows are known only while the first evaluation is among them
            sources, found = sources[sources[:, 0] == 0], found[sources[:, 0] == 0]
        later = np.arange(n) > sources[:, -1:]
        ended = np.cumsum(np.where(later, np.sqrt(found), 0.0), axis=1) ** 2
        place = tuple(np.concatenate([np.zeros((memory - size, len(sources)), dtype=np.int64), sources.T + 1]))
        segment[(*place, slice(2, None))] = np.where(np.arange(1, n + 1) > sources[:, -1:], ended, np.inf)
    return segment


def _traced(last: tuple[int, ...], back: Sequence[npt.NDArray[np.int64]]) -> tuple[int, ...]:
    steps, state = [i - 1 for i in last if i], last
    for table in reversed(back):
        oldest = int(table[state])
        state = (oldest, *state[:-1])
        if oldest:
            steps.insert(0, oldest - 1)
    return tuple(sorted(set(steps)))


def schedule_of(
    costs: StepCosts, full: Sequence[int], predict: Callable[[tuple[int, ...], int], Prediction] | None = None
) -> Schedule:
    """The schedule with given full evaluations, and a prediction at each of the others.

    Those that can't be predicted from the full ones before them are in full, too.

    Args:
        costs: of the cut.
        full: the evaluations in full.
        predict: gives the prediction of an evaluation from the last full ones before it; the cheapest if not given.
    """
    found: list[Prediction | None] = []
    before: list[int] = []
    for step in range(costs.count):
        if step in full or not costs.reaches(before[-1:], step):
            found.append(None)
            before.append(step)
        else:
            last = tuple(before[-costs.memory :])
            found.append(costs.best(last, step)[1] if predict is None else predict(last, step))
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
    """Steps that run in full by the threshold at which their number comes nearest to `full`, not above it."""
    low, high = -1.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if len(similar_steps(gram, middle)) <= full:
            low = middle
        else:
            high = middle
    return similar_steps(gram, low)
