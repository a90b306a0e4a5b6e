"""A trace that leaves out what nobody reads gives the same graph as torch's own."""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.fx.experimental.proxy_tensor as proxies
import torch.utils._pytree as pytree
from torch import fx, nn

from sicompiler.api import prepare
from sicompiler.capture import capture, lean
from sicompiler.capture import trace as trace_module
from sicompiler.capture.like_calls import Results
from sicompiler.capture.program import Program
from sicompiler.capture.reasons import source_line
from sicompiler.facts.modules import module_path


class Calls(nn.Module):
    """A block inside of a model, and what a test lets them do."""

    def __init__(self, call: Callable[[nn.Module, torch.Tensor], Any]) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU())
        self.register_buffer("table", torch.arange(8.0))
        self.call = call

    def forward(self, x: torch.Tensor) -> Any:
        """Whatever."""
        return self.call(self, x)


def _plain(model: Any, x: torch.Tensor) -> Any:
    y = model.block(x)
    return torch.cat([y, y * model.table.view(1, 8, 1, 1)], dim=1).permute(0, 2, 3, 1).contiguous()


def _several(model: Any, x: torch.Tensor) -> Any:
    a, b = model.block(x).chunk(2, dim=1)
    values, places = a.flatten(1).topk(3)
    return {"sum": a + b, "top": (values, places)}


def _literals(model: Any, x: torch.Tensor) -> Any:
    scale = torch.tensor([1.0, 2.0, 3.0, 4.0])
    size = int(torch.tensor(2) + 1)
    return x * scale.view(1, 4, 1, 1) + torch.tensor(0.5, dtype=torch.float64) + size


def _in_place(model: Any, x: torch.Tensor) -> Any:
    y = model.block(x).clone()
    y[:, 1:3] = 2.0
    y += 1
    y.t_ if y.dim() == 2 else y.squeeze_(0)
    return y.relu_()


def _picks(model: Any, x: torch.Tensor) -> Any:
    return torch.cat([model.table, model.table[x.flatten()[:8] > 0]])[:8] + x.sum()


def _contexts(model: Any, x: torch.Tensor) -> Any:
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
        y = model.block(x)
    with torch.no_grad():
        return y.float() * math.pi


def _maps(model: Any, x: torch.Tensor) -> Any:
    return torch.vmap(lambda each: each.sin() * model.table[0])(x)


def _complex(model: Any, x: torch.Tensor) -> Any:
    return torch.view_as_real(torch.polar(x.abs(), x)) * 1j


def _reads_code(model: Any, x: torch.Tensor) -> Any:
    traced = fx.symbolic_trace(nn.Sequential(nn.ReLU(), nn.SiLU()))
    lines, inputs = traced.code.splitlines(), inspect.signature(traced.forward).parameters
    return traced(model.block(x)) * len(lines) + len(inputs)


def _repeats(model: Any, x: torch.Tensor) -> Any:
    found = []
    for _ in range(3):
        y = model.block(x).to(torch.float32)
        head, *tail = y.unflatten(1, (2, 4)).chunk(2, dim=1)
        x = (head.flatten(1, 2) + tail[0][:, 0]).contiguous()
        found += [y, head, x.expand(2, *x.shape), torch.atleast_3d(x), nn.functional.pad(x, (1, 0))[..., 1:]]
    return found


def _repeats_beside_writes(model: Any, x: torch.Tensor) -> Any:
    y = torch.zeros(3, 4, 5, 6)
    for i in range(3):
        y[i].view(-1)[::2] = x.flatten()[::2] * i
        x = x + y[i]
        x.unsqueeze(0).mul_(2)
        x = x.permute(0, 3, 2, 1).permute(0, 3, 2, 1) if i == 1 else x.contiguous()
    return y, x


def _repeats_in_contexts(model: Any, x: torch.Tensor) -> Any:
    for _ in range(2):
        x = x * model.table[:6]
        with torch.autocast("cpu", torch.bfloat16):
            x = model.block(x)[:, :4].float()
        with torch.enable_grad():
            x = x * model.table[:6]
        x = torch.vmap(lambda each: each * 2)(x)
    return x


CALLS = (
    *(_plain, _several, _literals, _in_place, _picks, _contexts, _maps, _complex, _reads_code),
    *(_repeats, _repeats_beside_writes, _repeats_in_contexts),
)


def _scaled(model: Any, x: torch.Tensor) -> Any:
    return model.block(x) * model.numbers


def _reads_a_number(model: Any, x: torch.Tensor) -> Any:
    return x * model.table[1].item()


