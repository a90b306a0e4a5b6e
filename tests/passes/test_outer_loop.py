"""The outer loop: what is the same for every slice of it is computed before it, or made again where it is big."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sicompiler import testing
from sicompiler.api import prepare
from sicompiler.axes.factor_map import Slicing
from sicompiler.compiler.analyzed_graph import OUTER_HOISTED_BYTES, AnalyzedGraph, make_outer, outer_loops, outer_region
from sicompiler.compiler.planner import rewrite
from sicompiler.passes.outer import wrap_outer
from sicompiler.runtime.measure import measure_peak
from sicompiler.runtime.verify import errors

SAMPLES, TOKENS, CHANNELS = 8, 512, 64


class Positions(nn.Module):
    """Adds a table, kept in another dtype, to every sample of a batch.

    Args:
        tokens: length of the table.
        per_sample: whether the table is repeated for every sample before it is read.
    """

    def __init__(self, tokens: int = TOKENS, per_sample: bool = False) -> None:
        super().__init__()
        self.per_sample = per_sample
        self.table = nn.Parameter(torch.randn(tokens, CHANNELS, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        table = self.table.to(x.dtype)
        if self.per_sample:
            table = torch.stack([table * n for n in range(SAMPLES)])
        result: torch.Tensor = torch.softmax((x + table).tanh(), dim=1).sin() + x
        return result


def case(tokens: int = TOKENS, per_sample: bool = False) -> tuple[Positions, torch.Tensor, AnalyzedGraph]:
    model = Positions(tokens, per_sample).eval()
    x = torch.randn(SAMPLES, model.table.shape[0], CHANNELS, dtype=torch.float64)
    return model, x, testing.legal_graph(model, (x,), {})


def hoisted(graph: AnalyzedGraph) -> list[str]:
    """Names of what is computed before a loop over the samples of `x`."""
    position = next(p for p in range(graph.facts.num_placeholders) if len(graph.facts.tensors[p][0].shape) == 3)
    region = outer_region(graph, {position: Slicing(0, 1, SAMPLES, 1)})
    assert region is not None
    return [graph.facts.nodes[p].name for p in region.hoisted]


def test_what_is_small_is_computed_once_before_the_loop() -> None:
    model, _, graph = case(tokens=16)
    assert model.table.nbytes < OUTER_HOISTED_BYTES
    assert hoisted(graph) == ["to"]


def test_what_is_big_is_made_again_in_each_slice() -> None:
    """Cast before the loop, the table would stay for all of it."""
    _, _, graph = case()
    assert hoisted(graph) == []


def test_copies_for_every_sample_are_made_one_sample_at_a_time() -> None:
    """Rotary embeddings are repeated for the whole batch before anything of the input is read."""

    class Repeated(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            positions = torch.arange(TOKENS * CHANNELS, dtype=x.dtype).view(1, TOKENS, CHANNELS)
            return x * positions.repeat(x.shape[0], 1, 1).sin() + 1

    model, x = Repeated(), torch.randn(SAMPLES, TOKENS, CHANNELS, dtype=torch.float64)
    graph = testing.legal_graph(model, (x,), {})
    assert hoisted(graph) == []
    ((loop, region),) = outer_loops(graph)
    outer = make_outer(graph, loop, region)
    assert max(node.meta["val"].shape[0] for node in outer.graph.facts.nodes if "sin" in node.name) == 1
    done = wrap_outer(graph.program, graph.view, region, outer.inner, outer.inner.program)
    assert errors(testing.run_program(done, model, (x,), {}), model(x))[1] <= 1e-12


def test_what_the_loop_reads_in_slices_stays_before_it() -> None:
    _, _, graph = case(per_sample=True)
    assert "stack" in hoisted(graph)


@pytest.mark.parametrize("options", [{}, {"tokens": 16}, {"per_sample": True}], ids=["big", "small", "per sample"])
def test_the_loop_gives_the_same_within_its_prediction(options: dict[str, Any]) -> None:
    model, x, _ = case(**options)
    program, planner = prepare(model, (x,), {})
    for budget in (planner.floor()[0], planner.unsliced_bytes):
        plan = planner.plan(budget)
        done = rewrite(program, plan)
        with torch.no_grad():
            assert errors(testing.run_program(done, model, (x,), {}), model(x))[1] <= 1e-12
        with measure_peak("cpu") as peak:
            testing.run_program(done, model, (x,), {})
        assert peak.bytes + planner.graph.facts.input_bytes + plan.weights_bytes <= plan.predicted_peak_bytes + 2**12


def test_at_the_floor_a_big_table_does_not_live_through_the_loop() -> None:
    model, x, _ = case()
    _, planner = prepare(model, (x,), {})
    outer = next(search for search in planner.searches if search.outer is not None)
    assert outer.graph.extra_bytes == x.nbytes, "what the loop holds is its result"


class Compresses(nn.Module):
    """Reads a large input once, and computes something as large of what is left of it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        few = torch.nn.functional.avg_pool1d(x, 8)
        many = torch.nn.functional.interpolate(few, scale_factor=8.0).sin()
        return torch.nn.functional.avg_pool1d(many, 8) + few


def test_the_copied_slice_of_an_input_goes_with_its_last_reader() -> None:
    # samples that lie beside one another are copied out of the whole, one after the other
    x = torch.randn(TOKENS, CHANNELS, 16, dtype=torch.float64).movedim(-1, 0)
    model = Compresses()
    graph = testing.legal_graph(model, (x,), {})
    (loop, region) = next((loop, region) for loop, region in outer_loops(graph) if loop.size == 16)
    outer = make_outer(graph, loop, region)
    facts, line = outer.graph.facts, outer.graph.line
    (copy,) = (facts.storages[s] for s in facts.released)
    assert copy.nbytes == x.nbytes // 16
    assert line.crossing_bytes[1] >= copy.nbytes > line.crossing_bytes[-1]

    program = wrap_outer(graph.program, graph.view, region, outer.inner, outer.inner.program)
    with torch.no_grad(), measure_peak("cpu") as peak:
        ours = testing.run_program(program, model, (x,), {})
    assert errors(ours, model(x))[1] <= 1e-12
    predicted = outer.graph.line.peak_bytes + outer.graph.extra_bytes - x.nbytes
    assert 0.85 * predicted <= peak.bytes <= predicted
