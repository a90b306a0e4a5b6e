"""Blocks that index: slices written in place, unbind and stack, gathers, masks, running sums, loops over frames."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sicompiler.testing.builder import Draw
from sicompiler.testing.modules.form import Block, BlockCall, ValueForm, long_dims, need


class WriteSlices(Block):
    """A copy whose slices are written in place: every other entry, the first ones, a border, a channel."""

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        dims = long_dims(form)
        self.dim = draw.pick(dims)
        self.how = draw.pick(("every other", "first", "last", "one", "copy_", "whole", "zeros", "two dims"))
        self.form, self.note = form, f"{self.how} of dim {self.dim}"

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Write."""
        at = [slice(None)] * x.dim()
        y = x.clone()
        if self.how == "every other":
            at[self.dim] = slice(None, None, 2)
            y[tuple(at)] += 0.5
        elif self.how == "first":
            at[self.dim] = slice(0, (x.shape[self.dim] + 1) // 2)
            y[tuple(at)] = y[tuple(at)].tanh()
        elif self.how == "last":
            at[self.dim] = slice(-1, None)
            y[tuple(at)].mul_(2.0).add_(x[tuple(at)])
        elif self.how == "one":
            index: list[slice | int] = [*at]
            index[self.dim] = 1
            y[tuple(index)] = 0
        elif self.how == "copy_":
            y.narrow(self.dim, 0, 1).copy_(x.narrow(self.dim, x.shape[self.dim] - 1, 1))
        elif self.how == "two dims":
            y[:, 1:] = x[:, :-1] if x.shape[1] > 1 else x[:, 1:]
            y[..., :1] *= 0.5
        elif self.how == "zeros":
            y = torch.zeros_like(x)
            at[self.dim] = slice(1, None)
            y[tuple(at)] = x.narrow(self.dim, 0, x.shape[self.dim] - 1)
        else:
            y = y.mul_(0.5).add_(x).clamp_(-3, 3)
        return y


class ShiftFrames(Block):
    """Some channels of the frame before, some of the one after: the temporal shift module."""

    kinds = ("video", "last")

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        need(form.f > 1 and form.c >= 4)
        self.last, self.how = form.kind == "last", draw.pick(("written", "cat", "roll"))
        self.form, self.note = form, self.how

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Shift."""
        y = x.permute(0, 4, 1, 2, 3) if self.last else x
        fold = y.shape[1] // 4
        if self.how == "written":
            out = torch.zeros_like(y)
            out[:, :fold, :-1] = y[:, :fold, 1:]
            out[:, fold : 2 * fold, 1:] = y[:, fold : 2 * fold, :-1]
            out[:, 2 * fold :] = y[:, 2 * fold :]
        elif self.how == "cat":
            back = torch.cat([y[:, :fold, 1:], y[:, :fold, -1:]], dim=2)
            out = torch.cat([back, y[:, fold:]], dim=1)
        else:
            out = torch.cat([y[:, :fold].roll(1, 2), y[:, fold:]], 1)
        return out.permute(0, 2, 3, 4, 1) if self.last else out


class Recurrent(Block):
    """A loop over the frames in Python: each sees what was made of the one before."""

    kinds = ("video", "temporal", "last")

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        need(1 < form.f <= 6)
        self.dim = {"video": 2, "temporal": 1, "last": 1}[form.kind]
        self.how = draw.pick(("stack", "cat", "written", "sum"))
        self.decay = nn.Parameter(torch.tensor(0.5))
        self.form, self.note = form, self.how

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Loop."""
        if self.how == "cat":
            state, made = torch.zeros_like(x.narrow(self.dim, 0, 1)), []
            for part in x.split(1, self.dim):
                state = torch.tanh(part + self.decay * state)
                made.append(state)
            return torch.cat(made, self.dim)
        frames = x.unbind(self.dim)
        if self.how == "written":
            out = torch.empty_like(x)
            for i, frame in enumerate(frames):
                out.select(self.dim, i).copy_(frame * self.decay + frames[i - 1])
            return out
        if self.how == "sum":
            total = frames[0]
            for frame in frames[1:]:
                total = total + frame * self.decay
            return x - total.unsqueeze(self.dim)
        state, made = frames[0], [frames[0]]
        for frame in frames[1:]:
            state = state * self.decay + frame
            made.append(state)
        return torch.stack(made, dim=self.dim)


class Differences(Block):
    """Differences of neighbours: of frames, rows or channels, padded to the old size."""

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        dims = long_dims(form)
        self.dim, self.how = draw.pick(dims), draw.pick(("diff", "slices", "narrow"))
        self.form, self.note = form, f"{self.how} of dim {self.dim}"

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Subtract."""
        n = x.shape[self.dim]
        first = x.narrow(self.dim, 0, 1)
        if self.how == "diff":
            return torch.cat([first, x.diff(dim=self.dim)], self.dim)
        if self.how == "narrow":
            return torch.cat([x.narrow(self.dim, 1, n - 1) - x.narrow(self.dim, 0, n - 1), first], self.dim)
        at: list[Any] = [slice(None)] * x.dim()
        at[self.dim] = slice(0, None, 2)
        even = x[tuple(at)]
        at[self.dim] = slice(1, None, 2)
        odd = x[tuple(at)]
        return torch.cat([even * 2, odd.neg()], dim=self.dim)


class Running(Block):
    """Running sums, products and maxima along a dim."""

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        self.dim, self.how = draw.pick(range(len(form.shape))), draw.pick(("cumsum", "cummax", "logcumsumexp", "mean"))
        self.form, self.note = form, f"{self.how} of dim {self.dim}"

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Accumulate."""
        if self.how == "cumsum":
            return x.cumsum(self.dim)
        if self.how == "cummax":
            return x.cummax(self.dim).values
        if self.how == "logcumsumexp":
            return torch.logcumsumexp(x, self.dim)
        steps = torch.arange(1, x.shape[self.dim] + 1, device=x.device, dtype=x.dtype)
        return x.cumsum(self.dim) / steps.view([-1 if d == self.dim else 1 for d in range(x.dim())])


class Pick(Block):
    """Entries by constant indices: index_select, advanced indexing, gather; largest ones by topk or sort."""

    index: torch.Tensor

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        self.dim = draw.pick(range(len(form.shape)))
        self.register_buffer("index", torch.randperm(form.shape[self.dim]))
        self.how = draw.pick(("index_select", "advanced", "gather", "take_along_dim", "sort", "topk"))
        self.form, self.note = form, f"{self.how} of dim {self.dim}"

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Pick."""
        if self.how == "index_select":
            return x.index_select(self.dim, self.index)
        if self.how == "advanced":
            at: tuple[Any, ...] = (*[slice(None)] * self.dim, self.index)
            return x[at]
        if self.how == "sort":
            return torch.sort(x, dim=self.dim).values
        if self.how == "topk":
            kept, _ = torch.topk(x, 1, dim=self.dim)
            return x - kept
        shape = [-1 if d == self.dim else 1 for d in range(x.dim())]
        index = self.index.view(shape).expand(x.shape)
        return torch.gather(x, self.dim, index) if self.how == "gather" else x.take_along_dim(index, self.dim)


class Masked(Block):
    """Entries by a mask: where, masked_fill, tril, a threshold; of a buffer or made on the spot."""

    mask: torch.Tensor

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        self.register_buffer("mask", torch.rand(form.shape[-2:]) < 0.6)
        self.how = draw.pick(("where", "fill", "tril", "threshold", "positions", "multiply"))
        self.form, self.note = form, self.how

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Mask."""
        if self.how == "where":
            return torch.where(self.mask, x, torch.zeros_like(x))
        if self.how == "fill":
            return x.masked_fill(self.mask, 0.0)
        if self.how == "tril":
            return x.tril()
        if self.how == "threshold":
            return torch.where(x > 0.37, x, x * 0.1)
        if self.how == "multiply":
            return x * self.mask.to(x.dtype)
        even = torch.arange(x.shape[-1], device=x.device) % 2 == 0
        return torch.where(even, x, -x)


class Unstack(Block):
    """Frames or channels taken apart, treated on their own and stacked in another order."""

    kinds = ("video", "last", "temporal")

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        self.dim = draw.pick(range(len(form.shape)))
        need(form.shape[self.dim] <= 8)
        self.how, self.form = draw.pick(("reverse", "pairs", "one")), form
        self.note = f"{self.how} of dim {self.dim}"

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Take apart and stack."""
        parts = list(torch.unbind(x, self.dim))
        if self.how == "reverse":
            return torch.stack(parts[::-1], dim=self.dim)
        if self.how == "pairs":
            return torch.stack([a + b for a, b in zip(parts, parts[1:] + parts[:1], strict=True)], self.dim)
        parts[0] = torch.sigmoid(parts[0])
        return torch.stack(parts, self.dim)


class Chunked(Block):
    """A linear layer applied to one chunk of the rows at a time, joined by cat: chunked feed-forward."""

    kinds = ("tokens", "sequence")

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        self.net, self.chunks = (
            nn.Sequential(nn.Linear(form.c, 2 * form.c), nn.GELU(), nn.Linear(2 * form.c, form.c)),
            2,
        )
        self.dim, self.form = draw.pick((1, 0)), form

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Compute chunk by chunk."""
        return torch.cat([self.net(part) for part in x.chunk(2, self.dim)], dim=self.dim)


BLOCKS: tuple[type[Block], ...] = (
    *(WriteSlices, ShiftFrames, Recurrent, Running, Pick, Masked, Differences, Unstack, Chunked, WriteSlices),
)
