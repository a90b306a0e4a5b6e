"""Passes: each does what its docstring shows, leaves the numbers alone, and keeps the memory facts right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from sicompiler import testing
from sicompiler.axes.factor_map import Slicing
from sicompiler.capture import Program, capture
from sicompiler.errors import PassError
from sicompiler.facts.lifetimes import lifetimes
from sicompiler.facts.storages import graph_facts
from sicompiler.facts.timeline import timeline
from sicompiler.passes.clean import drop_dead_code, drop_noops, name_dtypes, name_shapes
from sicompiler.passes.edit import Replacements, copy_program, insert_call
from sicompiler.passes.legalise_groupnorm import split_groupnorm
from sicompiler.passes.manager import PIPELINE, run_stage, verify_graph
from sicompiler.passes.schedule import sink_to_first_use
from sicompiler.regions.builder import RegionBuilder
from sicompiler.runtime.verify import errors

aten = torch.ops.aten
ops = torch.ops.sicompiler


class Model(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: torch.Tensor) -> Any:
        return self.function(*args)


def inputs(*shapes: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


def captured(function: Callable[..., Any], *shapes: tuple[int, ...]) -> Program:
    return copy_program(capture(Model(function).eval(), inputs(*shapes)))


def targets(program: Program) -> list[str]:
    return [str(n.target).split(".")[1] for n in program.graph_module.graph.nodes if n.op == "call_function"]


def check(program: Program, function: Callable[..., Any], *shapes: tuple[int, ...]) -> None:
    args = inputs(*shapes)
    program.graph_module.recompile()
    ours = testing.run_program(program, Model(function), args, {})
    assert errors(ours, function(*args))[1] <= 1e-12


def storages(program: Program) -> int:
    """Number of storages that the graph's operators make."""
    facts = graph_facts(program)
    operators = [p for p in range(facts.num_placeholders, len(facts.nodes)) if facts.makes_storage(p)]
    return len({t.storage for p in operators for t in facts.tensors[p]})


def test_no_ops_are_dropped() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        y = (F.dropout(x.sin(), 0.5, False).contiguous() / 1.0).to(torch.float64) * 1
        return y.view(3, 4) + 1

    program = captured(function, (3, 4))
    drop_noops(program)
    assert targets(program) == ["sin", "add"]
    check(program, function, (3, 4))


@pytest.mark.parametrize(
    ("function", "kept"),
    [
        (lambda x: x.t().contiguous() + 1, ["t", "contiguous", "add"]),
        (lambda x: x.float() * 1.0 + x, ["to", "add"]),
        (lambda x: x * 1.0000001, ["mul"]),
        (lambda x: x.reshape(4, 3) + 1, ["reshape", "add"]),
        (lambda x: x.clone() + 1, ["clone", "add"]),
    ],
)
def test_what_changes_something_stays(function: Callable[..., Any], kept: list[str]) -> None:
    program = captured(function, (3, 4))
    drop_noops(program)
    assert [t for t in targets(program) if t != "slice"] == [t for t in kept if t != "slice"]
    check(program, function, (3, 4))


def test_dropout_that_is_on_stays() -> None:
    """No model with one is captured, as it draws random numbers; a graph may have one all the same."""
    program = captured(lambda x: F.relu(x) + 1, (3, 4))
    (node,) = program.graph_module.graph.find_nodes(op="call_function", target=aten.relu.default)
    node.target, node.args = aten.dropout.default, (node.args[0], 0.1, True)
    drop_noops(program)
    assert targets(program) == ["dropout", "add"]
    node.args = (node.args[0], 0.1, False)
    drop_noops(program)
    assert targets(program) == ["add"]


def test_views_of_what_is_dropped_become_views_of_its_operand() -> None:
    """Else a loop may take a view of the caller's tensor for a value of its own, and write into it."""

    def function(x: torch.Tensor) -> torch.Tensor:
        return (x * 1).reshape(12).view(3, 4).t() + 1

    program = captured(function, (3, 4))
    drop_noops(program)
    facts = graph_facts(program)
    views = [t.storage for p in range(facts.num_placeholders, len(facts.nodes) - 1) for t in facts.tensors[p]]
    assert set(views) == {facts.tensors[0][0].storage}


