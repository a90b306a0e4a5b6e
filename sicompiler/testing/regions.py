"""Random legal regions: what the planner could choose for a graph, however little sense it makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sicompiler.axes.factor_map import Slicing
from sicompiler.planners.candidates import seeds_of
from sicompiler.region import GraphView, Region, Walk
from sicompiler.testing.models import Draw


def draw_regions(
    view: GraphView, labels: list[dict[Slicing, str]], choose: Callable[[Sequence[Any]], Any], *, most: int = 6
) -> list[tuple[Region, int]]:
    """Draw disjoint regions, each with a slice length.

    Args:
        view: the graph.
        labels: from `axis_labels`.
        choose: picks one of the given options; the first is the simplest.
        most: how many regions at most.

    Returns:
        Regions in schedule order, for `outline_loops`.
    """
    draw = Draw(choose)
    found: list[tuple[Region, int]] = []
    position, end = view.facts.num_placeholders, len(view.facts.nodes)
    while position < end and len(found) < most:
        start = position + draw.pick(range(min(8, end - position)))
        position = start + 1
        seeds = seeds_of(view, labels, start) if view.facts.tensors[start] else []
        if not seeds:
            continue
        walk = Walk(view, start, draw.pick(seeds), hoisted_bytes=draw.pick((2**20, 0, 256)))
        length = draw.pick((1, 2, 3, 5, 8, 13, 21, 34))
        while walk.stop < min(start + length, end) and walk.extend() is None:
            pass
        if walk.sliced:
            found.append((walk.region(), draw.pick(range(1, walk.size + 1))))
            position = walk.stop
    return found
