"""An upper bound on the seconds that slicing can save, from the work of each operator alone, without a search."""

from __future__ import annotations

import math

import numpy as np

from sicompiler.cost import NO_WORK, Work
from sicompiler.device import Machine
from sicompiler.facts.storages import Origin
from sicompiler.planners.op_costs import OpCosts


def most_saved_seconds(evaluator: OpCosts) -> float:
    """An upper bound of what loops can save of the unsliced time of a graph, whatever the budget.

    A loop from operator s to e saves at most the sum of what its operators save with all they read and write in the
    cache, less the time to read an operand of the first and to write what the last one makes. The best set of disjoint
    loops is

        best[e] = max(best[e - 1], max over s < e of best[s] - read[s] + sum of saved[s:e] - written[e - 1])
    """
    view, machine = evaluator.view, evaluator.machine
    saved = evaluator.whole - machine.doubt * np.array([_least_seconds(work, machine) for work in evaluator.work])
    second = machine.memory_bandwidth / machine.doubt  # bytes that a loop is thought to move in it
    best = total = 0.0
    opened = -np.inf  # the best that a loop which is still open starts from, less the sum up to there
    for p in range(view.facts.num_placeholders, len(saved)):
        tensors = [view.tensor(value) for value in view.table.operands[p]]
        read = min((t.nbytes for t in tensors if view.facts.storages[t.storage].origin is not Origin.WEIGHT), default=0)
        opened = max(opened, best - total - read / second)
        total += float(saved[p])
        written = min((view.facts.storages[t.storage].nbytes for t in view.facts.tensors[p]), default=0)
        best = max(best, opened + total - written / second)
    return best


def _least_seconds(work: Work, machine: Machine) -> float:
    """A lower bound of the time of one operator in a loop, whatever is cut and into how many slices.

    See `cost.sliced_seconds`: thinner slices multiply no faster, and each is launched and reads its weights once more.
    Either there are as many slices as it takes for one to fit into the cache, or all of it goes through memory.
    """
    if work is NO_WORK:
        return 0.0
    rows = work.rows / (work.rows + machine.rows_at_half_speed)
    rate = machine.rate(work.kernel, work.itemsize) * rows
    compute = work.matrix_flops / rate + work.vector_flops / machine.vector_flops
    parameters = (work.weight_bytes + machine.kernel_passes * work.kernel_bytes) / machine.memory_bandwidth

    def seconds(slices: int, bandwidth: float) -> float:
        traffic = work.activation_bytes / bandwidth
        overlapped = max(compute, traffic) + 0.3 * min(compute, traffic)
        return overlapped + slices * (machine.launch_seconds + parameters)

    fitting = max(2, math.ceil(work.activation_bytes / machine.cache_bytes))
    return min(seconds(fitting, machine.cache_bandwidth), seconds(2, machine.memory_bandwidth))
