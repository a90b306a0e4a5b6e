"""Blocks that normalise, modulate and reduce."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sicompiler.testing.builder import Draw
from sicompiler.testing.modules.form import (
    CHANNELS_LAST,
    CHANNELS_SECOND,
    KINDS,
    Block,
    BlockCall,
    ValueForm,
    long_dims,
    need,
)


class Groups(Block):
    """nn.GroupNorm, and an activation or not."""

    kinds = CHANNELS_SECOND

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        groups = draw.divisor(form.c)
        need(form.numel > form.shape[0] * groups)  # one entry less its own mean is rounding, enlarged
        self.norm = nn.GroupNorm(groups, form.c, affine=draw.flag())
        self.act = draw.pick((nn.Identity(), nn.SiLU(), nn.ReLU(inplace=True)))
        self.form = form

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Normalise."""
        return self.act(self.norm(x))


class Layer(Block):
    """nn.LayerNorm over the channels, or over the two last dims."""

    kinds = CHANNELS_LAST

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        dims = draw.pick((1, 1, 2))
        need(math.prod(form.shape[-dims:]) > 1)
        self.norm = nn.LayerNorm(form.shape[-dims:], elementwise_affine=draw.flag())
        self.form = form

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Normalise."""
        return self.norm(x)


class ChannelsFirstLayer(Block):
    """A layer norm over channels that are not last: moved there and back, or written out."""

    kinds = CHANNELS_SECOND

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        self.norm, self.moves = nn.LayerNorm(form.c), draw.flag()
        self.form, self.note = form, f"moves={self.moves}"

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Normalise."""
        if self.moves:
            return self.norm(x.movedim(1, -1)).movedim(-1, 1)
        mean = x.mean(1, keepdim=True)
        centred = x - mean
        normed = centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + 1e-6)
        shape = (1, -1, *[1] * (x.dim() - 2))
        return normed * self.norm.weight.view(shape) + self.norm.bias.view(shape)


