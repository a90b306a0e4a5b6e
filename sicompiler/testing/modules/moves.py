"""Blocks that move values about: layouts, rolls, windows, pixel shuffles, repeats."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sicompiler.testing.builder import Draw
from sicompiler.testing.modules.form import CHANNELS_SECOND, KINDS, Block, BlockCall, ValueForm, long_dims, need


class Rearrange(Block):
    """Another layout, as authors write it: by reshape and permute, by unflatten, movedim and flatten, with copies."""

    def __init__(self, draw: Draw, form: ValueForm, kind: str | None = None) -> None:
        super().__init__()
        self.before = form
        self.form = form.to(kind=kind if kind is not None else draw.pick(tuple(KINDS)))
        self.style = draw.pick(("reshape", "contiguous", "flatten", "movedim"))
        self.note = self.style

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Rearrange."""
        source, target = KINDS[self.before.kind], KINDS[self.form.kind]
        apart = [getattr(self.before, letter) for letter in "".join(source)]
        if self.style == "flatten":
            for dim in reversed(range(len(source))):
                if len(source[dim]) > 1:
                    x = x.unflatten(dim, [getattr(self.before, letter) for letter in source[dim]])
        elif len(apart) != x.dim():
            x = x.reshape(apart) if self.style != "contiguous" else x.contiguous().view(apart)
        order = ["".join(source).index(letter) for letter in "".join(target)]
        x = x.movedim(order, list(range(len(order)))) if self.style == "movedim" else x.permute(order)
        if self.style == "flatten":
            for dim in range(len(target)):
                if len(target[dim]) > 1:
                    x = x.flatten(dim, dim + len(target[dim]) - 1)
            return x
        return x.contiguous().view(self.form.shape) if self.style == "contiguous" else x.reshape(self.form.shape)


