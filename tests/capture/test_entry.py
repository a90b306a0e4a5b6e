"""Entry points: a method of a live module is captured under the module's own names, and leaves the module as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sicompiler.api import prepare
from sicompiler.capture import Source, capture
from sicompiler.capture.entry import bound_method, entry_module
from sicompiler.compiler.planner import rewrite
from sicompiler.errors import BadInput, CaptureError
from sicompiler.runtime.compiled import Executable
from sicompiler.runtime.measure import measure_peak
from sicompiler.runtime.verify import compare, errors
from sicompiler.testing import run_program
from tests.zoo import tiny


class Codec(nn.Module):
    """Decodes row by row with a cache it keeps between rows; the next call begins all of it anew."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.table = nn.Buffer(torch.arange(4.0))
        self.seen: list[str] = ["as made"]
        self.rows = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the forward is not the entry point")

    def decode(self, z: torch.Tensor, scale: float = 2.0) -> tuple[torch.Tensor]:
        self.cache = [None]
        self.seen[:] = ["decoding"]
        for row in range(z.shape[0]):
            self.rows = row
            self.inner.last = row  # type: ignore[assignment]
        return (torch.relu(self.inner(z)) * scale + self.table,)


def test_names_are_those_of_the_live_module() -> None:
    program = capture(Codec(), (torch.ones(3, 4),), {"scale": 3.0}, method="decode")
    found = {binding.name: binding.source for binding in program.bindings}
    assert found["inner.weight"] is Source.PARAMETER
    assert found["inner.bias"] is Source.PARAMETER
    assert found["table"] is Source.BUFFER


def test_weights_are_read_from_the_live_module_at_each_call() -> None:
    codec, z = Codec(), torch.randn(3, 4)
    program = capture(codec, (z,), method="decode")
    with torch.no_grad():
        codec.inner.weight.mul_(5)
    assert torch.equal(run_program(program, codec, (z,), {})[0], codec.decode(z)[0])


def test_the_module_is_as_it_was() -> None:
    codec = Codec()
    capture(codec, (torch.ones(3, 4),), method="decode")
    assert codec.seen == ["as made"]
    assert codec.rows == 0
    assert not hasattr(codec, "cache")
    assert not hasattr(codec.inner, "last")
    assert "forward" not in codec.__dict__
    assert torch.equal(codec.inner.weight, codec.get_parameter("inner.weight"))


def test_the_module_is_as_it_was_when_the_trace_fails() -> None:
    class Failing(Codec):
        def decode(self, z: torch.Tensor, scale: float = 2.0) -> tuple[torch.Tensor]:
            super().decode(z, scale)
            raise RuntimeError("no luck")

    codec = Failing()
    with pytest.raises(CaptureError, match="no luck"):
        capture(codec, (torch.ones(3, 4),), method="decode")
    assert codec.seen == ["as made"]
    assert not hasattr(codec.inner, "last")


def test_hooks_around_the_forward_do_not_fire_as_they_do_not_in_a_call_of_the_method() -> None:
    codec, calls = Codec(), []
    codec.register_forward_hook(lambda *_: calls.append("after"))
    codec.register_forward_pre_hook(lambda *_: calls.append("before"))
    capture(codec, (torch.ones(3, 4),), method="decode")
    assert calls == []
    assert len(codec._forward_hooks) == len(codec._forward_pre_hooks) == 1


def test_the_forward_is_entered_by_a_call_of_the_module() -> None:
    layer = nn.Linear(2, 2)
    assert bound_method(layer, "forward") is layer


def test_what_is_traced_shares_its_weights_with_the_live_module() -> None:
    layer = nn.Linear(2, 2)
    entry = entry_module(layer, "forward")
    assert entry is not layer
    assert entry.weight is layer.weight


def test_an_unknown_method_is_refused_by_name() -> None:
    with pytest.raises(BadInput, match="Codec has no method 'decoder' to capture"):
        capture(Codec(), (torch.ones(3, 4),), method="decoder")


@pytest.mark.parametrize("nested", [False, True])
def test_tiling_is_refused_by_name(nested: bool) -> None:
    module: Any
    module, args, kwargs = tiny("sd-vae")
    module.enable_tiling()
    model: nn.Module = nn.Sequential(module) if nested else module
    with pytest.raises(BadInput, match=r"tiling is on.*call disable_tiling\(\) first"):
        capture(model, args, kwargs, method="forward" if nested else "decode")


def test_slicing_of_the_batch_is_captured_as_configured() -> None:
    module: Any
    module, args, kwargs = tiny("sd-vae", frames=2, height=4, width=4)
    module.enable_slicing()
    program = capture(module, args, kwargs, method="decode")
    convolutions = program.graph_module.graph.find_nodes(op="call_function", target=torch.ops.aten.conv2d.default)
    module.disable_slicing()
    whole = capture(module, args, kwargs, method="decode").graph_module.graph
    assert len(convolutions) == 2 * len(whole.find_nodes(op="call_function", target=torch.ops.aten.conv2d.default))
    with torch.no_grad():
        assert errors(run_program(program, module, args, kwargs), module.decode(*args, **kwargs))[1] <= 1e-12


def test_a_comparison_enters_where_the_capture_did() -> None:
    module, args, kwargs = tiny("sd-vae", frames=2, height=4, width=4)
    program, planner = prepare(module, args, kwargs, method="decode")
    plan = planner.plan(planner.floor()[0])
    found = compare(module, Executable(rewrite(program, plan), plan), args, kwargs, call=bound_method(module, "decode"))
    assert plan.phase == "decode"
    assert found.max_rel_error <= 1e-12
    assert found.fits


ENCODED = {
    "svd-vae": (3, 3, 28, 48),
    "sd-vae": (3, 3, 32, 48),
    "wan-vae": (1, 3, 5, 16, 24),
    "cogvideox-vae": (1, 3, 9, 16, 24),
    "hunyuanvideo-vae": (1, 3, 9, 16, 24),
    "ltx-vae": (1, 3, 9, 64, 64),
}
ISLANDS = {"ltx-vae": 2e-6, "wan-vae": 2e-6}  # they compute norms or resample in float32, whatever the dtype


@pytest.mark.parametrize("name", [n if n == "sd-vae" else pytest.param(n, marks=pytest.mark.slow) for n in ENCODED])
def test_an_encoder_returns_its_distribution(name: str) -> None:
    module: Any = tiny(name)[0]
    frames = torch.randn(ENCODED[name], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kwargs: dict[str, Any] = {"return_dict": False}
    with torch.no_grad():
        (theirs,) = module.encode(frames, **kwargs)
    program, planner = prepare(module, (frames,), kwargs, method="encode")
    for budget in dict.fromkeys((planner.unsliced_bytes, planner.floor()[0])):
        plan = planner.plan(budget)
        done = rewrite(program, plan)
        with measure_peak("cpu") as peak:
            (ours,) = run_program(done, module, (frames,), kwargs)
        assert type(ours) is type(theirs)
        assert vars(ours).keys() == vars(theirs).keys()
        assert ours.deterministic is theirs.deterministic
        for mine, other in ((ours.mean, theirs.mean), (ours.std, theirs.std), (ours.mode(), theirs.mode())):
            assert errors(mine, other)[1] <= ISLANDS.get(name, 1e-12)
        found = peak.bytes + planner.graph.facts.input_bytes + plan.weights_bytes
        assert found <= plan.predicted_peak_bytes + 2**12
    assert plan.phase == "encode"
