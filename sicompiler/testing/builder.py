"""What random models are made of: drawn options, values with their layouts, and a graph that grows by operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import fx

from sicompiler.testing.layouts import FACTORS, LAYOUTS, Layout, rearrange

T = TypeVar("T")


@dataclass(frozen=True)
class Scale:
    """From what sizes a model is drawn.

    Attributes:
        batch, frames, space: the options of each.
        channels: the options of channels; all divide by 2.
    """

    batch: Sequence[int] = (2, 1, 3)
    frames: Sequence[int] = (3, 1, 2, 4, 5)
    space: Sequence[int] = (4, 1, 2, 3, 5, 7)
    channels: Sequence[int] = (4, 6, 8)


SMALL = Scale()
LARGE = Scale(frames=(6, 4, 7, 9), space=(20, 16, 24, 31), channels=(16, 24, 32))  # values of one MiB and more


class Draw:
    """Draws options, from whatever chooses.

    Args:
        choose: picks one of the given options; the first is the simplest.
    """

    def __init__(self, choose: Callable[[Sequence[Any]], Any]) -> None:
        self._choose = choose

    def pick(self, options: Sequence[T]) -> T:
        """One of the options."""
        found: T = self._choose(options)
        return found

    def flag(self) -> bool:
        """False or True."""
        return self.pick((False, True))

    def divisor(self, number: int) -> int:
        """A divisor of a number."""
        return self.pick([n for n in range(1, number + 1) if number % n == 0])


@dataclass(frozen=True)
class Value:
    """A value of the model being grown.

    Attributes:
        x: stands for the tensor in the fx graph.
        layout: how its dims hold the factors.
        sizes: of b, c, f, h and w.
    """

    x: Any
    layout: Layout
    sizes: tuple[int, ...]

    def size(self, name: str) -> int:
        """Size of one factor."""
        return self.sizes[FACTORS.index(name)]

    @property
    def by_name(self) -> dict[str, int]:
        """Size of each factor."""
        return dict(zip(FACTORS, self.sizes, strict=True))

    @property
    def shape(self) -> list[int]:
        """Shape of the tensor."""
        return self.layout.shape(self.by_name)

    def like(self, x: Any, **sizes: int) -> Value:
        """Another tensor in the same layout."""
        return Value(x, self.layout, tuple(sizes.get(n, s) for n, s in zip(FACTORS, self.sizes, strict=True)))

    def moved(self, layout: Layout) -> Value:
        """The value in another layout."""
        return replace(self, x=rearrange(self.x, self.layout, layout, self.by_name), layout=layout)


class Builder:
    """Grows a model: an fx graph whose weights are parameters of `root`.

    Args:
        draw: chooses.
        scale: what sizes to choose from.
        seed: of the weights.
    """

    def __init__(self, draw: Draw, scale: Scale, seed: int) -> None:
        self.draw, self.scale = draw, scale
        self.root = torch.nn.Module()
        self.graph = fx.Graph()
        self._tracer = fx.proxy.GraphAppendingTracer(self.graph)
        self.generator = torch.Generator().manual_seed(seed)
        self.values: list[Value] = []
        self.args: list[torch.Tensor] = []
        self.kwargs: dict[str, torch.Tensor] = {}
        self.time = self.context = None  # [b, 8] and [b, 3, 8], where the model takes them
        self._weights = 0

    def weight(self, *shape: int, fan_in: int = 0, buffer: bool = False) -> Any:
        """A new parameter or buffer, scaled so that values keep their size."""
        name = f"w{self._weights}"
        self._weights += 1
        data = torch.randn(shape, generator=self.generator, dtype=torch.float64) / math.sqrt(max(fan_in, 1))
        if buffer:
            self.root.register_buffer(name, data)
        else:
            self.root.register_parameter(name, torch.nn.Parameter(data, requires_grad=False))
        return fx.Proxy(self.graph.get_attr(name), self._tracer)

    def near(self, number: float, size: int) -> Any:
        """A vector of entries around a number, as a parameter."""
        weight = self.weight(size, fan_in=16)
        with torch.no_grad():
            self.root.get_parameter(str(weight.node.target)).add_(number)
        return weight

    def input(self, name: str, *shape: int, keyword: bool = False) -> Any:
        """A new input."""
        data = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        if keyword:
            self.kwargs[name] = data
        else:
            self.args.append(data)
        return fx.Proxy(self.graph.placeholder(name), self._tracer)

    def positions(self, size: int) -> Any:
        """The numbers 0, 1, ... size - 1, made by the model."""
        return fx.Proxy(self.graph.call_function(torch.arange, (size,)), self._tracer)

    def layout(self, kinds: Sequence[str] = LAYOUTS) -> Layout:
        """One of the layouts."""
        return Layout.of(self.draw.pick(kinds))

    def module(self, outputs: Any) -> fx.GraphModule:
        """The finished model."""
        self.graph.output(fx.node.map_aggregate(outputs, lambda v: v.node if isinstance(v, fx.Proxy) else v))
        module = fx.GraphModule(self.root, self.graph, "RandomModel")
        module.graph.lint()
        return module.eval()