class Roll(Block):
    """torch.roll over one, two or all dims, added to what was there or alone."""

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        dims = long_dims(form)
        self.dims = tuple(sorted({draw.pick(dims), draw.pick(dims)}))
        self.shifts = tuple(draw.pick((1, -1, 2)) for _ in self.dims)
        self.flat, self.adds = draw.pick((False, False, False, True)), draw.flag()
        self.form, self.note = form, "flat" if self.flat else f"{self.shifts} over {self.dims}"

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Roll."""
        y = torch.roll(x, 3) if self.flat else torch.roll(x, self.shifts, self.dims)
        return x + y if self.adds else y


class PixelShuffle(Block):
    """Channels become pixels, or pixels channels, with a convolution of size one around it."""

    kinds = ("frames",)

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        self.down = draw.flag()
        self.module = draw.flag()
        if self.down:
            need(form.h % 2 == 0 and form.w % 2 == 0)
            self.conv = nn.Conv2d(4 * form.c, form.c, 1)
            self.form = form.to(h=form.h // 2, w=form.w // 2)
        else:
            need(form.numel < 20_000)
            self.conv = nn.Conv2d(form.c, 4 * form.c, 1)
            self.form = form.to(h=2 * form.h, w=2 * form.w)
        self.note = f"down={self.down} module={self.module}"

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Shuffle."""
        n, c, h, w = x.shape
        if self.down:
            if self.module:
                return self.conv(F.pixel_unshuffle(x, 2))
            y = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(n, 4 * c, h // 2, w // 2)
            return self.conv(y)
        y = self.conv(x)
        if self.module:
            return F.pixel_shuffle(y, 2)
        return y.reshape(n, c, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c, 2 * h, 2 * w)


class Patches(Block):
    """Patches become tokens and pixels again, with a linear layer between; by unfold or by reshape."""

    kinds = ("frames",)

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        need(form.h % 2 == 0 and form.w % 2 == 0)
        self.lin, self.how = nn.Linear(4 * form.c, 4 * form.c), draw.pick(("reshape", "unfold", "nn"))
        self.form, self.note = form, self.how

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Take apart, project, put together."""
        n, c, h, w = x.shape
        if self.how == "nn":
            columns = F.unfold(x, 2, stride=2)
            return F.fold(self.lin(columns.transpose(1, 2)).transpose(1, 2), (h, w), 2, stride=2)
        if self.how == "unfold":
            y = x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(n, h * w // 4, 4 * c)
        else:
            y = torch.einsum("nchpwq->nhwcpq", x.reshape(n, c, h // 2, 2, w // 2, 2)).reshape(n, -1, 4 * c)
        y = self.lin(y).view(n, h // 2, w // 2, c, 2, 2)
        return y.permute(0, 3, 1, 4, 2, 5).reshape(n, c, h, w)


class ShuffleChannels(Block):
    """Channels of all groups interleaved, flipped, or rotated by pieces."""

    kinds = CHANNELS_SECOND

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        need(form.c % 2 == 0)
        self.how, self.form = draw.pick(("shuffle", "flip", "cat")), form
        self.note = self.how

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Shuffle."""
        if self.how == "shuffle":
            return x.unflatten(1, (2, -1)).transpose(1, 2).reshape(x.shape)
        if self.how == "flip":
            return x + x.flip(1)
        return torch.cat(list(reversed(x.chunk(2, 1))), dim=1)


class Mirror(Block):
    """Flips of space or time, rows and columns exchanged, and the mean of both ways."""

    kinds = ("frames", "video", "last")

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        self.dims = draw.pick(((-1,), (-2, -1), (2,)))
        self.exchanges = draw.flag() and form.h == form.w and form.kind != "last"
        self.form, self.note = form, f"{self.dims} exchanges={self.exchanges}"

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Mirror."""
        if self.exchanges:
            return 0.5 * (x + x.transpose(-1, -2))
        return (x + torch.flip(x, self.dims)) / 2


class Repeat(Block):
    """Frames or channels repeated: by repeat, expand or repeat_interleave; joined again by a mean or kept."""

    kinds = ("video", "frames")

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        self.how, self.keeps = draw.pick(("repeat", "expand", "interleave", "stack", "tile")), draw.flag()
        self.keeps = self.keeps and form.kind == "video" and form.f <= 6
        self.form, self.note = form.to(f=2 * form.f) if self.keeps else form, f"{self.how} keeps={self.keeps}"
        self.gain = nn.Parameter(torch.tensor([1.0, 0.5]))

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Repeat."""
        dim = 2 if self.keeps else 1
        if self.how == "repeat":
            y = x.repeat(*[2 if d == dim else 1 for d in range(x.dim())])
        elif self.how == "tile":
            y = torch.tile(x, [2 if d == dim else 1 for d in range(x.dim())])
        elif self.how == "expand":
            y = x.unsqueeze(dim).expand(*[-1 if d != dim else 2 for d in range(x.dim() + 1)]).flatten(dim, dim + 1)
        elif self.how == "interleave":
            y = x.repeat_interleave(2, dim=dim)
        else:
            y = torch.stack([x, x * 0.5], dim=dim + 1).flatten(dim, dim + 1)
        if self.keeps:
            return y
        return (y.unflatten(1, (2, -1)) * self.gain.view(1, 2, *[1] * (x.dim() - 1))).sum(1)


class OtherLayout(Block):
    """A copy of its input in another memory format, or a dense one."""

    kinds = ("frames", "video", "tokens")

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        self.how, self.form = draw.pick(("contiguous", "channels last", "twice")), form
        self.note = self.how

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Copy, or nothing."""
        if self.how == "channels last" and x.dim() > 3:
            return x.to(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
        if self.how == "twice":
            return x.transpose(0, 1).contiguous().transpose(0, 1)
        return x.contiguous()


BLOCKS: tuple[type[Block], ...] = (
    *(Rearrange, Roll, PixelShuffle, Patches, ShuffleChannels, Mirror, Repeat, OtherLayout, Rearrange),
)
