"""Models that the tests name on the command line, as `tests.cli_models:mlp`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

Call = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


class Mlp(nn.Module):
    """A residual feed-forward block: one peak, sliceable along batch and frames."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(16, 64)
        self.down = nn.Linear(64, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the block on x, [batch, frames, 16]."""
        y: torch.Tensor = x + self.down(torch.nn.functional.gelu(self.up(x)))
        return y


class Normed(nn.Module):
    """The same with a group norm over the frames behind it, and an operator without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Mlp()
        self.norm = nn.GroupNorm(4, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the block on x, [batch, frames, 16]."""
        y = self.norm(self.block(x).transpose(1, 2))
        z: torch.Tensor = torch.special.bessel_j0(y)
        return z


def _call(module: nn.Module, batch: int | None, frames: int | None) -> Call:
    torch.manual_seed(0)
    return module.eval(), (torch.randn(batch or 2, frames or 256, 16),), {}


def mlp(batch: int | None = None, frames: int | None = None) -> Call:
    """The plain block."""
    return _call(Mlp(), batch, frames)


def normed(batch: int | None = None, frames: int | None = None) -> Call:
    """The block with a norm."""
    print("people print things while their models are built")
    return _call(Normed(), batch, frames)


class Untraceable(nn.Module):
    """Leaves torch for NumPy, where no trace follows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The square of x."""
        return x * torch.from_numpy(x.numpy())


def untraceable() -> Call:
    """A model that can't be captured."""
    return Untraceable(), (torch.ones(3),), {}
