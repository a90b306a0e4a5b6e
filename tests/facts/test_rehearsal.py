"""A second call is rehearsed instead of traced: it is accepted where a second trace would accept it, and only there."""

from __future__ import annotations

import contextlib
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import handle_torch_function, has_torch_function

import sicompiler
from sicompiler.capture import capture
from sicompiler.capture import state as state_module
from sicompiler.capture.rehearsal import Score, rehearse
from sicompiler.guards.walk import ModelDescription

Call = Callable[["Model", torch.Tensor], torch.Tensor]


class Box:
    """Holds what calls leave behind; attributes of the model itself are put back by torch after a trace."""

    def __init__(self) -> None:
        self.calls, self.seen = 0, dict[Any, Any]()
        self.parts: list[Any] = []


class Model(nn.Module):
    """Two linear layers, some numbers that calls change, and whatever a test lets it do."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.call, self.box = call, Box()
        self.table = torch.ones(4)  # neither a parameter nor a buffer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Leaves plain values behind, not the same as before the first call."""
        return self.call(self, x)


def _resets(model: Model, x: torch.Tensor) -> torch.Tensor:
    model.box.parts = [None, x]
    x = model.one(model.box.parts[1]) + float(len(model.box.parts))
    a, b = x.split(2, dim=-1)
    x = torch.cat([b, a], dim=-1)[:, 1:].clone()
    x[0, 0] = 3.0
    x += 1
    model.box.parts = [None, None]
    return x


def _other_layer(model: Model, x: torch.Tensor) -> torch.Tensor:
    layer = model.other if model.box.calls else model.one
    model.box.calls = 1
    result: torch.Tensor = layer(x)
    return result


def _other_number(model: Model, x: torch.Tensor) -> torch.Tensor:
    factor = 0.0 if model.box.calls else -0.0
    model.box.calls = 1
    return x * factor


def _bool_or_int(model: Model, x: torch.Tensor) -> torch.Tensor:
    value = 1 if model.box.calls else True
    model.box.calls = 1
    return torch.full_like(x, value) if isinstance(value, bool) else torch.full_like(x, value) + 0


def _one_more(model: Model, x: torch.Tensor) -> torch.Tensor:
    y = x.sin()
    if model.box.calls:
        x.cos()
    model.box.calls = 1
    return y


def _fewer(model: Model, x: torch.Tensor) -> torch.Tensor:
    y = x.sin()
    if not model.box.calls:
        y = y + x.cos().sum() * 0
    model.box.calls = 1
    return y


def _other_result(model: Model, x: torch.Tensor) -> torch.Tensor:
    found = x.sin(), x.cos()
    model.box.calls += model.box.calls == 0
    result = found[model.box.seen.get("which", 0)]
    model.box.seen["which"] = 1
    return result


def _other_dtype(model: Model, x: torch.Tensor) -> torch.Tensor:
    before = torch.get_default_dtype()
    if not model.box.calls:
        torch.set_default_dtype(torch.float64)
    model.box.calls = 1
    zeros = torch.zeros(4)
    torch.set_default_dtype(before)
    return x + zeros


def _by_address(model: Model, x: torch.Tensor) -> torch.Tensor:
    y = x.sin()
    model.box.seen[id(y)] = True
    return y


def _counts(model: Model, x: torch.Tensor) -> torch.Tensor:
    model.box.calls += 1
    return x.sin()