def test_a_dtype_is_written_down() -> None:
    """Else the tensor that lends it has to be there, and sliced like the other one."""

    def function(x: torch.Tensor, lender: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x.float(), scale_factor=2.0).type_as(lender)

    program = captured(function, (1, 2, 4), (3, 5))
    name_dtypes(program)
    check(program, function, (1, 2, 4), (3, 5))
    (converted,) = program.graph_module.graph.find_nodes(op="call_function", target=aten.to.dtype)[-1:]
    assert converted.args[1:] == (torch.float64,)
    assert not program.placeholders[1].users


def test_a_shape_is_written_down() -> None:
    """Else the tensor that lends it has to be there, and is made again where only the view is left of it."""

    def function(x: torch.Tensor, lender: torch.Tensor) -> torch.Tensor:
        return x.expand_as(lender) + x.reshape(4).view_as(x) * x.reshape_as(x)

    shapes = (2, 1, 2), (2, 3, 2)
    program = captured(function, *shapes)
    name_shapes(program)
    check(program, function, *shapes)
    assert not any(name.endswith("_as") for name in targets(program))
    assert not program.placeholders[1].users


def test_dead_code_goes() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        x.sin().cos()
        return x + 1

    program = captured(function, (3, 4))
    drop_dead_code(program)
    assert targets(program) == ["add"]


