"""Blocks that convolve, pool and resample."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sicompiler.testing.builder import Draw
from sicompiler.testing.modules.form import CHANNELS_SECOND, Block, BlockCall, ValueForm, need

CONVOLUTIONS: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
    "video": (nn.Conv3d, nn.ConvTranspose3d, ("f", "h", "w")),
    "frames": (nn.Conv2d, nn.ConvTranspose2d, ("h", "w")),
    "signal": (nn.Conv1d, nn.ConvTranspose1d, ("f",)),
}
CHANNELS = (4, 6, 8)


def sizes(form: ValueForm, letters: tuple[str, ...]) -> list[int]:
    """Sizes of some axes."""
    return [getattr(form, letter) for letter in letters]


def channels(draw: Draw, form: ValueForm) -> int:
    """A number of channels: as many as there are, fewer or more."""
    return draw.pick((form.c, *(c * (form.c // 8 if form.c >= 16 else 1) for c in CHANNELS)))


class Convolution(Block):
    """A convolution over all axes of a layout: kernel, stride, dilation, groups, padding and its mode."""

    kinds = CHANNELS_SECOND

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        conv, _, axes = CONVOLUTIONS[form.kind]
        out = channels(draw, form)
        dilation = draw.pick((1, 1, 2))
        kernel = tuple(draw.pick((3, 1, 2, 5)) if n > 1 else 1 for n in sizes(form, axes))
        stride = tuple(draw.pick((1, 1, 2)) if n > 2 else 1 for n in sizes(form, axes))
        pads = [dilation * (k - 1) // 2 for k in kernel]
        mode = draw.pick(("zeros", "zeros", "reflect", "replicate", "circular"))
        if mode != "zeros":
            pads = [min(p, n - 1) for p, n in zip(pads, sizes(form, axes), strict=True)]
        groups = draw.pick([g for g in (1, 1, 2, form.c) if form.c % g == 0 and out % g == 0])
        self.conv = conv(
            *(form.c, out, kernel, stride, tuple(pads), dilation, groups), bias=draw.flag(), padding_mode=mode
        )
        made = [
            (n + 2 * p - dilation * (k - 1) - 1) // s + 1
            for n, p, k, s in zip(sizes(form, axes), pads, kernel, stride, strict=True)
        ]
        need(min(made) > 0)
        self.form = form.to(c=out, **dict(zip(axes, made, strict=True)))

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Convolve."""
        return self.conv(x)


class SameConvolution(Block):
    """A convolution with padding="same", as size-keeping networks write it."""

    kinds = CHANNELS_SECOND

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        conv, _, _ = CONVOLUTIONS[form.kind]
        self.conv = conv(form.c, form.c, draw.pick((3, 2, 4)), padding="same", groups=draw.pick((1, form.c)))
        self.form = form

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Convolve and add."""
        return x + self.conv(x)


class TransposedConvolution(Block):
    """A transposed convolution that doubles the axes, or keeps them."""

    kinds = CHANNELS_SECOND

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        _, conv, axes = CONVOLUTIONS[form.kind]
        need(form.numel < 20_000)
        stride = draw.pick((2, 1))
        kernel, padding, more = draw.pick(((2, 0, 0), (4, 1, 0), (3, 1, 1))) if stride == 2 else (3, 1, 0)
        groups = draw.pick([g for g in (1, 2) if form.c % g == 0])
        self.conv = conv(form.c, form.c, kernel, stride, padding, more, groups, bias=draw.flag())
        self.form = form.to(**{a: stride * getattr(form, a) for a in axes})

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Convolve."""
        return self.conv(x)


