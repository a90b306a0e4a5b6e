"""Plans of bitwise rules only: rows, heads, groups and untouched space give the same bits, ragged slice included.

Which kernel a library takes may depend on the size of a slice (docs/exactness.md), so slices here are as large, and
rows as even, as those of a plan for a real model. Below that, equality is up to rounding and other tests bound it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F

from sicompiler import testing
from sicompiler.axes.factor_map import Slicing
from sicompiler.regions.builder import RegionBuilder
from tests.passes.test_passes import Model

Function = Callable[..., torch.Tensor]


def feed_forward(x: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """GEGLU."""
    value, gate = F.linear(F.layer_norm(x, x.shape[-1:]), up).chunk(2, -1)
    return x + F.linear(value * F.gelu(gate), down)


def attention(x: torch.Tensor, qkv: torch.Tensor) -> torch.Tensor:
    """[batch, heads, tokens, width]."""
    q, k, v = F.linear(x, qkv).chunk(3, -1)
    return F.scaled_dot_product_attention(q, k, v)


def cross_attention(x: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(x * 0.5, key, value) + x


def normalised(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.tanh(F.group_norm(x, 4, weight, weight))


def temporal(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The convolution over frames of a ResNet block."""
    return F.conv3d(torch.tanh(x), weight, padding=(1, 0, 0)) * 2


CASES: dict[str, tuple[Function, tuple[tuple[int, ...], ...], Slicing, int]] = {
    "rows of a feed-forward": (feed_forward, ((1280, 64), (512, 64), (64, 256)), Slicing(0, 1, 1280, 1), 512),
    "heads of attention": (attention, ((2, 6, 64, 40), (120, 40)), Slicing(1, 1, 6, 1), 4),
    "batch of attention": (attention, ((6, 2, 64, 40), (120, 40)), Slicing(0, 1, 6, 1), 4),
    "queries of attention": (
        cross_attention,
        ((2, 2, 448, 40), (2, 2, 77, 40), (2, 2, 77, 40)),
        Slicing(2, 1, 448, 1),
        256,
    ),
    "batch of a norm": (normalised, ((5, 16, 24, 24), (16,)), Slicing(0, 1, 5, 1), 2),
    "groups of a norm": (normalised, ((1, 16, 24, 24), (16,)), Slicing(1, 1, 4, 1), 3),
    "rows of a temporal convolution": (temporal, ((1, 16, 6, 40, 32), (16, 16, 3, 1, 1)), Slicing(3, 1, 40, 1), 16),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """How a matrix product is shared among threads depends on its rows too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_slices_are_equal_bit_for_bit(case: tuple[Function, tuple[tuple[int, ...], ...], Slicing, int]) -> None:
    function, shapes, seed, slice_length = case
    generator = torch.Generator().manual_seed(0)
    args = tuple(torch.randn(shape, generator=generator) for shape in shapes)
    module = Model(function).eval()
    graph = testing.legal_graph(module, args, {})
    walk = RegionBuilder(graph.view, graph.facts.num_placeholders, seed)
    while walk.stop < len(graph.facts.nodes):
        assert walk.extend() is None
    program = testing.rewritten(graph, [(walk.region(), slice_length)])
    assert "sliced_loop" in program.graph_module.code
    assert torch.equal(testing.run_program(program, module, args, {}), function(*args))
