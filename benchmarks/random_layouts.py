"""Random layers over images seen through views: planned for four budgets each, run, counted, as `random_modules`.

    python -m benchmarks random_layouts 0 1000

Many dims have one entry, whose strides say nothing of where entries lie, and decide which kernel is taken. What is
wrong is printed, with its seed.
"""

from __future__ import annotations

import argparse
import random
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sicompiler.errors import CaptureError
from sicompiler.testing.checks import run_budgets

Layer = Callable[[Tensor], Tensor]


def _lies_otherwise(x: Tensor) -> Tensor:
    return x.transpose(2, 3).contiguous().transpose(2, 3)


def _shuffled(x: Tensor) -> Tensor:
    if x.dim() > 4 or x.shape[2] % 2 or x.shape[3] % 2:
        return x
    return F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2)


def _padded(mode: str) -> Layer:
    """One entry more at both ends of the longest dim of space."""

    def pad(x: Tensor) -> Tensor:
        widths = [0] * (2 * (x.dim() - 2))
        behind = max(range(x.dim() - 2), key=lambda i: x.shape[-1 - i])
        widths[2 * behind : 2 * behind + 2] = [1, 1]
        return F.pad(x, widths, mode=mode)

    return pad


# Layers that keep the number of channels.
PLAIN: tuple[Layer, ...] = (
    *(F.silu, F.gelu, _lies_otherwise, _shuffled, *map(_padded, ("constant", "replicate", "circular"))),
    *(lambda x: x.clamp(-1, 1), lambda x: torch.where(x > 0, x, x * 0.1), lambda x: x * torch.sigmoid(x)),
    *(lambda x: x.softmax(0), lambda x: x.softmax(1), lambda x: x.softmax(2), lambda x: x.cumsum(2)),
    *(lambda x: torch.roll(x, 1, 2), lambda x: F.layer_norm(x, x.shape[2:])),
    *(lambda x: x + x.mean(1, keepdim=True), lambda x: x - x.mean([2, 3], keepdim=True)),
    lambda x: torch.stack([channel * 2 for channel in x.unbind(1)], 1),
    lambda x: torch.einsum("bc...,dc->bd...", x, torch.eye(x.shape[1], dtype=x.dtype)),
    lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
    lambda x: F.interpolate(x, scale_factor=2, mode="bilinear" if x.dim() == 4 else "trilinear"),
    lambda x: (F.avg_pool2d if x.dim() == 4 else F.avg_pool3d)(x, 3, 1, 1),
    lambda x: (F.max_pool2d if x.dim() == 4 else F.max_pool3d)(x, 3, 1, 1),
)


class OverChannels(nn.Module):
    """A layer over the channels of [n, c, ...], put last for it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.movedim(1, -1))
        return y.movedim(-1, 1)


class Beside(nn.Module):
    """Channels beside what a layer makes of them."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, F.silu(x)], 1)


class RandomLayers(nn.Module):
    """One to three layers over [n, c, h, w] or [n, c, t, h, w], whose input lies in memory in another order.

    Args:
        draw: decides everything.
    """

    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        rank = draw.choice((2, 2, 2, 3))
        self.channels = draw.choice((1, 4, 8, 8))
        space = [draw.choice((1, 1, 2, 5, 7, 12)) for _ in range(rank)]
        if max(space) < 5:
            space[draw.randrange(rank)] = draw.choice((12, 20, 30))
        self.order = [0, *range(2, rank + 2), 1]
        if draw.random() < 0.6:
            draw.shuffle(self.order)
        seen = [draw.choice((1, 1, 1, 2, 3, 6)), self.channels, *space]
        self.shape = [seen[dim] for dim in self.order]
        self.merged, self.residual = draw.random() < 0.5, draw.random() < 0.3
        self.layers: list[Layer] = [self._layer(draw, space) for _ in range(draw.randint(1, 3))]
        self.modules_ = nn.ModuleList(layer for layer in self.layers if isinstance(layer, nn.Module))

    def _layer(self, draw: random.Random, space: list[int]) -> Layer:
        kind, inputs, rank = draw.random(), self.channels, len(space)
        if kind < 0.3:
            self.channels = draw.choice((1, 4, 8))
            groups = draw.choice([g for g in (1, 1, 2, 4) if inputs % g == self.channels % g == 0])
            kernel = tuple(draw.choice((1, 3, 3, 2)) if size > 1 else draw.choice((1, 3)) for size in space)
            convolution = nn.Conv2d if rank == 2 else nn.Conv3d
            padding = tuple(size // 2 for size in kernel)
            return convolution(inputs, self.channels, kernel, padding=padding, groups=groups)  # type: ignore[arg-type]
        if kind < 0.35:
            self.channels = draw.choice((1, 4, 8))
            return (nn.ConvTranspose2d if rank == 2 else nn.ConvTranspose3d)(inputs, self.channels, 2, stride=2)
        if kind < 0.4:
            self.channels = 2 * inputs
            return Beside()
        if kind < 0.5:
            return nn.GroupNorm(draw.choice([g for g in (1, 2, 4) if inputs % g == 0]), inputs)
        if kind < 0.6:
            layers = nn.Linear(inputs, inputs), nn.LayerNorm(inputs), nn.RMSNorm(inputs)
            return OverChannels(draw.choice(layers))
        return draw.choice(PLAIN)

    def forward(self, x: Tensor) -> Tensor:
        """Of `shape`."""
        seen = x.permute([self.order.index(dim) for dim in range(len(self.order))])
        seen = seen.reshape(-1, *seen.shape[1:]) if self.merged else seen
        y = seen
        for layer in self.layers:
            y = layer(y)
        return y + seen if self.residual and y.shape == seen.shape else y


def problems_of(seed: int) -> list[str] | None:
    """What is wrong with the plans of one seed; None where its layers don't take its sizes."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    model = RandomLayers(draw).double().eval()
    try:
        outcomes = run_budgets(model, (torch.randn(model.shape, dtype=torch.float64),), {}, offload=seed % 3 == 0)
    except CaptureError:  # pooling wants images of three rows, say
        return None
    return [f"seed {seed}: {line}" for outcome in outcomes for line in outcome.problems()]


def main() -> None:
    """Run the seeds from the first argument up to the second."""
    parser = argparse.ArgumentParser(prog="random_layouts", description=__doc__.splitlines()[0])
    parser.add_argument("start", type=int, nargs="?", default=0)
    parser.add_argument("stop", type=int, nargs="?", default=200)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    models = wrong = 0
    for seed in range(options.start, options.stop):
        problems = problems_of(seed)
        models += problems is not None
        wrong += bool(problems)
        for line in problems or ():
            print(line, flush=True)
    print(f"{models} models, {wrong} with something wrong")


if __name__ == "__main__":
    main()
