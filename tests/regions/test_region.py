"""Regions: what one takes in, where it ends, what it narrows, computes before, writes and writes over."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sicompiler import testing
from sicompiler.axes.factor_map import Slicing
from sicompiler.capture import capture
from sicompiler.compiler.analyzed_graph import AnalyzedGraph, analyze_graph
from sicompiler.regions.builder import RegionBuilder
from sicompiler.regions.region import Region
from sicompiler.runtime.verify import errors

Function = Callable[..., Any]


class Model(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: torch.Tensor) -> Any:
        return self.function(*args)


class Case:
    """A function, its inputs and its legal graph."""

    def __init__(self, function: Function, *shapes: tuple[int, ...]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.model = Model(function).eval()
        self.args = tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
        self.graph: AnalyzedGraph = testing.legal_graph(self.model, self.args, {})

    def at(self, name: str) -> int:
        """Position of the first node whose name starts so."""
        return next(p for p, n in enumerate(self.graph.facts.nodes) if n.name.startswith(name))

    def walk(self, first: str, dim: int, stop: str | None = None, **options: Any) -> tuple[RegionBuilder, str | None]:
        """Grow a region from a node along a whole dim of it, up to a node or until it ends."""
        start = self.at(first)
        size = self.graph.facts.tensors[start][0].shape[dim]
        end = len(self.graph.facts.nodes) if stop is None else self.at(stop)
        walk, reason = RegionBuilder(self.graph.view, start, Slicing(dim, 1, size, 1), **options), None
        while walk.stop < end and reason is None:
            reason = walk.extend()
        return walk, reason

    def names(self, positions: Any) -> list[str]:
        return [self.graph.facts.nodes[p].name for p in positions]

    def check(self, *regions: tuple[Region, int]) -> None:
        """Carried out, the regions leave the output as it is, and the inputs too."""
        before = [a.clone() for a in self.args]
        ours = testing.run_program(testing.rewritten(self.graph, regions), self.model, self.args, {})
        assert all(torch.equal(a, b) for a, b in zip(self.args, before, strict=True)), "an input was written into"
        assert errors(ours, self.model(*self.args))[1] <= 1e-12


@pytest.mark.parametrize("length", [1, 3, 4, 7])
def test_a_region_narrows_its_inputs_and_writes_its_output(length: int) -> None:
    case = Case(lambda x: F.silu(x).transpose(0, 1) * 2, (7, 5))
    walk, reason = case.walk("silu", 0)
    region = walk.region()
    assert reason is None
    assert case.names(region.sliced) == ["silu", "transpose", "mul"]
    assert [(r.value[0], str(r.slicing)) for r in region.reads] == [(case.at("arg"), "dim 0 (7)")]
    assert [(case.names([o.value[0]]), str(o.slicing)) for o in region.outputs] == [(["mul"], "dim 1 (7)")]
    case.check((region, length))


def test_a_region_ends_where_the_axis_is_needed_whole() -> None:
    case = Case(lambda x: torch.softmax(x + 1, dim=-1), (3, 5))
    walk, reason = case.walk("add", 1)
    assert case.names(walk.sliced) == ["add"]
    assert reason is not None
    assert "whole" in reason
    assert case.walk("add", 0)[1] is None


def test_an_operator_without_a_rule_ends_a_region_with_a_reason() -> None:
    case = Case(lambda x: torch.cumsum(x + 1, dim=0), (3, 5))
    _, reason = case.walk("add", 1)
    if reason is not None:  # a rule may come; today there is none
        assert "cumsum" in reason


def test_what_does_not_carry_the_axis_is_computed_once_before_the_loop() -> None:
    case = Case(lambda x, t: (x * 2) + torch.exp(t) * torch.exp(t), (6, 5), (5,))
    walk, reason = case.walk("exp", 0)  # the slicing of a vector of channels: the rows come whole
    walk, reason = case.walk("mul", 0)
    assert reason is None
    region = walk.region()
    assert "add" in case.names(region.sliced)
    assert all(name.startswith(("exp", "mul")) for name in case.names(region.hoisted))
    case.check((region, 4))


def test_statistics_are_complete_only_after_the_loop() -> None:
    case = Case(lambda x: F.group_norm(x * 2, 2), (2, 4, 6))
    walk, reason = case.walk("mul", 2)
    assert case.names(walk.sliced) == ["mul", "group_stats_default"]
    assert reason is not None
    assert "complete only after the loop" in reason
    region = walk.region()
    assert [o.slicing is None for o in region.outputs] == [False, True]
    second, reason = case.walk("group_apply", 2)
    assert reason is None
    case.check((region, 4), (second.region(), 1))


def test_statistics_of_whole_groups_are_sliced() -> None:
    case = Case(lambda x: F.group_norm(x * 2, 2), (3, 4, 6))
    walk, reason = case.walk("mul", 0)
    assert reason is None
    assert len(walk.region().outputs) == 1
    case.check((walk.region(), 2))


def test_a_slice_goes_over_an_input_that_dies() -> None:
    case = Case(lambda x: F.silu(x.sin()) * 2, (7, 5))
    walk, _ = case.walk("silu", 0)
    (output,) = walk.region().outputs
    assert output.reuses == (case.at("sin"), 0)
    case.check((walk.region(), 3))


@pytest.mark.parametrize(
    ("function", "stop"),
    [
        pytest.param(lambda x: F.silu(x) * 2, None, id="the caller's"),
        pytest.param(lambda x: (lambda y: (y, F.silu(y) * 2))(x.sin()), None, id="returned"),
        pytest.param(lambda x: (lambda y: y.flatten() + F.silu(y).sum())(x.sin()), "sum", id="a view read later"),
        pytest.param(lambda x: (lambda y: F.linear(F.silu(y), y))(x.sin()), None, id="read whole in the loop"),
        pytest.param(lambda x: F.silu(x.sin()[:, :3]) * 2, None, id="of another size"),
    ],
)
def test_what_is_still_needed_is_not_written_over(function: Function, stop: str | None) -> None:
    case = Case(function, (6, 6))
    walk, reason = case.walk("silu", 0, stop)
    assert reason is None
    region = walk.region()
    assert len(region.sliced) > 0
    assert all(o.reuses is None for o in region.outputs)
    case.check((region, 4))


def test_moved_slices_are_not_written_over_what_they_are_views_of() -> None:
    """Of the whole value the reshape makes a copy; of a slice of length 1 it makes a view."""
    case = Case(lambda x: x.sin().permute(0, 2, 3, 1).reshape(2 * 4, 6) + 1, (2, 6, 4, 1))
    walk, _ = case.walk("permute", 0, stop="add")
    region = walk.region()
    assert all(o.reuses is None for o in region.outputs)
    case.check((region, 1))


def test_an_axis_inside_a_merged_dim_is_copied_slice_by_slice() -> None:
    case = Case(lambda x: F.silu(x) @ torch.ones(5, 3, dtype=torch.float64), (6, 5))
    start = case.at("silu")
    walk = RegionBuilder(case.graph.view, start, Slicing(0, 2, 3, 1))  # the frames of (batch frames)
    while walk.stop < len(case.graph.facts.nodes) and walk.extend() is None:
        pass
    region = walk.region()
    assert any(r.copies for r in region.reads)
    for length in (1, 2, 3):
        case.check((region, length))


def test_a_value_made_before_anyone_asked_for_a_slice_is_sliced_backwards() -> None:
    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x * 2) + (y.sin() * 3)  # y's part does not carry x's slicing until the sum

    case = Case(function, (6, 5), (6, 5))
    big, _ = case.walk("mul", 0, hoisted_bytes=0)
    small, _ = case.walk("mul", 0)
    assert len(big.hoisted) < len(small.hoisted)
    assert "sin" in case.names(big.sliced) or case.at("sin") < case.at("mul")
    case.check((big.region(), 4))
    case.check((small.region(), 4))


def test_what_the_body_reads_whole_is_not_sliced_backwards() -> None:
    """A linear layer reads rows whole while its out-features are sliced; the residual would slice the same rows."""
    weight = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def function(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        y = x.sin().cos()
        return y + F.linear(y, w)

    case = Case(function, (4, 6), (6, 6))
    assert weight.shape == case.args[1].shape
    start = case.at("sin")
    walk = RegionBuilder(case.graph.view, start, Slicing(1, 1, 6, 1), hoisted_bytes=0)
    while walk.stop < len(case.graph.facts.nodes) and walk.extend() is None:
        pass
    case.check((walk.region(), 4))
    weights = case.at("linear")
    walk = RegionBuilder(case.graph.view, weights, Slicing(1, 1, 6, 1), hoisted_bytes=0)
    while walk.stop < len(case.graph.facts.nodes) and walk.extend() is None:
        pass
    case.check((walk.region(), 4))


def test_queries_are_sliced_while_keys_from_outside_are_whole() -> None:
    def function(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q * 2, k, k)

    case = Case(function, (1, 2, 7, 4), (1, 2, 5, 4))
    walk, reason = case.walk("mul", 2)
    assert reason is None
    case.check((walk.region(), 3))
    both = Case(lambda x: (lambda y: F.scaled_dot_product_attention(y, y, y))(x * 2), (1, 2, 7, 4))
    _, reason = both.walk("mul", 2)
    assert reason is not None


def test_results_of_an_operator_outside_are_read_one_by_one() -> None:
    case = Case(lambda x: (lambda a, b: a.sin() * b)(*x.cos().chunk(2, -1)), (6, 8))
    for first in ("getitem", "sin"):
        walk, reason = case.walk(first, 0)
        assert reason is None
        case.check((walk.region(), 4))


def test_results_of_an_operator_inside_are_written_one_by_one() -> None:
    case = Case(lambda x: [part + 1 for part in (x.cos() * 2).unbind(1)], (6, 3))
    walk, _ = case.walk("cos", 0, stop="add")
    case.check((walk.region(), 4))


def test_regions_in_a_row_share_values() -> None:
    case = Case(lambda x: (F.silu(x).cos() + x).tanh().flatten(), (6, 3))
    first, _ = case.walk("silu", 0, stop="add")
    second, _ = case.walk("add", 1, stop="flatten")
    case.check((first.region(), 4), (second.region(), 2))


def test_a_cat_in_a_loop_never_makes_its_pieces_whole() -> None:
    """Each slice of the joined tensor is written straight into its place: a skip connection costs no second copy."""

    def function(x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return torch.cat([F.silu(x) * 2, skip], dim=1)

    case = Case(function, (6, 4, 3), (6, 2, 3))
    walk, reason = case.walk("silu", 0)
    region = walk.region()
    assert reason is None
    assert case.names(region.sliced) == ["silu", "mul", "cat"]
    assert case.names([o.value[0] for o in region.outputs]) == ["cat"]
    program = testing.rewritten(case.graph, [(region, 4)])
    graph = program.graph_module.graph
    buffers = [n.meta["val"].shape for n in graph.nodes if "empty" in str(n.target)]
    assert buffers == [torch.Size((6, 6, 3))]
    case.check((region, 4))


def test_an_input_read_sliced_and_whole_by_one_operator_is_not_written_over() -> None:
    """Self-attention over a tensor itself: queries come in slices, keys and values whole, for every slice."""

    def function(x: torch.Tensor) -> torch.Tensor:
        y = torch.cat([x, x * 2], dim=2)
        return F.scaled_dot_product_attention(y, y, y) + 1

    case = Case(function, (1, 2, 6, 4))
    walk, reason = case.walk("scaled", 2)
    region = walk.region()
    assert reason is None
    assert [output.reuses for output in region.outputs] == [None]
    case.check((region, 2))


def test_a_result_goes_over_an_input_that_is_read_whole_before_the_loop() -> None:
    """Keys and values of all tokens are made before queries come in slices; then nobody needs the tokens whole."""

    def function(x: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        y = x.sin()
        return F.scaled_dot_product_attention(F.linear(y, query), F.linear(y, key), F.linear(y, key.exp())) * 2

    case = Case(function, (1, 6, 4), (4, 4), (4, 4))
    case.graph = analyze_graph(capture(case.model, case.args, {}), "cpu")  # cleaned, queries would come last
    walk, reason = case.walk("linear", 1)
    region = walk.region()
    assert reason is None
    assert case.names(p for p in region.hoisted if case.graph.view.made[p]) == ["linear_1", "exp", "linear_2"]
    assert [output.reuses for output in region.outputs] == [(case.at("sin"), 0)]
    for length in (1, 4):
        case.check((region, length))


def test_memory_that_lies_otherwise_than_planned_is_not_taken_over() -> None:
    """Kernels choose strides of their own for some inputs: the slices of such a value lie elsewhere."""
    take_over = torch.ops.sicompiler.take_over
    source = torch.arange(24.0).view(4, 6)
    assert take_over(source, [6, 1], [6, 4], [1, 6]).data_ptr() == source.data_ptr()
    permuted = source.t().contiguous().t()
    assert take_over(permuted, [6, 1], [6, 4], [1, 6]).data_ptr() != permuted.data_ptr()


def test_one_frame_of_a_channels_last_video_is_channels_last() -> None:
    frame = torch.arange(24.0).view(1, 1, 2, 3, 4).permute(0, 1, 4, 2, 3).reshape(1, 4, 2, 3)
    laid = torch.ops.sicompiler.in_order(frame, [24, 1, 12, 4])  # as five such frames lie
    assert laid.stride() == (24, 1, 12, 4) != frame.stride()
    assert laid.equal(frame)
    assert laid.data_ptr() == frame.data_ptr()


def test_a_seed_where_a_kernel_lays_its_result_out_otherwise() -> None:
    generator = random.Random(1202)
    choose = generator.choice
    module, args, kwargs = testing.draw_module(choose, generator.randint(1, 8))
    graph = testing.legal_graph(module, args, kwargs)
    for _ in range(4):
        program = testing.rewritten(graph, testing.draw_regions(graph, choose))
        assert errors(testing.run_program(program, module, args, kwargs), module(*args, **kwargs))[1] <= 1e-12
