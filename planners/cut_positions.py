"""Where regions may start and end."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch._ops import OpOverload

from sicompiler.facts.calls import takes_statistics
from sicompiler.facts.timeline import Timeline
from sicompiler.regions.builder import HOISTED_BYTES
from sicompiler.regions.view import GraphView

SMALL_GRAPH = 200  # operators that allocate; up to here every position may be a cut
NEAR = 6  # operators that allocate, on either side of a deep cut
GROWTH = 32  # times the bytes of its operands: a value that begins at an operator


def cut_positions(view: GraphView, line: Timeline) -> tuple[list[int], list[int]]:
    """Where regions may start and end: beside operators that allocate, at local minima of the bytes that cross.

    The few bytes of a group norm's statistics don't count, or they would forbid the cut between its two passes. In a
    small graph every such position is a cut.

    Returns:
        Positions of operators a region may start with, and positions right after operators it may end with. The views
        between them cost nothing and stay outside.
    """
    makers = [p for p in range(view.facts.num_placeholders, len(view.facts.nodes)) if view.made[p]]
    if not makers:
        return [], []
    tensors = line.crossing_bytes - _statistics_bytes(view, len(line.crossing_bytes))
    crossing = [int(tensors[p]) for p in (*makers, len(view.facts.nodes))]
    slack = max(crossing) if len(makers) <= SMALL_GRAPH else 0
    chosen = [
        index
        for index, nbytes in enumerate(crossing)
        if (index == 0 or nbytes <= crossing[index - 1] + slack)
        and (index == len(makers) or nbytes <= crossing[index + 1] + slack)
    ]
    starts = [makers[index] for index in chosen if index < len(makers)]
    ends = [makers[index - 1] + 1 for index in chosen if index > 0]
    return starts, ends


def births(view: GraphView, hot_bytes: int) -> list[int]:
    """Positions of operators that broadcast next to nothing to a big value: a mask, from vectors of positions.

    They may start a region wherever they stand. The vectors are too small to be sliced, and make the cut before them
    the deeper one: from there, no axis of the big value could be followed.
    """
    found = []
    for p in range(view.facts.num_placeholders, len(view.facts.nodes)):
        target, nbytes = view.facts.nodes[p].target, view.bytes_of(view.made[p])
        read = view.bytes_of({view.tensor(value).storage for value in view.table.operands[p]})
        broadcasts = read == 0 or (isinstance(target, OpOverload) and torch.Tag.pointwise in target.tags)
        if broadcasts and nbytes >= max(hot_bytes, GROWTH * read) and read <= HOISTED_BYTES:
            found.append(p)
    return found


def deep_cuts(view: GraphView, line: Timeline) -> set[int]:
    """Where regions with halos may start and end: they are counted anew at each end, so only the deepest minima count.

    A cut is deep where fewer bytes cross than at any of the `NEAR` operators before it, and no more than behind it; or
    where a quarter of the highest crossing or more has gone before it and comes again behind it.
    """
    nodes = len(view.facts.nodes)
    makers = [p for p in range(view.facts.num_placeholders, nodes) if view.made[p]]
    tensors = line.crossing_bytes - _statistics_bytes(view, len(line.crossing_bytes))
    crossing = [int(tensors[p]) for p in (*makers, nodes)]
    found: set[int] = set()
    for index, nbytes in enumerate(crossing):
        before, behind = crossing[max(0, index - NEAR) : index], crossing[index + 1 : index + 1 + NEAR]
        lowest = all(nbytes < n for n in before) and all(nbytes <= n for n in behind)
        local = nbytes < min(before[-1:], default=nbytes + 1) and nbytes <= min(behind[:1], default=nbytes)
        valley = local and min(max(before, default=0), max(behind, default=0)) - nbytes >= max(crossing) / 4
        if len(makers) <= SMALL_GRAPH or lowest or valley:
            found.add(makers[index] if index < len(makers) else nodes)
            if index:
                found.add(makers[index - 1] + 1)
    return found | _behind_statistics(view)


def _behind_statistics(view: GraphView) -> set[int]:
    """Positions behind statistics that are not applied at once, and of what is rematerialized there before they are.

    If the region that took the statistics had to go on to where they are applied, it would make that whole before its
    loop.
    """
    first, nodes = view.facts.num_placeholders, view.facts.nodes
    found: set[int] = set()
    for p in range(first, len(nodes) - 1):
        if takes_statistics(nodes[p]) and p + 1 not in view.lives.readers[p]:
            found |= {p + 1, next((q for q in range(p + 1, len(nodes)) if view.made[q]), len(nodes))}
    return found


def _statistics_bytes(view: GraphView, count: int) -> npt.NDArray[np.int64]:
    """Bytes of group statistics that cross each position."""
    found = np.zeros(count, dtype=np.int64)
    for p in range(view.facts.num_placeholders, len(view.facts.nodes)):
        if takes_statistics(view.facts.nodes[p]):
            for storage in view.made[p]:
                found[p + 1 : view.lives.last[storage] + 1] += view.facts.storages[storage].nbytes
    return found
