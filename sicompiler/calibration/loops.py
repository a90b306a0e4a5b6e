"""How far sliced loops are from what the cost model thinks they take, on models that nothing was fitted to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from sicompiler.calibration.timing import seconds_of
from sicompiler.capture import Program, capture, weights_bytes
from sicompiler.compiler.planner import make_planner
from sicompiler.device import Machine
from sicompiler.runtime.compiled import Executable

SHARES = (0.8, 0.5, 0.0)  # budgets: how far from the floor to the unsliced peak
MOST_DOUBT = 3.0


class ResidualBlock(nn.Module):
    """Two convolutions over images, as in a UNet or a decoder.

    Args:
        channels: of the images.
    """

    def __init__(self, channels: int = 96) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(8, channels) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, c, h, w] to the same."""
        h = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            h = convolution(F.silu(norm(h)))
        return x + h


class TransformerBlock(nn.Module):
    """One block of a transformer: attention and a wide feed-forward layer.

    Args:
        width: of a token.
        heads: of the attention.
    """

    def __init__(self, width: int = 384, heads: int = 6) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.project = nn.Linear(width, 3 * width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, tokens, width] to the same."""
        split = (*x.shape[:2], 3, self.heads, -1)
        query, key, value = self.project(self.norms[0](x)).view(split).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        result: torch.Tensor = x + self.feed_forward(self.norms[1](x))
        return result


@dataclass(frozen=True)
class TimedPlan:
    """A plan that was run.

    Attributes:
        model: which.
        budget_share: of the way from the floor to the unsliced peak; 1 for the unsliced plan.
        predicted: seconds, without doubt.
        measured: seconds.
    """

    model: str
    budget_share: float
    predicted: float
    measured: float


def timed_plans(machine: Machine, device: torch.device) -> Iterator[TimedPlan]:
    """Plan two models for several budgets, and run the plans.

    Args:
        machine: as measured; its doubt is left out of account.
        device: where.
    """
    torch.manual_seed(0)
    sizes = {"residual": (ResidualBlock(), (2, 96, 96, 96)), "transformer": (TransformerBlock(), (2, 1536, 384))}
    for name, (module, shape) in sizes.items():
        model, x = module.to(device).eval(), torch.randn(shape, device=device)
        yield from timed_plans_of(name, model, capture(model, (x,), {}), [x], machine, device)


def timed_plans_of(
    name: str, model: nn.Module, program: Program, inputs: Sequence[Any], machine: Machine, device: torch.device
) -> Iterator[TimedPlan]:
    """Plan a model for several budgets, and run the plans.

    Args:
        name: of the model.
        model: on the device.
        program: captured from it.
        inputs: of its call, flat.
        machine: as measured; its doubt is left out of account.
        device: where.
    """
    planner = make_planner(
        program,
        model=name,
        weights_bytes=weights_bytes(model),
        dtype="float32",
        device_type=device.type,
        machine=replace(machine, doubt=1.0),
    )
    highest, lowest = planner.unsliced_bytes, planner.floor()[0]
    for share in (1.0, *SHARES):
        plan = planner.plan(lowest + round(share * (highest - lowest)))
        compiled = Executable(planner.rewrite(plan), plan)
        seconds = seconds_of(lambda run=compiled: run.run(model, inputs), device, 3)  # type: ignore[misc]
        yield TimedPlan(name, share, plan.seconds, seconds)


def doubt_of(machine: Machine, device: torch.device) -> float:
    """How many times what it is thought to take a loop takes at most, on models that nothing was fitted to.

    Args:
        machine: as measured.
        device: where.
    """
    return loops_doubt(list(timed_plans(machine, device)))


def loops_doubt(rows: Sequence[TimedPlan]) -> float:
    """The largest factor by which plans took longer than thought, beside the unsliced one; from 1 to `MOST_DOUBT`."""
    whole = {row.model: row for row in rows if row.budget_share == 1.0}
    ratios = [row.measured / whole[row.model].measured * whole[row.model].predicted / row.predicted for row in rows]
    return min(max(1.0, *ratios), MOST_DOUBT)
