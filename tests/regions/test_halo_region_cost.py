"""The running cost of regions with halos: equal to one counted from scratch at every end, for less work."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sicompiler import testing
from sicompiler.axes.factor_map import Slicing
from sicompiler.capture import capture
from sicompiler.compiler.analyzed_graph import AnalyzedGraph, analyze_graph
from sicompiler.compiler.search import graph_offloading, spillable
from sicompiler.device import device_kind
from sicompiler.planners.candidates import seeds_of
from sicompiler.planners.halo_operators import HaloOperators
from sicompiler.planners.halo_region_cost import HaloRegionCost
from sicompiler.planners.op_costs import OpCosts
from sicompiler.planners.region_cost import RegionCost
from sicompiler.regions.builder import RegionBuilder
from tests.plain_region_cost import PlainRegionCost


class Frames(nn.Module):
    """A causal decoder that unrolls its frames: every convolution keeps the last frame it has seen for the next."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(2 * width, width, 3, padding=1) for _ in range(3))
        self.last = nn.Conv2d(width, 2 * width, (5, 3), padding=(2, 1), stride=(1, 2))
        self.inner = nn.Conv2d(width, width, 5)
        self.blur = nn.Conv2d(width, width, 11, padding=7)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        kept: list[torch.Tensor | None] = [None] * len(self.convs)
        frames = []
        for frame in torch.sin(x).unbind(1):
            h = frame
            for index, conv in enumerate(self.convs):
                before = kept[index]
                kept[index] = h
                h = h + torch.tanh(conv(torch.cat([h if before is None else before, h], 1)))
                if index == 1:
                    h = F.interpolate(h, scale_factor=2.0)
                    kept[index + 1] = None if before is None else kept[index + 1]
            first, second = self.last(h).chunk(2, 1)
            frames.append(torch.sigmoid(first) * F.max_pool2d(second, 3, 1, 1))
        part = self.inner(frames[-1])  # shorter than what comes before and after it: its own last slices are empty
        return torch.stack(frames, 1), part, torch.tanh(self.blur(part))


def frames_graph(count: int, device: str) -> AnalyzedGraph:
    model = Frames().eval()
    return analyze_graph(capture(model, (torch.zeros(1, count, 4, 12, 10),), {}), device)


def makes(graph: AnalyzedGraph, position: int) -> bool:
    """Whether a region can start there: at a tensor, and not at a number."""
    return bool(graph.facts.tensors[position])


def check_ends(graph: AnalyzedGraph, most: int, every: int) -> int:
    """Grow along every dim from some starts; at each end both ways say the same. Returns how many ends there were.

    Args:
        graph: where.
        most: operators of a region.
        every: how many positions lie between starts.
    """
    machine, ends = device_kind(graph.facts.device_type).machine, 0
    evaluator, other = (OpCosts(graph.view, graph.line, machine) for _ in range(2))
    for start in [p for p in range(graph.facts.num_placeholders, len(graph.facts.nodes), every) if makes(graph, p)]:
        for seed in seeds_of(graph.view, [{} for _ in graph.facts.nodes], start):
            walk = RegionBuilder(graph.view, start, seed, windows=12)
            tally = RegionCost(evaluator, walk)
            while walk.stop < min(len(graph.facts.nodes), start + most) and walk.extend() is None:
                tally.advance()
                if walk.windows:
                    ends += 1
                    for ours, theirs in zip(tally.evaluate(), PlainRegionCost(other, walk).evaluate(), strict=True):
                        assert np.array_equal(ours, theirs), (start, walk.stop, str(seed))
    return ends


@pytest.mark.parametrize(("device", "offloaded"), [("cpu", False), ("cuda", True)])
def test_every_end_in_a_causal_decoder_is_as_counted_from_scratch(device: str, offloaded: bool) -> None:
    graph = frames_graph(2, device)
    if offloaded:
        graph = graph_offloading(graph, spillable(graph, least_bytes=1024))
    assert check_ends(graph, most=30, every=4) > 100


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6), device=st.sampled_from(["cpu", "cuda"]))
def test_every_end_in_a_random_network_is_as_counted_from_scratch(seed: int, device: str) -> None:
    module, args, kwargs = testing.random_network(seed=seed)
    check_ends(analyze_graph(capture(module, args, kwargs), device), most=12, every=3)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6), device=st.sampled_from(["cpu", "cuda"]))
def test_without_windows_both_ways_of_counting_agree(seed: int, device: str) -> None:
    module, args, kwargs = testing.random_network(seed=seed)
    graph = analyze_graph(capture(module, args, kwargs), device)
    evaluator, end = OpCosts(graph.view, graph.line, device_kind(device).machine), len(graph.facts.nodes)
    for start in [p for p in range(graph.facts.num_placeholders, end, 3) if makes(graph, p)]:
        for seed_slicing in seeds_of(graph.view, [{} for _ in graph.facts.nodes], start):
            walk = RegionBuilder(graph.view, start, seed_slicing)
            sums, halos = RegionCost(evaluator, walk), HaloRegionCost(evaluator, walk)
            while walk.stop < min(end, start + 12) and walk.extend() is None:
                halos.add(sorted(walk.added))
                sums.advance()
                if walk.sliced:
                    (peak, seconds), (halo_peak, halo_seconds) = sums.evaluate(), halos.evaluate(sums.hoisted)
                    fits = halo_peak < np.iinfo(np.int64).max  # elsewhere a slice is empty
                    np.testing.assert_allclose(halo_seconds[fits], seconds[fits], rtol=1e-12)
                    above = (halo_peak - peak)[fits]  # workspace of no bytes is rounded up to one granule there
                    most = evaluator.granule if evaluator.granule > 1 else 0
                    assert ((above >= 0) & (above <= most)).all(), (start, walk.stop, str(seed_slicing))


def long_walk(graph: AnalyzedGraph) -> RegionBuilder:
    """Through all frames along their height."""
    start = next(p for p, node in enumerate(graph.facts.nodes) if node.name == "sin")
    return RegionBuilder(graph.view, start, Slicing(3, 1, 12, 1))


def test_a_region_grown_at_once_is_as_one_grown_step_by_step() -> None:
    graph = frames_graph(2, "cuda")
    evaluator = OpCosts(graph.view, graph.line, device_kind("cuda").machine)
    walk, other = long_walk(graph), long_walk(graph)
    steps, once = RegionCost(evaluator, walk), RegionCost(evaluator, other)
    while walk.stop < len(graph.facts.nodes) and walk.extend() is None:
        steps.advance()
    other.extend_to(walk.stop)
    once.advance()
    assert walk.windows > 4
    for ours, theirs in zip(once.evaluate(), steps.evaluate(), strict=True):
        assert np.array_equal(ours, theirs)


def test_twice_the_frames_are_hardly_more_to_work_out(monkeypatch: pytest.MonkeyPatch) -> None:
    worked_out: list[int] = []
    share = HaloOperators._share

    def counted(self: HaloOperators, *args: Any) -> Any:
        worked_out.append(1)
        return share(self, *args)

    monkeypatch.setattr(HaloOperators, "_share", counted)
    counts = []
    for frames in (6, 12):
        graph = frames_graph(frames, "cuda")
        walk = long_walk(graph)
        tally = RegionCost(OpCosts(graph.view, graph.line, device_kind("cuda").machine), walk)
        while walk.stop < len(graph.facts.nodes) and walk.extend() is None:
            tally.advance()
        worked_out.clear()
        tally.evaluate()
        counts.append(len(worked_out))
        assert len(walk.sliced) > 15 * frames
    assert counts[1] <= counts[0] + 6, "but for what takes each frame out of the clip"