class CausalConvolution(Block):
    """A 3-d convolution that looks back only: frames are padded in front, by zeros or by the first frame."""

    kinds = ("video",)

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        self.mode = draw.pick(("repeat", "expand", "zeros", "replicate"))
        self.time = draw.pick((3, 2))
        space = draw.pick((3, 1))
        self.conv = nn.Conv3d(form.c, form.c, (self.time, space, space), padding=(0, space // 2, space // 2))
        self.form, self.note = form, self.mode

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Pad, convolve."""
        before = self.time - 1
        if self.mode == "repeat":
            x = torch.cat([x[:, :, :1].repeat(1, 1, before, 1, 1), x], dim=2)
        elif self.mode == "expand":
            x = torch.cat([x[:, :, :1].expand(-1, -1, before, -1, -1), x], dim=2)
        else:
            pads = (0, 0, 0, 0, before, 0)
            x = F.pad(x, pads) if self.mode == "zeros" else F.pad(x, pads, mode="replicate")
        return self.conv(x)


def _group_norm(draw: Draw, channels: int, space: int) -> nn.GroupNorm:
    """A group norm of some groups, each of more than one entry."""
    groups = draw.divisor(channels)
    need(space * channels > groups)
    return nn.GroupNorm(groups, channels)


class Residual(Block):
    """The block of a UNet: norm, silu, convolution, the time embedding, norm, silu, convolution; added to its input."""

    kinds = CHANNELS_SECOND

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        conv, _, _ = CONVOLUTIONS[form.kind]
        out = channels(draw, form)
        space = form.numel // (form.shape[0] * form.c)
        self.norm1 = _group_norm(draw, form.c, space)
        self.conv1 = conv(form.c, out, 3, padding=1)
        self.embed = nn.Linear(8, out) if draw.flag() else None
        self.norm2 = _group_norm(draw, out, space)
        self.conv2 = conv(out, out, 3, padding=1)
        self.shortcut = conv(form.c, out, 1) if out != form.c else nn.Identity()
        self.scale = draw.pick((1.0, 2.0**0.5))
        self.form = form.to(c=out)

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Compute the branch and add."""
        h = self.conv1(F.silu(self.norm1(x)))
        if self.embed is not None and call.time is not None:
            vector = self.embed(F.silu(call.time)).repeat_interleave(x.shape[0] // call.time.shape[0], dim=0)
            h = h + vector[(..., *[None] * (x.dim() - 2))]
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.shortcut(x) + h) / self.scale


class Separable(Block):
    """A convolution of each channel by itself, then one across channels; an inverted bottleneck."""

    kinds = CHANNELS_SECOND

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        conv, _, _ = CONVOLUTIONS[form.kind]
        hidden = draw.pick((2, 1)) * form.c
        self.wide = conv(form.c, hidden, 1)
        self.deep = conv(hidden, hidden, 3, padding=1, groups=hidden)
        self.narrow = conv(hidden, form.c, 1, bias=False)
        self.form = form

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Widen, convolve, narrow, add."""
        return x + self.narrow(F.hardswish(self.deep(F.gelu(self.wide(x)))))


class Pool(Block):
    """Average or maximum over windows, or to a size; perhaps back up again and taken away."""

    kinds = ("frames", "video", "signal")

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        axes = CONVOLUTIONS[form.kind][2]
        need(min(sizes(form, axes)) > 1)
        self.rank, self.how = len(axes), draw.pick(("avg", "max", "adaptive", "global"))
        pools: list[Any] = [F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d]
        self.pool = pools[self.rank - 1]
        made = [n // 2 for n in sizes(form, axes)]
        if self.how == "global":
            self.form = form
        else:
            self.form = form.to(**dict(zip(axes, made, strict=True)))
        self.size, self.note = tuple(made), self.how

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Pool."""
        if self.how == "global":
            return x * torch.sigmoid(self.pool(x, 1))
        if self.how == "adaptive":
            return self.pool(x, self.size if self.rank > 1 else self.size[0])
        if self.how == "max":
            return (F.max_pool1d, F.max_pool2d, F.max_pool3d)[self.rank - 1](x, 2)
        return (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[self.rank - 1](x, 2)


class Resample(Block):
    """F.interpolate, by a factor or to a size, then perhaps a convolution."""

    kinds = CHANNELS_SECOND

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        axes = CONVOLUTIONS[form.kind][2]
        need(form.numel < 20_000)
        linear = {"video": "trilinear", "frames": "bilinear", "signal": "linear"}[form.kind]
        self.mode = draw.pick(("nearest", "nearest", linear, "area", "nearest-exact"))
        if form.kind == "frames" and draw.pick((False, False, False, True)):
            self.mode = "bicubic"
        factor = draw.pick((2, 0.5, 3)) if min(sizes(form, axes)) > 1 else 2
        made = [int(n * factor) for n in sizes(form, axes)]
        self.size = tuple(made) if self.mode == "area" or draw.flag() else None
        self.factor = float(factor)
        self.align = draw.flag() if self.mode in (linear, "bicubic") else None
        self.conv = CONVOLUTIONS[form.kind][0](form.c, form.c, 3, padding=1) if draw.flag() else None
        self.form = form.to(**dict(zip(axes, made, strict=True)))
        self.note = f"{self.mode} {self.size or self.factor} align={self.align}"

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Resample."""
        factor = None if self.size else self.factor
        y = F.interpolate(x, self.size, factor, self.mode, self.align)
        return y if self.conv is None else self.conv(y)


class Downsample(Block):
    """A strided convolution after padding to the right and below only, as in autoencoders."""

    kinds = ("frames",)

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        need(min(form.h, form.w) > 1)
        self.conv = nn.Conv2d(form.c, form.c, 3, 2)
        self.form = form.to(h=(form.h - 2) // 2 + 1, w=(form.w - 2) // 2 + 1)

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Pad, convolve."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Padded(Block):
    """F.pad in some mode, something small, and the borders cropped again."""

    kinds = CHANNELS_SECOND

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        axes = CONVOLUTIONS[form.kind][2]
        self.mode = draw.pick(("constant", "reflect", "replicate", "circular"))
        need(self.mode in ("constant", "replicate") or min(sizes(form, axes)) > 1)
        self.rank, self.value, self.crop = len(axes), draw.pick((0.0, 1.0)), draw.flag()
        self.form = form if self.crop else form.to(**{a: getattr(form, a) + 2 for a in axes})
        self.note = self.mode

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Pad, compute, crop."""
        pads = [1, 1] * self.rank
        y = F.pad(x, pads, value=self.value) if self.mode == "constant" else F.pad(x, pads, mode=self.mode)
        y = F.silu(y)
        return y[(slice(None), slice(None), *[slice(1, -1)] * self.rank)] if self.crop else y


class Blur(Block):
    """A fixed kernel from a buffer, expanded to all channels, through F.conv2d."""

    kinds = ("frames",)
    kernel: torch.Tensor

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("kernel", torch.outer(taps, taps)[None, None] / 16, persistent=draw.flag())
        self.form = form

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Blur."""
        kernel = self.kernel.to(x).expand(x.shape[1], 1, 3, 3)
        return F.conv2d(x, kernel, padding=1, groups=x.shape[1])


BLOCKS: tuple[type[Block], ...] = (
    *(Convolution, Residual, SameConvolution, Convolution, Separable, TransposedConvolution, CausalConvolution),
    *(Resample, Pool, Downsample, Padded, Blur, Residual),
)