def test_operators_sink_to_their_first_reader() -> None:
    def function(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        early = x @ w  # big, and read last
        y = x.sin().cos().sin().sum(1, keepdim=True)
        return early + y

    program = captured(function, (50, 4), (4, 50))
    before = targets(program)
    sink_to_first_use(program)
    assert targets(program).index("matmul") > before.index("matmul")
    check(program, function, (50, 4), (4, 50))


def test_the_schedule_never_raises_the_peak() -> None:
    for seed in range(12):
        module, args, kwargs = testing.random_module(seed, 6)
        program = copy_program(capture(module, args, kwargs))
        drop_dead_code(program)
        peaks = []
        for _ in range(2):
            facts = graph_facts(program)
            peaks.append(timeline(facts, lifetimes(facts), np.zeros(len(facts.nodes), dtype=np.int64)).peak_bytes)
            sink_to_first_use(program)
        assert peaks[1] <= peaks[0] * 1.3  # the pass weighs workspace too, which this timeline leaves out


def test_group_norm_becomes_two_passes() -> None:
    def function(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return F.group_norm(x, 2, w, w, 1e-3).permute(0, 2, 1).reshape(6, 4) * 2

    program = captured(function, (2, 4, 3), (4,))
    split_groupnorm(program)
    assert targets(program) == ["group_stats", "group_apply", "permute", "reshape", "mul"]
    check(program, function, (2, 4, 3), (4,))


def test_views_of_a_split_group_norm_are_views_of_its_result() -> None:
    program = captured(lambda x: F.group_norm(x, 2).reshape(24).view(4, 6) + 1, (2, 4, 3))
    split_groupnorm(program)
    assert storages(program) == 3  # statistics, result, sum


def test_an_expanded_factor_of_a_product_is_made_dense() -> None:
    """at::matmul would expand the weight instead: in half dtypes, one copy of it for each row."""

    def function(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return F.linear(x.expand(5, 1, 4), w) + F.linear(x.view(1, 4).expand(5, 4), w).view(5, 1, 6)

    program = run_stage("legal", run_stage("clean", captured(function, (1, 1, 4), (6, 4))))
    (clone,) = program.graph_module.graph.find_nodes(op="call_function", target=aten.clone.default)
    assert clone.meta["val"].shape == (5, 1, 4)  # two expanded rows of a matrix are fine as they are
    check(program, function, (1, 1, 4), (6, 4))


def test_what_overwrites_a_slice_is_read_itself() -> None:
    """`y[...] = value` is traced as a copy into a slice, whose kernel clones all the memory behind the slice."""

    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        out[..., 0::2] = x[..., 0::2] * 2
        out[..., 1::2] = y.float()
        return out + 1

    program = run_stage("clean", captured(function, (2, 4, 6), (4, 3)))
    assert "copy" not in targets(program)
    assert "_to_copy" in targets(program)  # from float32 to the float64 of `out`
    check(program, function, (2, 4, 6), (4, 3))


def test_strides_of_a_split_group_norm_are_followed() -> None:
    """The native operator keeps channels last, ours does not: what was a view of the one is a copy of the other."""

    def function(x: torch.Tensor) -> torch.Tensor:
        y = x.to(memory_format=torch.channels_last) * 2
        return F.group_norm(y, 2).permute(0, 2, 3, 1).reshape(2, 15, 4) * 2

    program = run_stage("legal", run_stage("clean", captured(function, (2, 4, 3, 5))))
    facts = graph_facts(program)
    recorder = fx.Interpreter(program.graph_module, garbage_collect_values=False)
    recorder.run(*inputs((2, 4, 3, 5)))
    for p, node in enumerate(facts.nodes):
        for fact in facts.tensors[p]:
            assert fact.stride == recorder.env[node].stride(), node.format_node()


@pytest.mark.parametrize("contiguous", [True, False])
def test_what_no_loop_has_parted_is_one_group_norm_again(contiguous: bool) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return F.group_norm(x if contiguous else x.transpose(1, 2), 2).flatten() * 2

    shape = (2, 4, 4)
    program = run_stage("legal", run_stage("clean", captured(function, shape)))
    program = run_stage("rewritten", program)
    assert ("group_norm" in targets(program)) == contiguous
    check(program, function, shape)


def test_a_loop_prints_as_python() -> None:
    model = Model(lambda x, w: F.linear(F.silu(x), w)).eval()
    args = inputs((6, 4), (5, 4))
    graph = testing.legal_graph(model, args, {})
    walk = RegionBuilder(graph.view, graph.facts.num_placeholders, Slicing(0, 1, 6, 1))
    while walk.stop < len(graph.facts.nodes):
        assert walk.extend() is None
    module = testing.rewritten(graph, [(walk.region(), 4)]).graph_module
    assert "sicompiler_ops_sliced_loop(loop_0, 6, 4, " in module.code
    body = module.get_submodule("loop_0").code
    lines = [line.strip() for line in str(body).splitlines()]
    assert any("aten.narrow.default(" in line for line in lines)
    assert any("write_slice_.default(" in line for line in lines)


def test_stages_leave_their_program_alone() -> None:
    program = captured(lambda x: F.group_norm(F.dropout(x, 0.1, False), 2), (2, 4, 3))
    before = str(program.graph_module.graph)
    run_stage("legal", run_stage("clean", program))
    assert str(program.graph_module.graph) == before


def test_an_observer_sees_every_stage() -> None:
    seen: list[str] = []
    program = captured(lambda x: x + 1, (2, 4))
    for stage in PIPELINE:
        program = run_stage(stage, program, observer=lambda name, _: seen.append(name))
    assert seen == ["clean", "legal", "rewritten"]


def test_a_pass_that_writes_into_operands_is_caught() -> None:
    program = captured(lambda x: x.sin() + 1, (2, 4))
    node = next(iter(program.graph_module.graph.find_nodes(op="call_function", target=aten.add.Tensor)))
    node.target = aten.add_.Tensor
    with pytest.raises(PassError, match=r"after naughty: .*writes into its operands"):
        verify_graph(program, "naughty", loops=False)


def test_a_pass_that_loses_a_fake_value_is_caught() -> None:
    program = captured(lambda x: x.sin() + 1, (2, 4))
    del program.graph_module.graph.find_nodes(op="call_function", target=aten.sin.default)[0].meta["val"]
    with pytest.raises(PassError, match="no fake value"):
        verify_graph(program, "naughty", loops=False)


def test_replacements_stop_where_nothing_changes() -> None:
    program = captured(lambda x: (x.sin().view(8) + 1).view(2, 4) * 2, (2, 4))
    graph = program.graph_module.graph
    old = graph.find_nodes(op="call_function", target=aten.sin.default)[0]
    before = {n: n.meta.get("val") for n in graph.nodes}
    replacements = Replacements(graph, program.fake_mode)
    with graph.inserting_before(old):
        new = insert_call(graph, program.fake_mode, aten.cos.default, old.args)
    replacements.replace(old, new)
    replacements.finish()
    changed = {n.name for n in graph.nodes if n in before and n.meta.get("val") is not before[n]}
    assert changed == {"view"}
    assert storages(program) == 3


def test_statistics_in_loops_use_merged_buffers() -> None:
    model = Model(lambda x: F.group_norm(x * 2, 2)).eval()
    args = inputs((2, 4, 6))
    graph = testing.legal_graph(model, args, {})
    walk = RegionBuilder(graph.view, graph.facts.num_placeholders, Slicing(2, 1, 6, 1))
    while walk.stop < len(graph.facts.nodes) and walk.extend() is None:
        pass
    module = testing.rewritten(graph, [(walk.region(), 4)]).graph_module
    assert "aten.zeros.default" in module.code
    assert "merge_stats_" in str(module.get_submodule("loop_0").code)
