"""Tools of torch that trace, transform or compile: around a compiled model, inside of one, and asked for by one."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import sicompiler
from sicompiler.guards import identity
from tests.mini_pipeline import mini, picture

X = torch.linspace(-2, 2, 2 * 16 * 8, dtype=torch.float64).reshape(2, 16, 8)


class Net(nn.Module):
    """A residual block."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(nn.functional.gelu(self.up(x)))  # type: ignore[no-any-return]


class Pair(nn.Module):
    """Two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Net(), Net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))  # type: ignore[no-any-return]


class AsksWhoCompiles(Net):
    """Computes something else where it hears that it is compiled."""

    ask: Callable[[], bool]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y * 2 if self.ask() else y


class AsksForIdentity(nn.Module):
    """Attention to itself is another thing than attention to a tensor of the same entries."""

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return x * 2 if context is x else x + context


def compiled(model: nn.Module) -> Any:
    return sicompiler.compile_for_budget(model.double().eval(), "64MiB")


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= 1e-12 * theirs.abs().max())


@pytest.mark.parametrize(
    ("tool", "told"),
    [
        (lambda model: torch.vmap(model)(X), "a transform of torch.func"),
        (lambda model: torch.func.jvp(model, (X,), (X,)), "a transform of torch.func"),
        (lambda model: torch.jit.trace(model, X), "torch.jit.trace"),
        (lambda model: make_fx(lambda x: model(x))(X), "a trace"),
        (lambda model: torch.export.export(model, (X,)), "a trace"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@torch.no_grad()
def test_what_calls_with_no_tensors_is_refused_by_name(tool: Callable[[Any], object], told: str) -> None:
    model = compiled(Net())
    for _ in range(2):
        with pytest.raises(sicompiler.BadInput, match=f"called inside of {told}"):
            tool(model)
        assert close(model(X), Net().double()(X))


@torch.no_grad()
def test_a_torch_compile_around_a_model_leaves_it_to_us() -> None:
    expected, around = Net().double()(X), compiled(Net())
    assert close(torch.compile(lambda x: around(x) * 2, backend="eager")(X), expected * 2)
    within = compiled(Net())
    within.compile(backend="eager")
    assert close(within(X), expected)
    assert [len(sicompiler.report(model).plans) for model in (around, within)] == [1, 1]


@torch.no_grad()
def test_a_part_that_is_compiled_on_its_own_is_told() -> None:
    model = Pair().double().eval()
    expected = model(X)
    sicompiler.compile_for_budget(model.first, "64MiB")
    assert close(model(X), expected)
    sicompiler.compile_for_budget(model, "64MiB")
    with pytest.raises(sicompiler.BadInput, match="`first` of this Pair is compiled on its own"):
        model(X)
    sicompiler.release(model.first)
    assert close(model(X), expected)


@pytest.mark.parametrize("name", ["torch.compiler.is_compiling", "torch._dynamo.is_compiling"])
@torch.no_grad()
def test_a_model_hears_that_nobody_compiles_it(name: str) -> None:
    def ask() -> bool:
        asked: Any = functools.reduce(getattr, name.split(".")[1:], torch)
        return bool(asked())  # looked up while it runs

    model = compiled(AsksWhoCompiles())
    model.ask = ask
    assert close(model(X), Net().double()(X))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@torch.no_grad()
def test_padding_that_an_encoder_of_torch_sets_to_zero_is_no_silent_difference() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model: Any = nn.TransformerEncoder(layer, 2).double().eval()
    expected, padding = model(X), torch.arange(16).expand(2, 16) >= 12
    assert not model(X, src_key_padding_mask=padding)[:, 12:].any()
    sicompiler.compile_for_budget(model, "64MiB")
    assert close(model(X), expected)
    with pytest.raises(sicompiler.CaptureError, match="nested"):
        model(X, src_key_padding_mask=padding)
    sicompiler.release(model)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        left = model(X, src_key_padding_mask=padding)
        sicompiler.compile_for_budget(model, "64MiB")
        assert close(model(X, src_key_padding_mask=padding), left)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    with pytest.raises(sicompiler.CaptureError, match="nested"):
        model(X, src_key_padding_mask=padding)


@torch.no_grad()
def test_which_inputs_are_one_tensor_is_part_of_the_call() -> None:
    plain, model = AsksForIdentity(), compiled(AsksForIdentity())
    for context in (X, X.clone(), X):
        assert torch.equal(model(X, context), plain(X, context))
    assert len(sicompiler.report(model).plans) == 2
    model(X, context=X)
    assert sicompiler.verify(model).bitwise
    attention: Any = nn.MultiheadAttention(8, 2, batch_first=True).double().eval()
    expected = attention(X, X, X), attention(X, X * 2, X)
    sicompiler.compile_for_budget(attention, "64MiB")
    for inputs, (values, weights) in zip(((X, X, X), (X, X * 2, X)), expected, strict=True):
        found = attention(*inputs)
        assert close(found[0], values)
        assert close(found[1], weights)


@torch.no_grad()
def test_a_forward_that_is_wrapped_after_compiling_runs_around_the_plan() -> None:
    model, expected, calls = compiled(Net()), Net().double()(X), list[int]()
    inner = model.forward

    def wrapped(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(calls))
        return inner(x) * len(calls)  # type: ignore[no-any-return]

    model.forward = wrapped
    for number in (1, 2, 3):
        assert close(model(X), expected * number)
    with pytest.raises(sicompiler.NotCompiled, match="something replaced its forward"):
        sicompiler.release(model)
    model.forward = inner
    assert len(sicompiler.report(model).plans) == 1
    sicompiler.release(model)
    assert torch.equal(model(X), expected)
    assert "forward" not in vars(model)


def test_an_object_that_goes_when_python_ends_is_forgotten_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    held = Pair()
    identity.token(held)
    monkeypatch.setattr(identity, "_tokens", None)  # as Python leaves globals of modules in the end
    del held
    assert not told


class Marked(torch.Tensor):
    """Replaces nothing."""


class Doubled(torch.Tensor):
    """Replaces what a function computes."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        return found * 2 if func is nn.functional.linear else found


