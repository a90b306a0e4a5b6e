"""Regions through windows: real halos between slices, padding at true borders, nothing counted or written twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sicompiler import testing
from sicompiler.api import prepare
from sicompiler.axes.factor_map import Slicing
from sicompiler.compiler.planner import rewrite
from sicompiler.compiler.search import make_search
from sicompiler.device import device_kind
from sicompiler.planners.region_cost import MAX_WINDOWS
from sicompiler.regions.builder import RegionBuilder
from sicompiler.regions.region import Region
from sicompiler.runtime.measure import measure_peak
from sicompiler.runtime.verify import errors
from tests.regions.test_region import Case, Function

GENERATOR = torch.Generator().manual_seed(0)


def weight(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64) / 6


W2, W3, CAUSAL = weight(4, 4, 3, 3), weight(4, 4, 5, 3), weight(4, 4, 3, 3, 3)


def lengths(region: Region) -> list[int]:
    """The slice lengths with which no slice is empty."""
    assert region.halos is not None
    tried = np.arange(1, region.size + 1, dtype=np.float64)
    return [n for n, fits in enumerate(region.halos.fits(region.size, tried), start=1) if fits]


def check_all(case: Case, walk: RegionBuilder, reason: str | None) -> None:
    """The region went to the end, and every slice length gives the whole."""
    assert reason is None
    assert walk.windows > 0
    region = walk.region()
    found = lengths(region)
    assert found
    for length in found:
        case.check((region, length))


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x: F.conv2d(F.silu(x), W2, padding=1), id="padding"),
        pytest.param(lambda x: F.conv2d(F.silu(x), W3, padding="same", dilation=2), id="same, dilated"),
        pytest.param(lambda x: F.conv2d(F.silu(x), W2, padding=(4, 1), dilation=(4, 1)), id="wider than a slice"),
        pytest.param(lambda x: F.conv2d(F.pad(F.silu(x), (1, 1, 1, 1), mode="replicate"), W2), id="replicated"),
        pytest.param(lambda x: F.conv2d(F.pad(F.silu(x), (1, 1, 2, 0)), W2), id="causal"),
        pytest.param(lambda x: F.max_pool2d(F.silu(x), 3, 1, 1) + F.avg_pool2d(x, 3, 1, 1), id="pooling"),
        pytest.param(lambda x: F.conv2d(F.interpolate(F.silu(x), scale_factor=2.0), W2, padding=1), id="upsampled"),
        pytest.param(
            lambda x: x + F.conv2d(F.silu(F.conv2d(F.silu(x), W2, padding=1)), W3, padding=(2, 1)), id="block"
        ),
    ],
)
@pytest.mark.parametrize("height", [5, 8])
def test_chains_along_height_equal_the_whole(function: Function, height: int) -> None:
    case = Case(function, (2, 4, height, 6))
    check_all(case, *case.walk("silu", 2))


def test_units_hold_whole_strides() -> None:
    """Rows can't be sliced one by one through a stride of 2, pairs of rows can."""
    case = Case(lambda x: F.conv2d(F.pad(F.silu(x), (0, 1, 0, 1)), W2, stride=2).tanh(), (1, 4, 8, 6))
    walk, reason = case.walk("silu", 2)
    assert reason is not None
    assert "does not hold whole strides" in reason
    assert walk.coarser == 2
    walk = RegionBuilder(case.graph.view, case.at("silu"), Slicing(2, 1, 4, 2))
    while walk.stop < len(case.graph.facts.nodes) and (reason := walk.extend()) is None:
        pass
    check_all(case, walk, reason)


@pytest.mark.parametrize("mode", ["constant", "replicate"])
def test_causal_convolutions_are_sliced_along_frames(mode: str) -> None:
    def block(x: torch.Tensor) -> torch.Tensor:
        return F.conv3d(F.pad(F.silu(x), (1, 1, 1, 1, 2, 0), mode=mode), CAUSAL)

    case = Case(lambda x: x + block(block(x)), (1, 4, 5, 4, 6))
    check_all(case, *case.walk("silu", 2))
    walk, _ = case.walk("silu", 2)
    region = walk.region()
    assert region.halos is not None
    (span,) = set(region.halos.reads.values())
    assert (span.lo, span.hi) == (4, 0), "a causal chain looks back, never ahead"


def test_statistics_count_each_entry_once() -> None:
    case = Case(lambda x: F.group_norm(F.conv2d(F.conv2d(F.silu(x), W2, padding=1), W2, padding=1), 2), (2, 4, 9, 6))
    walk, reason = case.walk("silu", 2)
    assert reason is not None
    assert "complete only after the loop" in reason
    assert [o.slicing is None for o in walk.region().outputs] == [False, True]
    for length in (1, 2, 4, 9):
        case.check((walk.region(), length))


def test_statistics_of_padded_values_are_not_taken_in_slices() -> None:
    case = Case(lambda x: F.group_norm(F.pad(F.silu(x), (0, 0, 1, 1)), 2), (2, 4, 9, 6))
    _, reason = case.walk("silu", 2)
    assert reason is not None
    assert "does not give every entry" in reason