class Batch(Block):
    """nn.BatchNorm in eval mode, or nn.InstanceNorm."""

    kinds = CHANNELS_SECOND

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        rank = len(KINDS[form.kind]) - 2
        size = form.f * form.h * form.w if rank == 3 else form.h * form.w if rank == 2 else form.f
        instance = draw.flag() and size > 1
        norms = (
            (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
            if instance
            else (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        )
        norm = norms[rank - 1](form.c, affine=draw.flag())
        if not instance:
            for name, low in (("running_mean", -1.0), ("running_var", 0.5)):
                getattr(norm, name).uniform_(low, 1.0)
        self.norm, self.form = norm, form

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Normalise."""
        return self.norm(x)


class RootMeanSquare(Block):
    """nn.RMSNorm, or as T5 and Llama write it, or F.normalize."""

    kinds = CHANNELS_LAST

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        self.how = draw.pick(("module", "written", "normalize", "norm"))
        self.norm = nn.RMSNorm(form.c, eps=1e-6)
        self.form, self.note = form, self.how

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Normalise."""
        if self.how == "module":
            return self.norm(x)
        if self.how == "written":
            wide = x.to(torch.float64)
            scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
            return self.norm.weight * (wide * scale).to(x.dtype)
        if self.how == "normalize":
            return F.normalize(x, dim=-1) * self.norm.weight * x.shape[-1] ** 0.5
        return x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + 1e-3)


class Modulated(Block):
    """Adaptive layer norm: scale, shift and gate come from the time embedding, around a linear layer."""

    kinds = ("tokens", "sequence")

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(form.c, elementwise_affine=False)
        self.embed = nn.Sequential(nn.SiLU(), nn.Linear(8, 3 * form.c))
        self.table = nn.Parameter(torch.randn(3, form.c) / 4) if draw.flag() else None
        self.body = nn.Linear(form.c, form.c)
        self.form = form

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Modulate, compute, gate, add."""
        if call.time is None:
            return x + self.body(self.norm(x))
        vector = self.embed(call.time)
        n = x.shape[0] // vector.shape[0]
        if self.table is not None:
            shift, scale, gate = (self.table[None] + vector.reshape(-1, 3, x.shape[-1])).chunk(3, dim=1)
        else:
            shift, scale, gate = vector.unsqueeze(1).chunk(3, dim=-1)
        shift, scale, gate = (v.repeat_interleave(n, dim=0) if n > 1 else v for v in (shift, scale, gate))
        return x + gate * self.body(self.norm(x) * (1 + scale) + shift)


class Embedded(Block):
    """The time embedding in sines, projected and added to every channel."""

    kinds = ("frames", "video")

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        self.lin = nn.Linear(8, 2 * form.c)
        self.form, self.shifts = form, draw.flag()

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Scale and shift."""
        need_time = call.time if call.time is not None else x.new_ones(1, 8)
        half = torch.exp(-torch.arange(4, dtype=x.dtype, device=x.device))
        angles = need_time[:, :4] * half[None, :]
        embedding = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
        vector = self.lin(embedding)
        vector = vector.repeat_interleave(x.shape[0] // vector.shape[0], dim=0)
        vector = vector.reshape(vector.shape[0], -1, *[1] * (x.dim() - 2))
        scale, shift = torch.tensor_split(vector, 2, dim=1)
        return x * (scale + 1) + shift if self.shifts else x + scale


class Softened(Block):
    """Softmax over some dim, in place of attention; log-softmax and its like."""

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        self.dim, self.how = draw.pick(range(len(form.shape))), draw.pick(("softmax", "log_softmax", "logsumexp"))
        self.form, self.note = form, f"{self.how} over {self.dim}"

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Soften."""
        if self.how == "softmax":
            return x.softmax(self.dim)
        if self.how == "log_softmax":
            return F.log_softmax(x, dim=self.dim)
        return x - x.logsumexp(self.dim, keepdim=True)


class Standardised(Block):
    """Statistics over some dims taken away: mean, variance, standard deviation, largest entries, norms."""

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        dims = long_dims(form)
        first = draw.pick(dims)
        self.dims = tuple(sorted({first, draw.pick(dims)}))
        self.how = draw.pick(("mean", "var", "std", "amax", "aminmax", "norm", "sum"))
        self.form, self.note = form, f"{self.how} over {self.dims}"

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Standardise."""
        if self.how == "mean":
            return x - x.mean(self.dims, keepdim=True)
        if self.how == "var":
            var, mean = torch.var_mean(x, dim=self.dims, keepdim=True)
            return (x - mean) * torch.rsqrt(var + 1e-3)
        if self.how == "std":
            return x / (x.std(dim=self.dims, keepdim=True) + 1)
        if self.how == "amax":
            return x / (1 + x.abs().amax(self.dims, keepdim=True))
        if self.how == "aminmax":
            low, high = x.amin(self.dims, keepdim=True), x.amax(self.dims, keepdim=True)
            return (x - low) / (high - low + 1)
        if self.how == "norm":
            return x / (x.norm(p=2, dim=self.dims, keepdim=True) + 1)
        return x + 0.1 * torch.sum(x, dim=self.dims).reshape(
            [1 if d in self.dims else n for d, n in enumerate(x.shape)]
        )


class Scalar(Block):
    """A number of the whole value: its mean, its norm or its largest entry, which everything is scaled by."""

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        self.how = draw.pick(("mean", "norm", "max", "gain"))
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.form, self.note = form, self.how

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Scale."""
        if self.how == "mean":
            return x - x.mean()
        if self.how == "norm":
            return x / (x.pow(2).sum().sqrt() + 1)
        if self.how == "max":
            return x / (x.abs().max() + 1)
        return x * self.gain.tanh() + torch.tensor(0.25)


BLOCKS: tuple[type[Block], ...] = (
    *(Groups, Layer, RootMeanSquare, Modulated, ChannelsFirstLayer, Batch),
    *(Embedded, Softened, Standardised, Scalar),
)
