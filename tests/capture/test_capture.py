"""Capture: contexts that a model enters, an autocast around the call, and graphs that are refused."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._higher_order_ops import while_loop

import sicompiler
from sicompiler.capture import Program, capture
from sicompiler.capture.state import TracedEntry
from sicompiler.errors import CaptureError
from sicompiler.facts.storages import fake_tensors, graph_facts
from sicompiler.guards import state as guards_state
from sicompiler.guards.walk import ModelDescription
from sicompiler.testing import run_program

aten = torch.ops.aten


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Layers(nn.Module):
    """A linear layer and a norm for its subclasses to use."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)


class AutocastOff(Layers):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast("cpu", enabled=False):
            y = x.view(2, 2, 6)
            z = self.linear(y)
        return y.transpose(0, 1), z * 2


class AutocastOn(Layers):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.linear(x)
        with torch.autocast("cpu", torch.bfloat16):
            z = self.norm(self.linear(y))
            heads = z.view(1, 2, 2, 6)
            out = nn.functional.scaled_dot_product_attention(heads, heads, heads)
            both = torch.cat([x, z])
            with torch.autocast("cpu", enabled=False):
                plain = self.linear(x) @ x.t()
        return z, out, both, plain, z.float() + y


class Gradients(Layers):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            y: torch.Tensor = self.linear(x)
            with torch.no_grad():
                z: torch.Tensor = self.norm(y)
        return y + z


class WritesInside(Layers):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            y: torch.Tensor = self.linear(x)
            y[:, 1:3] = 0
        return y + x


class InsideALoop(Layers):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            with torch.autocast("cpu", enabled=False):
                x = self.linear(x) + x
        return x


