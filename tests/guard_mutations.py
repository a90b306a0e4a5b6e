"""Whatever people do to a live model between two calls, as a table: each row acts alike on a model and on its twin."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

Apply = Callable[[Any, float], Callable[[], None] | None]
WIDTH = 3
GAIN = 1.0
TABLE = {"gains": [1.0, 1.0]}


def squash(x: torch.Tensor) -> torch.Tensor:
    """What a layer calls by its name in the module."""
    return torch.tanh(x)


class Rates:
    """An object two levels down, without a dict."""

    __slots__ = ("bias", "rate", "steps")

    def __init__(self) -> None:
        self.rate, self.steps, self.bias = 1.0, [1.0], torch.zeros(WIDTH, dtype=torch.float64)


class Processor:
    """An object that a layer calls."""

    common = 1.0

    def __init__(self) -> None:
        self.scale, self.rates, self.view = 1.0, Rates(), types.MappingProxyType({"rates": Rates()})
        self.extra: dict[str, Any] = {"list": [1.0, [1.0]]}

    def __call__(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        rates = self.rates
        y = x * (self.scale * self.common * rates.rate * rates.steps[0] * self.extra["list"][1][0]) + rates.bias
        y = y * self.view["rates"].rate
        return y if len(self.extra) == 1 else y - 0.5  # type: ignore[no-any-return]


class Layer(nn.Module):
    """A layer that reads every kind of thing."""

    gain = 1.0
    scaling: Any
    memo: Any
    processor: Any
    linear: Any

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.processor = Processor()
        self.scaling, self.offset = {"x": 1.0}, torch.zeros(WIDTH, dtype=torch.float64)
        self.count, self.memo = 0, None

    @property
    def doubled(self) -> float:
        return 2.0

    def inner(self, x: torch.Tensor) -> torch.Tensor:
        return squash(self.linear(x)) * self.scaling["x"] + self.offset  # type: ignore[no-any-return]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.processor(self, self.inner(x)) * self.gain * self.doubled * GAIN * TABLE["gains"][1]  # type: ignore[no-any-return]


class Toy(nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Layer(), Layer()
        self.mix = 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(self.first(x)) + self.mix * x
        return y if self.training else y * 0.5  # type: ignore[no-any-return]


def toy() -> Toy:
    torch.manual_seed(0)
    return Toy().double().eval()


@dataclass(frozen=True)
class Mutation:
    """One thing that is done to a model.

    Attributes:
        apply: does it, with a number; returns how to undo what does not belong to the model's own state.
        keeps_state: the model can't be compiled any more, and this is part of why.
    """

    apply: Apply
    keeps_state: str = ""


def _set(path: str) -> Apply:
    """Set a number at a path such as `first.processor.scale`."""

    def apply(model: Any, number: float) -> None:
        *parents, name = path.split(".")
        setattr(functools.reduce(getattr, parents, model), name, number)

    return apply


def _do(action: Callable[[Any, float], Any]) -> Apply:
    def apply(model: Any, number: float) -> None:
        action(model, number)

    return apply


def _class_attribute(kind: type, name: str, value: Callable[[float], Any]) -> Apply:
    def apply(model: Any, number: float) -> Callable[[], None]:
        before = kind.__dict__[name]
        setattr(kind, name, value(number))
        return lambda: setattr(kind, name, before)

    return apply


def _global(name: str, value: Callable[[float], Any]) -> Apply:
    def apply(model: Any, number: float) -> Callable[[], None]:
        before = globals()[name]
        globals()[name] = value(number)
        return lambda: globals().__setitem__(name, before)

    return apply


def _weights(change: Callable[[nn.Parameter, float], torch.Tensor]) -> Apply:
    def apply(model: Any, number: float) -> Callable[[], None]:
        weight = model.second.linear.weight
        before = weight.data
        weight.data = change(weight, number)
        return lambda: setattr(weight, "data", before)

    return apply


def _closure(layer: Layer, number: float) -> Callable[..., torch.Tensor]:
    return lambda x: layer.inner(x) * number


def _partial(layer: Layer, number: float) -> Callable[..., torch.Tensor]:
    def call(layer: Layer, factor: float, x: torch.Tensor, *, shift: float) -> torch.Tensor:
        return layer.inner(x) * factor + shift

    return functools.partial(call, layer, number, shift=number)


def _default(layer: Layer, number: float) -> Callable[..., torch.Tensor]:
    def forward(x: torch.Tensor, factor: float = number) -> torch.Tensor:
        return layer.inner(x) * factor

    return forward


class _Bound:
    def __init__(self, layer: Layer, number: float) -> None:
        self.layer, self.factor = layer, [number]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer.inner(x) * self.factor[0]


def _tensor(number: float) -> torch.Tensor:
    return torch.full((WIDTH,), number, dtype=torch.float64)


def _in_closure(layer: Layer, number: float) -> None:
    """A list in a closure, changed where a closure is there already."""
    cells = getattr(layer.forward, "__closure__", None) or ()
    lists = [cell.cell_contents for cell in cells if isinstance(cell.cell_contents, list)]
    if lists:
        lists[0][0] = number
        return
    factors = [number]
    layer.forward = lambda x: layer.inner(x) * factors[0]  # type: ignore[method-assign]


def _counting(layer: Layer, number: float) -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        layer.count += 1
        return layer.inner(x) * layer.count

    layer.forward = forward  # type: ignore[method-assign]


def _residual(layer: Layer, number: float) -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        y = layer.inner(x)
        y = y if layer.memo is None else y + number * layer.memo
        layer.memo = y
        return y

    layer.forward = forward  # type: ignore[method-assign]


def _in_a_cell(layer: Layer, number: float) -> None:
    calls = 0

    def forward(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return layer.inner(x) * calls

    layer.forward = forward  # type: ignore[method-assign]


def _memo(layer: Layer, number: float) -> None:
    """A table made once, of nothing but a size: legitimate."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        if layer.memo is None:
            layer.memo = torch.arange(x.shape[-1], dtype=x.dtype) * number
        return layer.inner(x) * layer.memo  # type: ignore[no-any-return]

    layer.forward, layer.memo = forward, None  # type: ignore[method-assign]


