"""Random shapes and tensors for sample calls, by whatever chooses: Hypothesis or a seeded generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

Args = tuple[list[Any], dict[str, Any]]
Sampler = Callable[["Draw", OpOverload], Args]

SAMPLERS: dict[OpOverload, Sampler] = {}


def sampler(*targets: OpOverload) -> Callable[[Sampler], Sampler]:
    """Register the function that makes up arguments for some operators."""

    def register(function: Sampler) -> Sampler:
        for target in targets:
            assert target not in SAMPLERS, target
            SAMPLERS[target] = function
        return function

    return register


class Draw:
    """Draws sizes, choices and float64 tensors.

    Args:
        choose: picks one of the given options.
    """

    def __init__(self, choose: Callable[[Sequence[Any]], Any]) -> None:
        self.pick = choose
        self._generator = torch.Generator().manual_seed(0)

    def size(self, low: int = 1, high: int = 6) -> int:
        """A size between two bounds, both included."""
        return int(self.pick(range(low, high + 1)))

    def flag(self) -> bool:
        """True or False."""
        return bool(self.pick([True, False]))

    def shape(self, low_rank: int = 1, high_rank: int = 4) -> list[int]:
        """A shape of 1 to 5 entries a dim."""
        return [self.size(1, 5) for _ in range(self.size(low_rank, high_rank))]

    def dim(self, rank: int) -> int:
        """A dim, counted from either end."""
        return int(self.pick(range(-rank, rank)))

    def tensor(self, *shape: int) -> Tensor:
        """Normally distributed numbers."""
        return torch.randn(shape, generator=self._generator, dtype=torch.float64)

    def unit(self, *shape: int) -> Tensor:
        """Numbers between 0.1 and 0.9, where every pointwise function is defined."""
        return 0.1 + 0.8 * torch.rand(shape, generator=self._generator, dtype=torch.float64)

    def integers(self, high: int, *shape: int) -> Tensor:
        """Integers from 0 up to, not including, `high`."""
        return torch.randint(high, shape, generator=self._generator)

    def mask(self, *shape: int) -> Tensor:
        """Booleans."""
        return self.integers(2, *shape).bool()

    def shrunk(self, shape: Sequence[int]) -> list[int]:
        """A shape that broadcasts to the given one: some dims are of size 1, some leading ones are missing."""
        kept = list(shape)[self.size(0, len(shape)) if self.flag() else 0 :]
        return [1 if self.flag() and self.flag() else size for size in kept]