def targets(program: Program) -> list[Any]:
    return [node.target for node in program.graph_module.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("kind", [AutocastOff, AutocastOn, Gradients, WritesInside, InsideALoop])
def test_a_context_is_inlined_with_the_same_meaning(kind: type[Layers], x: torch.Tensor) -> None:
    model = kind().eval()
    with torch.no_grad():
        program = capture(model, (x,))
        theirs, ours = model(x), run_program(program, model, (x,), {})
    theirs, ours = ((theirs,), (ours,)) if isinstance(theirs, torch.Tensor) else (theirs, ours)
    for one, other in zip(theirs, ours, strict=True):
        assert one.dtype is other.dtype
        assert torch.equal(one, other)
    assert not any(node.op == "get_attr" for node in program.graph_module.graph.nodes)
    assert all(isinstance(t, torch._ops.OpOverload) or t is operator.getitem for t in targets(program))
    for node in program.graph_module.graph.nodes:
        assert not node.users or fake_tensors(node), f"{node.name} has no fake value"


def test_a_view_inside_a_context_shares_memory_with_what_is_outside(x: torch.Tensor) -> None:
    facts = graph_facts(capture(AutocastOff().eval(), (x,)))
    of = {node.target: facts.tensors[p][0].storage for p, node in enumerate(facts.nodes) if facts.tensors[p]}
    assert of[aten.view.default] == of["x"] == of[aten.transpose.int]
    assert of[aten.linear.default] not in (of["x"], of[aten.mul.Tensor])


def test_an_autocast_that_is_on_becomes_casts_in_the_graph(x: torch.Tensor) -> None:
    program = capture(AutocastOn().eval(), (x,))
    inside = [n for n in program.graph_module.graph.nodes if n.target is aten.linear.default][1]
    assert [operand.meta["val"].dtype for operand in inside.all_input_nodes] == [torch.bfloat16] * 3
    assert aten.scaled_dot_product_attention.default in targets(program), "composites are kept"


@pytest.mark.parametrize("kind", [AutocastOff, AutocastOn, Gradients])
def test_a_model_with_a_context_compiles(kind: type[Layers], x: torch.Tensor) -> None:
    model = kind().eval()
    sicompiler.compile_for_budget(model, gb=1, example_inputs=((x,), {}))
    assert sicompiler.verify(model, ((x,), {})).max_abs_error == 0


def test_capture_under_an_autocast_is_refused(x: torch.Tensor) -> None:
    model = AutocastOff().eval()
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(sicompiler.BadInput, match="outside of the autocast"):
        sicompiler.compile_for_budget(model, example_inputs=((x,), {}))
    assert "forward" not in model.__dict__


def test_a_compiled_model_under_an_autocast_is_refused(x: torch.Tensor) -> None:
    """It would run the casts of the autocast between operators that were planned without them."""
    model = Gradients().eval()
    theirs = model(x)
    sicompiler.compile_for_budget(model, example_inputs=((x,), {}))
    with (
        torch.autocast("cpu", torch.bfloat16),
        torch.no_grad(),
        pytest.raises(sicompiler.BadInput, match=r"torch.autocast\('cpu', bfloat16\).*model.to\(torch.bfloat16\)"),
    ):
        model(x)
    with torch.autocast("cpu", enabled=False):
        assert torch.equal(model(x), theirs)


class Loops(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = while_loop(lambda x: x.sum() < 9, lambda x: (x + 1,), (x,))[0]
        return result


def test_a_graph_called_by_another_operator_is_refused_by_name_and_line(x: torch.Tensor) -> None:
    with pytest.raises(
        sicompiler.CaptureError, match=r"Loops: .* by while_loop, which is not supported\n  at .*:\d+, in"
    ):
        capture(Loops(), (x,))


class Cache(nn.Module):
    """Fills a list at every call, and resets it, as causal VAEs do with the frames before."""

    def __init__(self, resets: bool) -> None:
        super().__init__()
        self.inner, self.resets = nn.Linear(4, 4), resets

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Float in, float out."""
        self.frames: list[torch.Tensor | None] = [None, x]
        self.count = self.frames.index(None)
        result: torch.Tensor = self.inner(self.frames[1])
        self.frames = [None, None] if self.resets else self.frames
        return result


def test_a_cache_that_a_call_resets_takes_one_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    traces: list[int] = []
    export = torch.export.export

    def counted(module: nn.Module, args: Any, *rest: Any, **named: Any) -> Any:
        traces.append(len(args))
        return export(module, args, *rest, **named)

    monkeypatch.setattr(torch.export, "export", counted)
    model = Cache(resets=True)
    capture(model, (torch.randn(2, 4),))
    assert traces == [1], "the second call is rehearsed"
    assert "frames" not in vars(model), "what the traces wrote is put back"
    with pytest.raises(CaptureError, match="frames"):
        capture(Cache(resets=False), (torch.randn(2, 4),))


class Counts(nn.Module):
    """Leaves a number behind, and gives as many entries as a mask lets through."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, dict[str, int]] = {"calls": {}}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Float in, some of it out."""
        self.seen["calls"]["last"] = 1
        return x.flatten()[: int((x > 0).sum())]


def test_a_graph_that_does_not_do_is_refused_before_it_is_asked_what_it_leaves_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[bool] = []
    settles = TracedEntry.settles

    def noted(self: TracedEntry, *rest: Any) -> bool:
        asked.append(True)
        return settles(self, *rest)

    monkeypatch.setattr(TracedEntry, "settles", noted)
    program = capture(Counts(), (torch.tensor([1.0, -1.0, 2.0]),))
    assert program.decided
    assert len(asked) == 1


def test_a_model_that_is_as_it_was_is_described_once_for_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[bool] = []

    class Counted(ModelDescription):
        def __init__(self, *rest: Any, **named: Any) -> None:
            walks.append(True)
            super().__init__(*rest, **named)

    monkeypatch.setattr(guards_state, "ModelDescription", Counted)
    capture(nn.Linear(4, 4), (torch.randn(2, 4),))
    assert len(walks) == 2, "what is put back, and what is compared"


class OwnDtype(nn.Module):
    """Computes with a default dtype of its own."""

    def __init__(self, make: Callable[[torch.Tensor], torch.Tensor], *, back: bool = True) -> None:
        super().__init__()
        self.make, self.back = make, back

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            return x * self.make(x)
        finally:
            if self.back:
                torch.set_default_dtype(before)


@pytest.mark.parametrize(
    "make",
    [lambda x: torch.linspace(0, 1, 6), lambda x: x.long() * 0.1, lambda x: x.long() / 3],
    ids=["made", "times a number", "divided"],
)
def test_a_default_dtype_that_an_operator_takes_is_refused(
    make: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
) -> None:
    with pytest.raises(sicompiler.CaptureError, match=r"has set to float64 while it runs\n  at .*test_capture"):
        capture(OwnDtype(make), (x,))
    assert torch.get_default_dtype() is torch.float32


def test_a_default_dtype_that_no_operator_takes_does_not_matter(x: torch.Tensor) -> None:
    model = OwnDtype(lambda x: torch.linspace(0, 1, 6, dtype=torch.float32) + torch.tensor([0.1]))
    expected = model(x)
    sicompiler.compile_for_budget(model, "1 GiB")
    assert torch.equal(model(x), expected)


def test_a_default_dtype_that_a_call_leaves_behind_is_refused_and_put_back(x: torch.Tensor) -> None:
    with pytest.raises(sicompiler.CaptureError, match="what all of the process sees: `the default dtype` is changed"):
        capture(OwnDtype(lambda x: x, back=False), (x,))
    assert torch.get_default_dtype() is torch.float32


def test_a_constant_is_written_into_once_under_a_default_dtype_of_the_model(x: torch.Tensor) -> None:
    class Counts(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            before = torch.get_default_dtype()
            torch.set_default_dtype(torch.float64)
            size = torch.tensor([1, 2])
            size.add_(1)
            torch.set_default_dtype(before)
            return x[:, : int(size[0])]

    model = Counts()
    expected = model(x)
    sicompiler.compile_for_budget(model, "1 GiB")
    assert torch.equal(model(x), expected)
