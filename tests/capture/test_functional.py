"""Graphs that write in place become what torch makes of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import sicompiler
from sicompiler.capture import capture
from sicompiler.capture import functional as functional_module
from sicompiler.capture import trace as trace_module
from sicompiler.capture.program import fingerprint
from sicompiler.capture.reasons import source_line
from sicompiler.facts.modules import module_path

_EVALUATED = re.compile(r"(?<=eval_with_key>)\.\d+")
Call = Callable[[Any, torch.Tensor], Any]


class Model(nn.Module):
    """A layer, a table and whatever a test lets them do."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("table", torch.arange(6.0))
        self.call = call

    def forward(self, x: torch.Tensor) -> Any:
        """Whatever."""
        return self.call(self, x)


def _slices(model: Any, x: torch.Tensor) -> Any:
    out = torch.empty_like(x)
    out[..., 0::2] = model.linear(x)[..., 1::2] * 2
    out[..., 1::2] = x[..., 0::2].to(torch.float64).reshape(-1, 3)
    return out.type_as(x)


def _views_of_views(model: Any, x: torch.Tensor) -> Any:
    y = model.linear(x)
    row = y[1:].view(-1)
    row[2:4].mul_(3).add_(model.table[:2])
    return y, row.unflatten(0, (-1, 2)), x


def _masks(model: Any, x: torch.Tensor) -> Any:
    y = model.linear(x).masked_fill_(x > 0, 0.5)
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[:, 0] = True
    y[mask] = -1.0
    y.index_put_((torch.tensor([0, 2]),), torch.ones(6), accumulate=True)
    return y.softmax(-1)


def _literals(model: Any, x: torch.Tensor) -> Any:
    y = model.linear(x) * torch.tensor(0.5)
    y += torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    z = torch.tensor(2.0).detach_().expand(6)
    return y[torch.tensor([2, 0])], y[:, torch.arange(3)[:, None]], z


def _several_results(model: Any, x: torch.Tensor) -> Any:
    a, b = model.linear(x).chunk(2, dim=-1)
    b += a.sin()
    return {"values": b.topk(2).values.squeeze(), "nothing": None, "number": 3, "same": [a, a]}


def _loop(model: Any, x: torch.Tensor) -> Any:
    y = x.clone()
    for i in range(3):
        y[i] = y[i] * (i / 3) + y[i + 1]
    return nn.functional.dropout(y, 0.5, training=False).contiguous()


def _casts(model: Any, x: torch.Tensor) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        y = model.linear(x)
    y[0] = 1
    return y


def _laid_out_anew(model: Any, x: torch.Tensor) -> Any:
    y = model.linear(x)
    y.t_()
    y += 1
    return y


def _decides(model: Any, x: torch.Tensor) -> Any:
    y = model.linear(x)
    y[0] = 2 if (x > 100).any() else 1
    return y


def _compares(model: Any, x: torch.Tensor) -> Any:
    y = model.linear(x)
    y[0] = 2 if torch.equal(x, y) else 1
    return y


def _draws_in_vain(model: Any, x: torch.Tensor) -> Any:
    y = model.linear(x)
    y += 1
    nn.functional.dropout(y)
    nn.Linear(6, 6)
    return y


def _draws(model: Any, x: torch.Tensor) -> Any:
    y = model.linear(x)
    y += torch.rand(6)
    return y


def _input(model: Any, x: torch.Tensor) -> Any:
    x += 1
    return model.linear(x)


def _buffer(model: Any, x: torch.Tensor) -> Any:
    model.table.add_(1)
    return model.linear(x) + model.table


CALLS = (
    *(_slices, _views_of_views, _masks, _literals, _several_results, _loop, _decides, _casts, _laid_out_anew),
    *(_draws_in_vain, _draws, _input, _buffer),
)


def _told(call: Call) -> Any:
    torch.manual_seed(0)
    try:
        program = capture(Model(call), (torch.randn(4, 6),))
    except sicompiler.CaptureError as error:
        return str(error)
    graph = program.graph_module.graph
    lines = [(_EVALUATED.sub("", source_line(node)), module_path(node)) for node in graph.nodes]
    return program.graph_module.code, fingerprint(graph), program.bindings, program.out_spec, lines


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_a_graph_without_writing_is_torchs(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = _told(call)
    torchs: list[bool] = []

    def decomposed(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
        torchs.append(True)
        result: torch.export.ExportedProgram = exported.run_decompositions({})
        return result

    monkeypatch.setattr(trace_module, "functionalized", decomposed)
    assert ours == _told(call)
    assert torchs or call is _buffer


@pytest.mark.parametrize(
    "call",
    [_slices, _views_of_views, _literals, _several_results, _loop, _decides, _compares],
    ids=lambda c: c.__name__,
)
def test_torch_is_not_asked_where_nothing_is_open(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("torch is asked")

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", refused)
    assert capture(Model(call), (torch.randn(4, 6),))


def _of_a_part(model: Any, x: torch.Tensor) -> Any:
    y = model.linear(x.new_zeros(4, 6))
    y[0] = 1
    return y + torch.cat([x.unsqueeze(1), x.unsqueeze(1), x[:1].unsqueeze(1)], dim=0).sum()


@pytest.mark.parametrize("shape", [(1,), (4,)])
def test_torch_is_not_asked_about_a_part_of_a_larger_tensor(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def told() -> Any:
        program = capture(Model(_of_a_part), (torch.arange(8.0)[4:5].expand(shape),))
        return program.graph_module.code, fingerprint(program.graph_module.graph)

    with monkeypatch.context() as patched:
        patched.setattr(trace_module, "functionalized", lambda exported: exported.run_decompositions({}))
        torchs = told()
    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", None)
    assert told() == torchs


def test_only_what_is_written_into_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[str] = []
    dispatch = functional_module._Recorder.__torch_dispatch__

    def noted(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        run.append(str(func))
        return dispatch(self, func, types, args, kwargs)

    def call(model: Any, x: torch.Tensor) -> Any:
        y = model.linear(x).sin()[1:]
        z = torch.zeros(6)
        z[0] = 1
        return nn.functional.layer_norm(y, (6,)) + z

    monkeypatch.setattr(functional_module._Recorder, "__torch_dispatch__", noted)
    assert capture(Model(call), (torch.randn(4, 6),))
    assert set(run).isdisjoint(
        {"aten.linear.default", "aten.sin.default", "aten.slice.Tensor", "aten.layer_norm.default"}
    )
    assert "aten.zeros.default" in run
