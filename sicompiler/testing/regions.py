"""Random legal regions: what the planner could choose for a graph, however little sense it makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sicompiler.axes.factor_map import Slicing
from sicompiler.compiler.analyzed_graph import AnalyzedGraph, named_axes
from sicompiler.machines import machine_of
from sicompiler.planners.candidates import axis_labels, seeds_of
from sicompiler.planners.op_costs import OpCosts
from sicompiler.planners.region_cost import RegionCost, unsliced
from sicompiler.regions.builder import RegionBuilder
from sicompiler.regions.region import Region
from sicompiler.testing.builder import Draw


def draw_regions(
    graph: AnalyzedGraph,
    choose: Callable[[Sequence[Any]], Any],
    *,
    most: int = 6,
    hoisted_bytes: Sequence[int] = (2**20, 0, 256),
) -> list[tuple[Region, int]]:
    """Draw disjoint regions, each with a slice length.

    Args:
        graph: a legal graph.
        choose: picks one of the given options; the first is the simplest.
        most: how many regions at most.
        hoisted_bytes: options for the size up to which values are computed whole before a loop.

    Returns:
        Regions in schedule order, for `outline_loops`.
    """
    draw = Draw(choose)
    labels = axis_labels(graph.view, named_axes(graph))
    found: list[tuple[Region, int]] = []
    position, end = graph.facts.num_placeholders, len(graph.facts.nodes)
    while position < end and len(found) < most:
        start = position + draw.pick(range(min(8, end - position)))
        position = start + 1
        seeds = seeds_of(graph.view, labels, start) if graph.facts.tensors[start] else []
        if not seeds:
            continue
        seed = _coarsened(draw.pick(seeds), draw.pick((1, 1, 2, 3, 4)))
        through = _through_windows(graph, start, seeds) if draw.flag() else []
        if through:
            seed = draw.pick(through)
        builder = RegionBuilder(graph.view, start, seed, hoisted_bytes=draw.pick(hoisted_bytes))
        length = draw.pick((1, 2, 3, 5, 8, 13, 21, 34))
        while builder.stop < min(start + length, end) and builder.extend() is None:
            pass
        lengths = _slice_lengths(builder) if builder.sliced else []
        if lengths:
            found.append((builder.region(), draw.pick(lengths)))
            position = builder.stop
    return found


def _through_windows(graph: AnalyzedGraph, start: int, seeds: Sequence[Slicing]) -> list[Slicing]:
    """The seeds from which a region soon runs through a window: few do, and halos are where mistakes are made."""
    found = []
    for seed in (_coarsened(seed, factor) for seed in seeds for factor in (1, 2, 4)):
        builder = RegionBuilder(graph.view, start, seed)
        while (
            builder.stop < min(start + 24, len(graph.facts.nodes)) and not builder.windows and builder.extend() is None
        ):
            pass
        if builder.windows:
            found.append(seed)
    return list(dict.fromkeys(found))


def _coarsened(seed: Slicing, factor: int) -> Slicing:
    """Units of more entries, as windows with a stride need them, where they divide the axis."""
    if seed.size % factor:
        return seed
    return Slicing(seed.dim, seed.outer, seed.size // factor, seed.inner * factor)


def _slice_lengths(builder: RegionBuilder) -> list[int]:
    """The slice lengths with which no slice of the region is empty."""
    halos, lengths = builder.halos(), np.arange(1, builder.size + 1, dtype=np.float64)
    fits = [True] * builder.size if halos is None else halos.fits(builder.size, lengths)
    return [length for length, legal in enumerate(fits, start=1) if legal]


def predicted_peak(graph: AnalyzedGraph, regions: Sequence[tuple[Region, int]]) -> int:
    """Peak of activations and inputs that the planner would predict for some regions, all other operators unsliced.

    Args:
        graph: a legal graph.
        regions: from `draw_regions` with the default `hoisted_bytes` of `RegionBuilder`.
    """
    position = graph.facts.num_placeholders
    live = unsliced(OpCosts(graph.view, graph.line, machine_of(graph.facts.device_type)))[0]
    peaks = [int(live[:position].max(initial=0))]  # the inputs
    for region, slice_length in regions:
        peaks.append(int(live[position : region.start].max(initial=0)))
        peaks.append(_region_peak(graph, region, slice_length))
        position = region.stop
    return max(*peaks, int(live[position:].max(initial=0)))


def _region_peak(graph: AnalyzedGraph, region: Region, slice_length: int) -> int:
    evaluator = OpCosts(graph.view, graph.line, machine_of(graph.facts.device_type))
    evaluator.lengths[region.size] = ((slice_length,), np.array([slice_length], dtype=np.float64))
    builder = RegionBuilder(graph.view, region.start, region.seed)
    cost = RegionCost(evaluator, builder)
    builder.extend_to(region.stop)
    cost.advance()
    return int(cost.evaluate()[0][0])