def _told(program: Program) -> list[Any]:
    storages: dict[int, int] = {}
    rows: list[Any] = [program.graph_module.code, program.bindings, list(program.constants), program.out_spec]
    for node in program.graph_module.graph.nodes:
        values = [
            (tuple(t.shape), t.stride(), t.dtype, storages.setdefault(t.untyped_storage()._cdata, len(storages)))
            for t in pytree.tree_leaves(node.meta.get("val"))
            if isinstance(t, torch.Tensor)
        ]
        rows.append((node.name, str(node.target), values, module_path(node)))
    return rows


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_the_graph_is_torchs(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = Calls(call), torch.randn(1, 4, 5, 6)
    ours = capture(model, (x,))
    monkeypatch.setattr(trace_module, "lean_trace", contextlib.nullcontext)
    assert _told(ours) == _told(capture(model, (x,)))


def test_like_operators_are_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    again: list[Results] = []
    made = Results.again

    def counted(self: Results, *args: Any) -> Any:
        again.append(self)
        return made(self, *args)

    monkeypatch.setattr(Results, "again", counted)
    model = nn.Sequential(
        *(nn.Sequential(nn.Linear(6, 6), nn.SiLU(), nn.Unflatten(1, (2, 3)), nn.Flatten()) for _ in range(5))
    )
    graph = capture(model, (torch.randn(4, 6),)).graph_module.graph
    calls = [node for node in graph.nodes if node.op == "call_function"]
    assert len(calls) == 20
    assert len(again) >= 15


class Asks(nn.Module):
    """Asks in each of its like steps for a value that the steps before have a say in."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute."""
        for _ in range(4):
            x = nn.functional.normalize(self.linear(x).unflatten(1, (2, 3)).flatten(1))
            x = -x if x.sum() > 0 else x * 2
        return x


def test_what_is_asked_of_like_operators_is_answered() -> None:
    torch.manual_seed(0)
    model = Asks().double().eval()
    outcomes = set()
    for _ in range(6):
        x = torch.randn(4, 6, dtype=torch.float64)
        program = capture(model, (x,))
        outcomes.add(tuple(one.outcome for one in program.decided))
        arguments = program.arguments_of(dict(model.named_parameters()), [x])
        with torch.no_grad():
            assert torch.equal(program.graph_module.forward(*arguments)[0], model(x))
    assert len(outcomes) > 2


def test_every_node_tells_the_line_of_the_users_code() -> None:
    program = capture(Calls(_plain), (torch.randn(1, 4, 5, 6),))
    lines = [source_line(node) for node in program.graph_module.graph.nodes if node.op == "call_function"]
    assert lines
    assert all("test_lean_trace.py" in line for line in lines)


def test_looking_around_takes_no_part_in_a_trace() -> None:
    model = Calls(_scaled)
    model.numbers = torch.arange(6.0)  # no buffer: a trace finds a constant, and so does who looks at the model
    targets = [str(node.target) for node in capture(model, (torch.randn(1, 4, 5, 6),)).graph_module.graph.nodes]
    assert not [target for target in targets if "resolve" in target]


def test_a_graph_with_a_number_that_depends_on_data_can_be_read() -> None:
    program = capture(Calls(_reads_a_number), (torch.randn(1, 4, 5, 6),))
    assert not program.decided
    assert "mul.Tensor" in program.graph_module.code


def test_graphs_are_compiled_at_once_outside_of_a_trace() -> None:
    before = fx.GraphModule.recompile
    capture(Calls(_plain), (torch.randn(1, 4, 5, 6),))
    assert fx.GraphModule.recompile is before
    graph = fx.Graph()
    graph.output(graph.placeholder("x"))
    assert "forward" in vars(type(fx.GraphModule(nn.Module(), graph)))


def test_decompositions_are_found_where_each_version_of_torch_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    add, tracer = torch.ops.aten.add.Tensor, types.SimpleNamespace(graph=fx.Graph())
    monkeypatch.setattr(proxies, "CURRENT_DECOMPOSITION_TABLE", {}, raising=False)
    of_module = types.SimpleNamespace(tracer=tracer)  # as in torch 2.11
    assert lean._name_of(add, of_module)
    monkeypatch.setattr(proxies, "CURRENT_DECOMPOSITION_TABLE", {add: None})
    assert lean._name_of(add, of_module) is None
    of_mode = types.SimpleNamespace(tracer=tracer, decomposition_table={})
    assert lean._name_of(add, of_mode)
    of_mode.decomposition_table = {add: None}
    assert lean._name_of(add, of_mode) is None


def test_torchs_structured_trace_turns_itself_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody asked for its files; kept waiting, it has torch describe the stack of Python at every step."""
    monkeypatch.delenv("TORCH_TRACE", raising=False)
    log = logging.getLogger("torch.__trace")
    handler = torch._logging._internal.LazyTraceHandler(None)
    log.addHandler(handler)
    try:
        capture(Calls(_plain), (torch.randn(1, 4, 5, 6),))
        assert handler not in log.handlers
    finally:
        log.removeHandler(handler)


def test_a_rewritten_graph_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8)).eval(), torch.randn(32, 8)
    planner = prepare(model, (x,), {})[1]
    plan = planner.plan(planner.floor()[0])
    assert plan.regions
    compiled: list[fx.Graph] = []
    python_code = fx.Graph.python_code

    def counted(self: fx.Graph, *args: Any, **kwargs: Any) -> Any:
        compiled.append(self)
        return python_code(self, *args, **kwargs)

    monkeypatch.setattr(fx.Graph, "python_code", counted)
    module = planner.rewrite(plan).graph_module
    assert len(compiled) == len(list(module.modules()))
    module.code  # noqa: B018 - reading it compiles what is not
    assert len(compiled) == len(list(module.modules()))