@torch.no_grad()
def test_an_input_that_may_replace_functions_is_refused_by_name() -> None:
    model, expected = compiled(Net()), Net().double()(X)
    for _ in range(2):
        with pytest.raises(sicompiler.BadInput, match=r"class Doubled, .*as_subclass\(torch\.Tensor\)"):
            model(X.as_subclass(Doubled))
        for x in (X, X.as_subclass(Marked), nn.Parameter(X, requires_grad=False)):
            assert close(model(x), expected)


class DividesBy(nn.Module):
    """The sign of zero decides."""

    def forward(self, x: torch.Tensor, divisor: float) -> torch.Tensor:
        return x * (1 / torch.tensor(divisor, dtype=x.dtype)).clamp(-1, 1)


@torch.no_grad()
def test_the_sign_of_zero_is_part_of_the_call() -> None:
    model = compiled(DividesBy())
    for divisor in (0.0, -0.0):
        assert torch.equal(model(X, divisor), DividesBy()(X, divisor))


class HalfScripted(nn.Module):
    """A layer that Python runs, and one that it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.scripted = nn.Linear(8, 8), torch.jit.script(nn.Linear(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scripted(self.plain(x))  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@torch.no_grad()
def test_a_module_of_torch_jit_is_refused_by_name() -> None:
    ours: Any = HalfScripted().double().eval()
    expected = ours(X)
    with pytest.raises(sicompiler.BadInput, match=r"of torch\.jit runs past Python"):
        sicompiler.compile_for_budget(ours.scripted, "64MiB")
    sicompiler.compile_for_budget(ours, "64MiB")
    with pytest.raises(sicompiler.CaptureError, match="`scripted` is a RecursiveScriptModule"):
        ours(X)
    sicompiler.release(ours)
    assert torch.equal(ours(X), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_of_a_pipeline_an_encoder_with_a_part_of_torch_jit_runs_untouched_and_a_whole_one_is_refused() -> None:
    pipe, expected = mini(), mini()(picture())
    text: Any = pipe.text_encoder
    text.noted = torch.jit.script(nn.Linear(2, 2))  # nobody calls it
    sicompiler.compile_for_budget(pipe, "8MiB")
    assert close(pipe(picture()), expected)
    sicompiler.release(pipe)
    del text.noted
    pipe.vae = torch.jit.script(nn.Linear(2, 2))
    with pytest.raises(sicompiler.BadInput, match="vae is a module of torch"):
        sicompiler.compile_for_budget(pipe, "8MiB")
