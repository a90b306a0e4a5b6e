"""Blocks of linear layers, activations and gates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sicompiler.testing.builder import Draw
from sicompiler.testing.modules.form import CHANNELS_LAST, CHANNELS_SECOND, Block, BlockCall, ValueForm, need

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "tanh gelu": lambda x: F.gelu(x, approximate="tanh"),
    "relu": torch.relu,
    "leaky": lambda x: F.leaky_relu(x, 0.1),
    "mish": F.mish,
    "swish": lambda x: x * torch.sigmoid(x),
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "elu": F.elu,
    "square": lambda x: F.relu(x).square(),
    "clamp": lambda x: x.clamp(-1.5, 1.5),
    "hardtanh": F.hardtanh,
    "snake": lambda x: x + torch.sin(x).pow(2),
    "quick": lambda x: x * torch.sigmoid(1.702 * x),
}


def activation(draw: Draw) -> str:
    """Name of an activation."""
    return draw.pick(tuple(ACTIVATIONS))


class Activation(Block):
    """One or two activations."""

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        self.names = [activation(draw) for _ in range(draw.pick((1, 2)))]
        self.form, self.note = form, ", ".join(self.names)

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Activate."""
        for name in self.names:
            x = ACTIVATIONS[name](x)
        return x


class Projection(Block):
    """A linear layer over the channels, wherever they are."""

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        out = draw.pick((form.c, form.c + 2, max(form.c // 2, 2)))
        self.lin, self.how, self.dim = (
            nn.Linear(form.c, out),
            draw.pick(("linear", "matmul", "einsum")),
            form.channel_dim,
        )
        self.form, self.note = form.to(c=out), self.how

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Project."""
        last = self.dim in (-1, x.dim() - 1)
        y = x if last else x.transpose(self.dim, -1)
        if self.how == "linear":
            y = self.lin(y)
        elif self.how == "matmul":
            y = torch.matmul(y, self.lin.weight.t()) + self.lin.bias
        else:
            y = torch.einsum("...c,oc->...o", y, self.lin.weight)
        return y if last else y.transpose(self.dim, -1)


class FeedForward(Block):
    """A gated feed-forward network: GEGLU, SwiGLU or none, halves cut by chunk, split or slices; with a residual."""

    kinds = CHANNELS_LAST

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        hidden = draw.pick((2, 1, 3)) * form.c
        self.act, self.cut = activation(draw), draw.pick(("chunk", "two", "split", "slices", "none", "glu"))
        self.into = nn.Linear(form.c, hidden if self.cut in ("two", "none") else 2 * hidden, bias=draw.flag())
        self.gate = nn.Linear(form.c, hidden) if self.cut == "two" else None
        self.out = nn.Linear(hidden, form.c)
        self.norm = nn.LayerNorm(form.c) if draw.flag() else nn.Identity()
        self.form, self.note = form, f"{self.act} {self.cut}"

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Widen, gate, narrow, add."""
        normed = self.norm(x)
        y, act = self.into(normed), ACTIVATIONS[self.act]
        half = y.shape[-1] // 2
        if self.gate is not None:
            y = act(y) * self.gate(normed)
        elif self.cut == "chunk":
            value, gate = y.chunk(2, dim=-1)
            y = value * act(gate)
        elif self.cut == "split":
            value, gate = torch.split(y, half, dim=-1)
            y = act(value).mul_(gate)
        elif self.cut == "slices":
            y = y[..., :half] * act(y[..., half:])
        elif self.cut == "glu":
            y = F.glu(y, dim=-1)
        else:
            y = act(y)
        return x + self.out(y)


class ChannelGate(Block):
    """Squeeze and excitation: means over space decide how much of each channel passes."""

    kinds = CHANNELS_SECOND

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(form.c, 4), nn.ReLU(inplace=True), nn.Linear(4, form.c), nn.Sigmoid())
        self.flat = draw.flag()
        self.form = form

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Gate."""
        squeezed = x.flatten(2).mean(-1) if self.flat else x.mean(tuple(range(2, x.dim())))
        gate = self.net(squeezed)
        return x * gate.view(*gate.shape, *[1] * (x.dim() - 2))


class HalfGate(Block):
    """Halves of the channels gate each other."""

    kinds = ("frames", "video", "tokens", "last")

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        need(form.c % 2 == 0 and form.c > 2)
        self.dim, self.stacked = form.channel_dim, draw.flag()
        self.form = form.to(c=form.c // 2)

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Gate."""
        if self.stacked:
            halves = torch.stack(x.chunk(2, dim=self.dim))
            return halves[0] * halves[1].sigmoid()
        value, gate = x.tensor_split(2, dim=self.dim)
        return value * F.silu(gate)


class LayerScale(Block):
    """A learned scale for each channel, and a gate that starts near nothing."""

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        shape = [1] * len(form.shape)
        shape[form.channel_dim] = form.c
        self.scale = nn.Parameter(1 + torch.randn(shape) / 4)
        self.alpha = nn.Parameter(torch.full((1,), 0.1))
        self.how = draw.pick(("scale", "blend", "addcmul", "lerp"))
        self.form, self.note = form, self.how

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Scale."""
        if self.how == "blend":
            alpha = torch.sigmoid(self.alpha)
            return alpha * x + (1.0 - alpha) * (x * self.scale)
        if self.how == "addcmul":
            return torch.addcmul(x, x, self.scale, value=0.5)
        if self.how == "lerp":
            return torch.lerp(x, x * self.scale, 0.3)
        return x * self.scale


class Mixer(Block):
    """A network over the tokens rather than the channels: transposed there and back."""

    kinds = ("tokens", "temporal")

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        n = form.shape[1]
        need(n <= 64)
        self.net = nn.Sequential(nn.Linear(n, 2 * n), nn.GELU(), nn.Linear(2 * n, n))
        self.form, self.dense = form, draw.flag()

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Mix and add."""
        y = x.transpose(1, 2).contiguous() if self.dense else x.mT
        return x + self.net(y).transpose(1, 2)


BLOCKS: tuple[type[Block], ...] = (
    *(Activation, FeedForward, Projection, ChannelGate, HalfGate, LayerScale, Mixer, FeedForward),
)
