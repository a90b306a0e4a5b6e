"""Dims of one entry tell nothing of where entries lie, yet kernels take them for a memory format: slices keep theirs.

Each model sees its input through views whose strides are in no format, or in two at once, or whose slices would be. A
kernel that took a slice for another format than planned would copy what nobody counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sicompiler.testing.checks import run_budgets

Layer = Callable[[Tensor], Tensor]


class Seen(nn.Module):
    """Layers over a permuted input.

    Args:
        order: of the dims, as they are seen.
        layers: one after the other.
        merged: whether a view merges the first dim with nothing, which computes its stride anew.
    """

    def __init__(self, order: list[int], *layers: Layer, merged: bool = False) -> None:
        super().__init__()
        self.order, self.layers, self.merged = order, layers, merged
        self.modules_ = nn.ModuleList(layer for layer in layers if isinstance(layer, nn.Module))

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape with as many dims as the order."""
        y = x.permute(self.order)
        y = y.reshape(-1, *y.shape[1:]) if self.merged else y
        for layer in self.layers:
            y = layer(y)
        return y


def up(mode: str) -> Layer:
    return lambda x: F.interpolate(x, scale_factor=2, mode=mode)


def padded(x: Tensor) -> Tensor:
    """One row more at both ends of the first dim of space, each a copy."""
    return F.pad(x, [0, 0, 1, 1], mode="replicate")


def wider(x: Tensor) -> Tensor:
    """One column more at both ends, each a copy."""
    return F.pad(x, [1, 1, 0, 0], mode="replicate")


def turned(x: Tensor) -> Tensor:
    return x.transpose(2, 3).contiguous().transpose(2, 3)


def doubled(x: Tensor) -> Tensor:
    return torch.cat([x, F.silu(x)], 1)


CASES: dict[str, tuple[Callable[[], Seen], tuple[int, ...]]] = {
    "a volume of one column": (lambda: Seen([3, 2, 1, 0, 4], up("nearest")), (1, 5, 8, 1, 1)),
    "a volume of one row, merged": (lambda: Seen([0, 4, 1, 2, 3], up("nearest"), merged=True), (1, 2, 1, 20, 8)),
    "one sample of a normalised volume": (
        lambda: Seen([0, 4, 1, 3, 2], up("nearest"), turned, nn.GroupNorm(1, 8)),
        (1, 12, 1, 7, 8),
    ),
    "one channel, normalised": (
        lambda: Seen([0, 3, 1, 2], nn.GroupNorm(1, 1), nn.Conv2d(1, 4, (3, 2), padding=1), nn.Conv2d(4, 2, (3, 2))),
        (1, 4, 30, 1),
    ),
    "a row at an edge": (
        lambda: Seen([0, 3, 1, 2], padded, nn.Conv2d(8, 8, (3, 1), padding=(1, 0)), turned, merged=True),
        (1, 7, 1, 8),
    ),
    "one channel, transposed": (
        lambda: Seen([0, 3, 1, 2], nn.ConvTranspose2d(1, 8, 2, 2), nn.ConvTranspose2d(8, 1, 2, 2)),
        (3, 2, 12, 1),
    ),
    "one channel beside itself": (lambda: Seen([0, 3, 1, 2], doubled, lambda x: x.softmax(2), wider), (2, 1, 30, 1)),
}


@pytest.mark.parametrize("name", CASES)
def test_slices_keep_the_format_of_the_whole(name: str) -> None:
    make, shape = CASES[name]
    torch.manual_seed(0)
    model: Any = make().double().eval()
    outcomes = run_budgets(model, (torch.randn(shape, dtype=torch.float64),), {}, offload=True)
    assert [line for outcome in outcomes for line in outcome.problems()] == []