def test_what_a_later_slice_still_reads_is_not_written_over() -> None:
    case = Case(lambda x: F.conv2d(x.sin().tanh(), W2, padding=1), (1, 4, 9, 6))
    walk, _ = case.walk("tanh", 2)
    assert [o.reuses for o in walk.region().outputs] == [None]
    check_all(case, walk, None)
    own = Case(lambda x: (lambda y: y + F.conv2d(y.tanh() * x, W2, padding=1))(x.sin()), (1, 4, 9, 6))
    walk, _ = own.walk("tanh", 2)
    assert [o.reuses for o in walk.region().outputs] == [None], "the residual is read with a halo too, by tanh"


def test_what_is_read_without_a_halo_is_written_over() -> None:
    case = Case(lambda x, z: (lambda y: F.conv2d(F.silu(z), W2, padding=1) + y)(x.sin()), (1, 4, 9, 6), (1, 4, 9, 6))
    walk, reason = case.walk("silu", 2)
    assert [o.reuses for o in walk.region().outputs] == [(case.at("sin"), 0)]
    check_all(case, walk, reason)


def test_a_window_over_merged_parts_ends_the_region() -> None:
    case = Case(lambda x: F.conv2d(F.silu(x), W2, padding=1), (1, 4, 12, 6))
    walk = RegionBuilder(case.graph.view, case.at("silu"), Slicing(2, 3, 4, 1))
    assert walk.extend() is None
    reason = walk.extend()
    assert reason is not None
    assert "several parts" in reason


class Level(nn.Module):
    """One level of the decoder of a VAE."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.up, self.norm = nn.Conv2d(8, 4, 3, padding=1), nn.GroupNorm(4, 8)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.second(F.silu(self.norm(self.first(x))))
        return self.up(F.interpolate(x + y, scale_factor=2.0, mode="nearest"))


def test_a_level_of_a_decoder_is_cut_along_height_at_the_floor() -> None:
    torch.manual_seed(0)
    module, x = Level().double().eval(), torch.randn(1, 8, 64, 48, dtype=torch.float64)
    program, planner = prepare(module, (x,), {})
    plan = planner.plan(planner.floor()[0])
    assert planner.floor()[0] - planner.weights_bytes < 0.5 * (planner.unsliced_bytes - planner.weights_bytes)
    done = rewrite(program, plan)
    assert any("pad_slice" in m.code for m in done.graph_module.modules() if isinstance(m, torch.fx.GraphModule))
    with torch.no_grad():
        theirs = module(x)
    assert errors(testing.run_program(done, module, (x,), {}), theirs)[1] <= 1e-12
    with measure_peak("cpu") as peak:
        testing.run_program(done, module, (x,), {})
    found = peak.bytes + planner.graph.facts.input_bytes + plan.weights_bytes
    assert 0.9 * plan.predicted_peak_bytes <= found <= plan.predicted_peak_bytes + 2**12


class Chain(nn.Module):
    """More windows in a row than a region may have, as in a decoder whose frames are unrolled."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(MAX_WINDOWS + 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def test_a_region_may_run_on_to_the_end_of_its_axis() -> None:
    torch.manual_seed(0)
    module, x = Chain().double().eval(), torch.randn(1, 3, 40, 6, dtype=torch.float64)
    graph = testing.legal_graph(module, (x,), {})
    search = make_search(graph, None, [], device_kind("cpu").machine, None)
    first, stop = graph.facts.num_placeholders, len(graph.facts.nodes)
    found = [c for c in search.problem.candidates if (c.start, c.stop) == (first, stop)]
    assert {c.seed.dim for c in found} == {2, 3}, "along height and along width"
    assert len(found) == 2, "counted once each, where the axis ends"
    for candidate in found:
        walk = RegionBuilder(graph.view, candidate.start, candidate.seed)
        while walk.stop < stop:
            assert walk.extend() is None
        assert walk.windows > MAX_WINDOWS
        ours = testing.run_program(testing.rewritten(graph, [(walk.region(), candidate.lengths[-2])]), module, (x,), {})
        with torch.no_grad():
            assert errors(ours, module(x))[1] <= 1e-12


def test_units_hold_all_rows_that_one_was_upsampled_to() -> None:
    """As where an upsampled condition scales a norm: four rows of the result go with each row of the condition."""
    case = Case(lambda x, z: F.silu(x) * F.interpolate(z, scale_factor=4.0), (1, 4, 16, 8), (1, 4, 4, 2))
    walk, reason = case.walk("upsample", 2)
    assert reason is not None
    assert walk.coarser == 4
    walk = RegionBuilder(case.graph.view, case.at("upsample"), Slicing(2, 1, 4, 4))
    while walk.stop < len(case.graph.facts.nodes):
        assert walk.extend() is None
    for length in (1, 3):
        case.check((walk.region(), length))
