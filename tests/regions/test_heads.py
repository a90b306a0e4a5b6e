"""Attention one group of heads at a time, from the projections on: only its input and its result are whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sicompiler import testing
from sicompiler.api import prepare
from sicompiler.axes.factor_map import Slicing
from sicompiler.axes.table import OpSlicing
from sicompiler.compiler.analyzed_graph import AnalyzedGraph
from sicompiler.compiler.planner import rewrite
from sicompiler.regions.builder import RegionBuilder
from sicompiler.regions.region import Region
from sicompiler.runtime.measure import measure_peak
from sicompiler.runtime.verify import errors

HEADS, WIDTH = 6, 8


class Attention(nn.Module):
    """Self-attention as diffusers writes it: projections with a bias, norms of each head, rotary embedding, a residual.

    Args:
        joint: whether a text is put in front of the tokens.
        bias: of the projections.
    """

    def __init__(self, *, joint: bool = False, bias: bool = True) -> None:
        super().__init__()
        channels = HEADS * WIDTH
        self.joint = joint
        self.norm = nn.LayerNorm(channels)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels, bias=bias) for _ in range(3))
        self.norm_q, self.norm_k = nn.LayerNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor, text: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        """Attend.

        Args:
            x: [batch, tokens, channels].
            text: [batch, words, channels].
            angles: [tokens, width], of the rotary embedding.
        """
        normed = self.norm(x)
        tokens = torch.cat([text, normed], dim=1) if self.joint else normed
        q, k, v = (f(tokens).unflatten(2, (HEADS, -1)).transpose(1, 2) for f in (self.to_q, self.to_k, self.to_v))
        q, k = self.norm_q(q), self.norm_k(k)
        if not self.joint:
            q, k = (t * angles.cos() + torch.roll(t, 1, -1) * angles.sin() for t in (q, k))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2, 3)
        result: torch.Tensor = x + self.out(y)[:, -x.shape[1] :]
        return result


def case(dtype: torch.dtype, tokens: int = 40, **options: bool) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    channels = HEADS * WIDTH
    x, text, angles = torch.randn(2, tokens, channels), torch.randn(2, 5, channels), torch.randn(tokens, WIDTH)
    return Attention(**options).eval().to(dtype), tuple(t.to(dtype) for t in (x, text, angles))


def heads_region(graph: AnalyzedGraph) -> Region:
    """All operators from the first projection to where heads end, in units of a head."""
    first = next(p for p, n in enumerate(graph.facts.nodes) if n.target is torch.ops.aten.linear.default)
    walk = RegionBuilder(graph.view, first, Slicing(2, 1, HEADS, WIDTH), hoisted_bytes=0)
    while walk.extend() is None:
        pass
    return walk.region()


def test_a_view_into_heads_asks_for_units_of_a_head() -> None:
    """Single channels of a projection don't go through the view that takes heads and channels apart."""
    model, args = case(torch.float64)
    graph = testing.legal_graph(model, args, {})
    first = next(p for p, n in enumerate(graph.facts.nodes) if n.target is torch.ops.aten.linear.default)
    walk = RegionBuilder(graph.view, first, Slicing(2, 1, HEADS * WIDTH, 1))
    while (reason := walk.extend()) is None:
        pass
    assert "runs across the factors" in reason
    assert walk.coarser == WIDTH


