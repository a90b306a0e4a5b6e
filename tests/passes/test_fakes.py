"""Fake values made from known layouts are what torch evaluates; calls that are alike have the same facts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode

from sicompiler import testing
from sicompiler.axes.table import AxisTable
from sicompiler.compiler.analyzed_graph import AnalyzedGraph
from sicompiler.cost import work_of
from sicompiler.facts.calls import bind, flatten_tensors
from sicompiler.facts.storages import GraphFacts
from sicompiler.facts.workspace.kernels import node_workspaces
from sicompiler.facts.workspace.table import workspace_bytes
from sicompiler.passes import fakes
from sicompiler.passes.fakes import fake_result

aten = torch.ops.aten
SEEDS = range(3)


def graph_of(seed: int) -> AnalyzedGraph:
    module, args, kwargs = testing.random_network(seed)
    return testing.legal_graph(module, args, kwargs)


def described(value: Any, given: Sequence[torch.Tensor]) -> list[Any]:
    """Layout and memory of results: whose of the given tensors, or which of their own."""
    known = {t.untyped_storage()._cdata: f"given {i}" for i, t in reversed(list(enumerate(given)))}
    found: list[Any] = [type(value)]
    for tensor in value if isinstance(value, (tuple, list)) else (value,):
        storage = tensor.untyped_storage()
        name = known.setdefault(storage._cdata, f"own {len(known)}")
        layout = (tuple(tensor.shape), tensor.stride(), tensor.storage_offset(), tensor.dtype, tensor.device)
        found.append((*layout, tensor.requires_grad, storage.nbytes(), name))
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_known_calls_give_what_torch_evaluates(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of(seed)
    mode = graph.program.fake_mode
    evaluated: list[Any] = []
    by_torch = fakes._evaluated

    def evaluate(*call: Any) -> Any:
        evaluated.append(call)
        return by_torch(*call)

    monkeypatch.setattr(fakes, "_evaluated", evaluate)
    for node in graph.facts.nodes[graph.facts.num_placeholders :]:
        if not isinstance(node.target, OpOverload):
            continue
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        given = flatten_tensors(bind(node.target, args, kwargs), lambda a: isinstance(a, torch.Tensor))
        fake_result(node.target, args, kwargs, mode)
        evaluated.clear()
        again = fake_result(node.target, args, kwargs, mode)
        assert not evaluated, f"{node.format_node()} is evaluated twice"
        assert described(again, given) == described(by_torch(node.target, args, kwargs, mode), given), (
            node.format_node()
        )


def test_calls_that_differ_are_evaluated() -> None:
    mode = FakeTensorMode()
    with mode:
        x, y = torch.empty(2, 3), torch.empty(3, 2).t()
    added = [fake_result(aten.add.Tensor, (a, a), {}, mode) for a in (x, y)]
    assert [t.stride() for t in added] == [(3, 1), (1, 2)]
    assert fake_result(aten.pow.Tensor_Scalar, (x.long(), 2), {}, mode).dtype is torch.int64
    assert fake_result(aten.pow.Tensor_Scalar, (x.long(), 2.0), {}, mode).dtype is torch.float32
    parts = fake_result(aten.unbind.int, (x,), {}, mode), fake_result(aten.unbind.int, (x,), {}, mode)
    assert described(parts[0], [x]) == described(parts[1], [x])
    one, other = (fake_result(aten.view.default, (t, [6]), {}, mode) for t in (x, x.clone()))
    assert one.untyped_storage()._cdata == x.untyped_storage()._cdata != other.untyped_storage()._cdata


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_known_of_one_call_holds_for_all_that_are_alike(seed: int) -> None:
    facts = graph_of(seed).facts
    table, workspaces = AxisTable(facts), node_workspaces(facts)
    one: dict[int, int] = {}
    for p in range(facts.num_placeholders, len(facts.nodes)):
        node, operands = facts.nodes[p], facts.calls.operands[p]
        if not isinstance(node.target, OpOverload):
            continue
        bound = bind(node.target, node.args, node.kwargs)
        read = flatten_tensors(bound, lambda a: isinstance(a, fx.Node))
        assert operands == tuple((facts.position[source], 0) for source in read)
        tensors = [facts.tensors[q][r] for q, r in operands]
        assert workspaces[p] == workspace_bytes(node.target, tensors, facts.tensors[p], facts.device_type, bound)
        first = one.setdefault(facts.calls.kinds[p], p)
        assert facts.nodes[first].target is node.target
        assert table.map_of(first) is table.map_of(p)
        assert work_of(facts, first, facts.calls.operands[first]) == work_of(facts, p, operands)


def test_arguments_and_layouts_tell_calls_apart() -> None:
    def function(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        alike = x.sum(1) + x.sum(1)
        return alike + x.sum(0) + x.t().sum(1) + w.sum(1) + (x.sum(1) * 2 + x.sum(1) * 2.0)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(3, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return function(x, self.w)

    facts = testing.legal_graph(Model().eval(), (torch.ones(3, 3),), {}).facts
    sums = _kinds(facts, aten.sum.dim_IntList)
    assert len(set(sums)) == 4, "by rows, by columns, of a transposed matrix, of a weight"
    assert sums[0] == sums[1] == sums[5] == sums[6]
    assert len(set(_kinds(facts, aten.mul.Tensor))) == 2, "by 2 and by 2.0"


def _kinds(facts: GraphFacts, target: OpOverload) -> list[int]:
    return [facts.calls.kinds[p] for p, node in enumerate(facts.nodes) if node.target is target]
