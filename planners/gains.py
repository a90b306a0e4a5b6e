"""How much time slicing may save at most: without a search, from the work of each operator alone."""

from __future__ import annotations

import numpy as np

from sicompiler.cost import DOUBT, NO_WORK, Machine, Work
from sicompiler.planners.evaluator import Evaluator


def most_saved_seconds(evaluator: Evaluator) -> float:
    """An upper bound of what loops can save of the unsliced time of a graph, whatever the budget."""
    least = np.array([_least_seconds(work, evaluator.machine) for work in evaluator.work])
    return float(np.maximum(evaluator.whole - DOUBT * least, 0.0).sum())


def _least_seconds(work: Work, machine: Machine) -> float:
    """A lower bound of the time of one operator in a loop: two slices at the rate of the whole, all of it in the cache.

    See `cost.sliced_seconds`: thinner slices multiply no faster, and each is launched and reads its weights once more.
    """
    if work is NO_WORK:
        return 0.0
    rows = work.rows / (work.rows + machine.rows_at_half_speed)
    rate = machine.flops.get(work.itemsize, machine.flops[4]) * rows
    compute = work.matrix_flops / rate + work.vector_flops / machine.vector_flops
    traffic = work.activation_bytes / machine.cache_bandwidth
    parameters = (work.weight_bytes + machine.kernel_passes * work.kernel_bytes) / machine.memory_bandwidth
    return max(compute, traffic) + 0.3 * min(compute, traffic) + 2 * (machine.launch_seconds + parameters)