@pytest.mark.parametrize(
    ("source", "target", "slicing", "coarser"),
    [
        pytest.param([4, 48], [4, 6, 8], Slicing(1, 1, 48, 1), 8, id="channels into heads"),
        pytest.param([4, 48], [4, 6, 8], Slicing(1, 1, 12, 4), 2, id="halves of heads"),
        pytest.param([24, 3], [2, 3, 4, 3], Slicing(0, 1, 24, 1), 12, id="the outermost of several"),
        pytest.param([24, 3], [2, 12, 3], Slicing(0, 2, 12, 1), 1, id="already one factor"),
        pytest.param([6, 5], [5, 6], Slicing(0, 1, 6, 1), 1, id="no unit would do"),
    ],
)
def test_coarser_units(source: list[int], target: list[int], slicing: Slicing, coarser: int) -> None:
    class View(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(target)

    graph = testing.legal_graph(View(), (torch.zeros(source),), {})
    position = graph.facts.num_placeholders
    assert graph.view.table.coarser(position, False, 0, slicing) == coarser
    if coarser > 1:
        grown = Slicing(slicing.dim, slicing.outer, slicing.size // coarser, slicing.inner * coarser)
        assert isinstance(graph.view.table.from_operand(position, 0, grown), OpSlicing)


@pytest.mark.parametrize("options", [{}, {"joint": True}, {"bias": False}], ids=["rotary", "joint", "no bias"])
def test_a_region_of_heads_reads_weights_in_slices_and_keeps_only_its_result(options: dict[str, bool]) -> None:
    model, args = case(torch.float64, **options)
    graph = testing.legal_graph(model, args, {})
    region = heads_region(graph)
    targets = [graph.facts.nodes[p].target for p in region.sliced]
    assert targets.count(torch.ops.aten.linear.default) == 3, "keys and values come in slices too"
    assert torch.ops.aten.scaled_dot_product_attention.default in targets
    weights = [r for r in region.reads if graph.facts.storages[graph.view.tensor(r.value).storage].origin == "weight"]
    assert len(weights) >= 3
    assert not any(read.copies for read in weights), "rows of a weight are dense"
    assert len(region.outputs) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("slice_length", [1, 2, 4, 5])
@pytest.mark.parametrize("options", [{}, {"joint": True}, {"bias": False}], ids=["rotary", "joint", "no bias"])
def test_heads_give_the_same(options: dict[str, bool], slice_length: int, dtype: torch.dtype) -> None:
    model, args = case(dtype, **options)
    graph = testing.legal_graph(model, args, {})
    program = testing.rewritten(graph, [(heads_region(graph), slice_length)])
    with torch.no_grad():
        theirs = model(*args)
    ours = testing.run_program(program, model, args, {})
    assert errors(ours, theirs)[1] <= (1e-12 if dtype is torch.float64 else 2e-6)


def test_a_transposed_weight_is_copied_slice_by_slice_and_counted() -> None:
    """Columns of a matrix are no dense rows: the slice of such a weight is a copy, and the prediction has it."""

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(x @ self.weight) * 2

    model = Product().double().eval()
    args = (torch.randn(3, 64, dtype=torch.float64),)
    graph = testing.legal_graph(model, args, {})
    walk = RegionBuilder(graph.view, graph.facts.num_placeholders, Slicing(1, 1, 64, 1))
    while walk.stop < len(graph.facts.nodes):
        assert walk.extend() is None
    region = walk.region()
    assert [read.copies for read in region.reads] == [True]
    program = testing.rewritten(graph, [(region, 24)])
    with torch.no_grad():
        assert errors(testing.run_program(program, model, args, {}), model(*args))[1] <= 1e-12
    with measure_peak("cpu") as peak:
        testing.run_program(program, model, args, {})
    assert peak.bytes + graph.facts.input_bytes <= testing.predicted_peak(graph, [(region, 24)])


@pytest.mark.parametrize("options", [{}, {"joint": True}], ids=["rotary", "joint"])
def test_at_the_floor_queries_keys_and_values_are_never_whole(options: dict[str, bool]) -> None:
    """What is: the input with both its samples, what the projections read of one, and what attention writes of it."""
    model, args = case(torch.float64, tokens=2800, **options)
    program, planner = prepare(model, args, {})
    plan = planner.plan(planner.floor()[0])
    assert plan.outer is not None, "one sample at a time"
    whole = 2805 * HEADS * WIDTH * 8
    heads = 8 * whole / HEADS  # of one head: queries and keys before and after their norm and rotation, values, results
    assert plan.floor_bytes is not None
    assert plan.floor_bytes - plan.weights_bytes - plan.held_bytes <= 4 * whole + heads
    done = rewrite(program, plan)
    with torch.no_grad():
        theirs = model(*args)
    assert errors(testing.run_program(done, model, args, {}), theirs)[1] <= 1e-12
    with measure_peak("cpu") as peak:
        testing.run_program(done, model, args, {})
    assert peak.bytes + planner.graph.facts.input_bytes + plan.weights_bytes <= plan.predicted_peak_bytes + 2**12