def _recording(layer: Layer, number: float) -> None:
    seen: list[torch.Tensor] = []
    layer.linear.register_forward_hook(lambda module, args, result: seen.append(result))


def _class_of_a_module(model: Any, number: float) -> Callable[[], None]:
    """A class of the same name with another forward."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return Layer.forward(self, x) * number

    layer, before = model.first, type(model.first)
    layer.__class__ = type(Layer.__name__, (Layer,), {"forward": forward})
    return lambda: setattr(layer, "__class__", before)


def _scaled_function(original: Callable[..., torch.Tensor]) -> Callable[[float], Callable[..., torch.Tensor]]:
    return lambda number: lambda *args: original(*args) * number


MUTATIONS: dict[str, Mutation] = {
    "a number of the model": Mutation(_set("mix")),
    "a number of a module": Mutation(_set("first.gain")),
    "a number of an object": Mutation(_set("first.processor.scale")),
    "a slot of an object two levels down": Mutation(_set("second.processor.rates.rate")),
    "a list in an object two levels down": Mutation(_do(lambda m, n: m.first.processor.rates.steps.__setitem__(0, n))),
    "a list in a list in a dict": Mutation(_do(lambda m, n: m.first.processor.extra["list"][1].__setitem__(0, n))),
    "an object behind a read-only view of a dict": Mutation(
        _do(lambda m, n: setattr(m.first.processor.view["rates"], "rate", n))
    ),
    "another entry of a dict": Mutation(_do(lambda m, n: m.second.processor.extra.update(more=n))),
    "the scale of an adapter": Mutation(_do(lambda m, n: m.second.scaling.update(x=n))),
    "another dict": Mutation(_do(lambda m, n: setattr(m.first, "scaling", {"x": n}))),
    "another processor": Mutation(_do(lambda m, n: setattr(m.first, "processor", _processor(n)))),
    "a processor that is a function": Mutation(_do(lambda m, n: setattr(m.second, "processor", _function(n)))),
    "a tensor replaced": Mutation(_do(lambda m, n: setattr(m.first, "offset", _tensor(n)))),
    "a tensor in place": Mutation(_do(lambda m, n: m.second.offset.add_(n))),
    "a tensor in place through .data": Mutation(_do(lambda m, n: m.second.offset.data.fill_(n))),
    "a tensor in place, two levels down": Mutation(_do(lambda m, n: m.first.processor.rates.bias.add_(n))),
    "a closure": Mutation(_do(lambda m, n: setattr(m.first, "forward", _closure(m.first, n)))),
    "a partial": Mutation(_do(lambda m, n: setattr(m.first, "forward", _partial(m.first, n)))),
    "a default argument": Mutation(_do(lambda m, n: setattr(m.second, "forward", _default(m.second, n)))),
    "a bound method of another object": Mutation(
        _do(lambda m, n: setattr(m.second, "forward", _Bound(m.second, n).forward))
    ),
    "a method of the instance": Mutation(
        _do(lambda m, n: setattr(m.first, "inner", types.MethodType(lambda layer, x: layer.linear(x) * n, m.first)))
    ),
    "a list in a closure": Mutation(_do(lambda m, n: _in_closure(m.first, n))),
    "a forward of the instance taken away": Mutation(_do(lambda m, n: m.first.__dict__.pop("forward", None))),
    "the forward of a class": Mutation(_class_attribute(Layer, "forward", _scaled_function(Layer.forward))),
    "another method of a class": Mutation(_class_attribute(Layer, "inner", _scaled_function(Layer.inner))),
    "the call of an object's class": Mutation(
        _class_attribute(Processor, "__call__", lambda n: lambda self, layer, x: x * n)
    ),
    "a number of a class": Mutation(_class_attribute(Processor, "common", float)),
    "a property": Mutation(_class_attribute(Layer, "doubled", lambda n: property(lambda _: n))),
    "the forward of the model's class": Mutation(_class_attribute(Toy, "forward", _scaled_function(Toy.forward))),
    "the class of a module": Mutation(_class_of_a_module),
    "a number read by name": Mutation(_global("GAIN", float)),
    "a list in a dict read by name": Mutation(_global("TABLE", lambda n: {"gains": [1.0, n]})),
    "a function called by name": Mutation(_global("squash", lambda n: lambda x: x * n)),
    "a function of torch": Mutation(
        lambda model, number: _torch_linear(number),
    ),
    "a hook": Mutation(_do(lambda m, n: m.first.register_forward_hook(lambda module, args, result: result * n))),
    "a hook below": Mutation(
        _do(lambda m, n: m.second.linear.register_forward_hook(lambda module, args, result: result + n))
    ),
    "a hook before": Mutation(
        _do(lambda m, n: m.second.register_forward_pre_hook(lambda module, args: (args[0] * n,)))
    ),
    "a hook with keywords": Mutation(
        _do(lambda m, n: m.first.register_forward_hook(lambda module, args, kwargs, y: y - n, with_kwargs=True))
    ),
    "a hook around the model": Mutation(
        _do(lambda m, n: m.register_forward_hook(lambda module, args, result: result * n))
    ),
    "hooks taken off": Mutation(_do(lambda m, n: m.first._forward_hooks.clear())),
    "a hook put in front": Mutation(
        _do(lambda m, n: m.first.register_forward_hook(lambda module, args, result: result + n, prepend=True))
    ),
    "a child replaced": Mutation(_do(lambda m, n: setattr(m.second, "linear", _linear(n)))),
    "a child that is an activation": Mutation(_do(lambda m, n: setattr(m.first, "linear", nn.Softplus(n)))),
    "weights in place": Mutation(_weights(lambda w, n: w.data * n)),
    "weights of other strides": Mutation(_weights(lambda w, n: w.data.t().contiguous().t())),
    "training": Mutation(_do(lambda m, n: m.train(n > 1))),
    "a counter": Mutation(_do(lambda m, n: _counting(m.first, n)), "first.count"),
    "the residual of the call before": Mutation(_do(lambda m, n: _residual(m.second, n)), "second.memo"),
    "a counter in a closure": Mutation(_do(lambda m, n: _in_a_cell(m.first, n)), "variable calls"),
    "a hook that records": Mutation(_do(lambda m, n: _recording(m.second, n)), "variable seen"),
    "a table made once": Mutation(_do(lambda m, n: _memo(m.second, n))),
}


def _processor(number: float) -> Processor:
    processor = Processor()
    processor.scale = number
    return processor


def _function(number: float) -> Callable[..., torch.Tensor]:
    """Has what later mutations of a processor change, and reads it."""

    def process(_: Layer, x: torch.Tensor) -> torch.Tensor:
        return x * (number * len(attributes["extra"]) * attributes["rates"].rate)  # type: ignore[no-any-return]

    attributes = process.__dict__
    attributes |= {"extra": {}, "rates": Rates()}
    return process


def _linear(number: float) -> nn.Linear:
    linear = nn.Linear(WIDTH, WIDTH).double()
    nn.init.constant_(linear.weight, number)
    nn.init.constant_(linear.bias, 0.1)
    return linear


def _torch_linear(number: float) -> Callable[[], None]:
    before = functional.linear
    functional.linear = lambda *args: before(*args) * number
    return lambda: setattr(functional, "linear", before)