def _laid_out_anew(model: Model, x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    size = y.shape[0]
    y.t_()
    model.box.calls = 1
    return y * y.shape[0] + size


def _iterates(model: Model, x: torch.Tensor) -> torch.Tensor:
    model.box.calls = 1
    return torch.stack([row * 2 for row in x])


def _reads_a_literal(model: Model, x: torch.Tensor) -> torch.Tensor:
    step = torch.tensor([2.0, 3.0, 4.0, 5.0 + model.box.calls])
    model.box.calls = 1
    return x * step


def _casts(model: Model, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = (model.other if model.box.calls else model.one)(x)
    model.box.calls = 1
    result: torch.Tensor = y.float()
    return result


def _hides_an_error(model: Model, x: torch.Tensor) -> torch.Tensor:
    y = x.sin()
    try:
        if model.box.calls:
            y = y + x.cos()
    except Exception:
        y = x.sin()
    model.box.calls = 1
    return y


def _without_gradients(model: Model, x: torch.Tensor) -> torch.Tensor:
    model.box.parts = [x]
    with torch.enable_grad():
        y = x.sin()
    model.box.parts = [None]
    return y


def _turns_a_list_around(model: Model, x: torch.Tensor) -> torch.Tensor:
    parts = torch.ops.aten.split.Tensor(x, 2, -1)
    if not model.box.calls:
        parts.reverse()
    model.box.calls = 1
    return torch.cat(parts, dim=-1)


def _drops_a_layer(model: Model, x: torch.Tensor) -> torch.Tensor:
    model._modules["other"] = nn.Identity()
    result: torch.Tensor = model.one(x)
    return result


def _overridable(x: torch.Tensor) -> torch.Tensor:
    if has_torch_function((x,)):
        result: torch.Tensor = handle_torch_function(_overridable, (x,), x)
        return result
    return x * (2 if SHARED.calls else 1)


def _asks_another_function(model: Model, x: torch.Tensor) -> torch.Tensor:
    y = _overridable(x)
    SHARED.calls = model.box.calls = 1
    return y


def _broken(x: torch.Tensor) -> torch.Tensor:
    if has_torch_function((x,)):
        result: torch.Tensor = handle_torch_function(_broken, (x,), x)
        return result
    x.add_(1)
    raise ValueError


def _fails_halfway(model: Model, x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    if not model.box.calls:
        with contextlib.suppress(ValueError):
            _broken(y)
    model.box.calls = 1
    return y.sin()


class Kept:
    """Tensors, and where they lie."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        self.tensors, self.devices = tensors, [tensor.device for tensor in tensors]


def _keeps_devices(model: Model, x: torch.Tensor) -> Any:
    model.box.calls = 1
    return Kept(x.sin(), x.sin(), x.cos())


CALLS = {
    call.__name__: call
    for call in (
        *(_resets, _other_layer, _other_number, _bool_or_int, _one_more, _fewer, _other_result, _other_dtype),
        *(_by_address, _counts, _laid_out_anew, _iterates, _reads_a_literal, _casts, _hides_an_error),
        *(_without_gradients, _turns_a_list_around, _drops_a_layer, _asks_another_function, _fails_halfway),
        _keeps_devices,
    )
}
SHARED = Box()
REHEARSED = ("_resets", "_iterates", "_without_gradients", "_keeps_devices")


def _verdict(name: str) -> str:
    torch.manual_seed(0)
    model = Model(CALLS[name])
    try:
        return capture(model, (torch.randn(4, 4),)).graph_module.code
    except sicompiler.CaptureError as error:
        return re.sub(r"seen\[\d+\]", "seen[...]", str(error))
    finally:
        assert vars(model.box) == vars(Box())


@pytest.mark.parametrize("name", CALLS)
def test_the_verdict_is_that_of_a_second_trace(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[bool] = []

    def noted(score: Score, *rest: Any) -> bool:
        found.append(rehearse(score, *rest))
        return found[-1]

    monkeypatch.setattr(state_module, "rehearse", noted)
    ours = _verdict(name)
    monkeypatch.setattr(state_module, "rehearse", lambda *_: False)
    assert ours == _verdict(name)
    assert any(found) == (name in REHEARSED) or name in ("_counts", "_by_address")


def _takes_out(model: Model, inputs: Any) -> torch.Tensor:
    factor = inputs.pop("factor", 2.0) - model.box.calls
    model.box.calls = 1
    result: torch.Tensor = inputs["x"] * factor
    return result


def test_a_rehearsal_is_given_what_the_call_was_given() -> None:
    inputs = OrderedDict(x=torch.randn(4, 4), factor=1.0)
    with pytest.raises(sicompiler.CaptureError, match=r"box\.calls"):
        capture(Model(_takes_out), (inputs,))


def test_what_a_call_left_is_not_described_again(monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[ModelDescription] = []
    made = ModelDescription.__init__

    def counted(self: ModelDescription, *args: Any, **kwargs: Any) -> None:
        walks.append(self)
        made(self, *args, **kwargs)

    monkeypatch.setattr(ModelDescription, "__init__", counted)
    assert capture(Model(_keeps_devices), (torch.randn(4, 4),))
    assert len(walks) == 4  # to be put back, before the call, after it, and to be put back to that
