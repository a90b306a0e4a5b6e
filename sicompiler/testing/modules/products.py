"""Blocks that multiply and join: einsums of many equations, matrix products, skips over long distances."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sicompiler.testing.builder import Draw
from sicompiler.testing.modules.form import Block, BlockCall, ValueForm, need

EQUATIONS = {  # by layout: the value against a weight whose sizes are those of the letters
    "video": ("bcfhw,oc->bofhw", "bcfhw,gf->bcghw", "bcfhw,ow->bcfho", "bcfhw,cf->bcfhw", "bcfhw,dh->bcfdw"),
    "frames": ("nchw,oc->nohw", "nchw,hw->nchw", "nchw,cd->ndhw", "nchw,xh->ncxw"),
    "tokens": ("ntc,oc->nto", "ntc,st->nsc", "ntc,tc->ntc", "ntc,tcd->ntd"),
    "temporal": ("nfc,gf->ngc", "nfc,cd->nfd", "nfc,fc->nfc"),
    "sequence": ("bnc,oc->bno", "bnc,n->bnc"),
    "signal": ("ncf,cd->ndf", "ncf,cf->ncf"),
    "last": ("bfhwc,oc->bfhwo", "bfhwc,fg->bghwc", "bfhwc,hw->bfhwc"),
}


class Einsum(Block):
    """torch.einsum of the value and a weight."""

    kinds = tuple(EQUATIONS)

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        self.equation = draw.pick(EQUATIONS[form.kind])
        terms, result = self.equation.split("->")
        ours, theirs = terms.split(",")
        size = dict(zip(ours, form.shape, strict=True))
        fresh = [letter for letter in theirs if letter not in size]
        for letter in fresh:  # takes the place of the letter that is summed over
            size[letter] = size[ours[result.index(letter)]]
        self.weight = nn.Parameter(torch.randn([size[letter] for letter in theirs]) / 3)
        need(self.weight.numel() <= 4096)
        self.form, self.note = form, self.equation

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Multiply."""
        return torch.einsum(self.equation, x, self.weight)


class Gram(Block):
    """Products of a value with itself: a matrix of similarities that is applied to it again."""

    kinds = ("tokens", "temporal")

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        self.how = draw.pick(("matmul", "einsum", "channels", "three"))
        self.form, self.note = form, self.how

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Multiply twice."""
        if self.how == "matmul":
            return (x @ x.mT).softmax(-1) @ x
        if self.how == "einsum":
            return torch.einsum("bnm,bmc->bnc", torch.einsum("bnc,bmc->bnm", x, x).softmax(-1), x)
        if self.how == "channels":
            return x @ torch.einsum("bnc,bnd->bcd", x, x).softmax(-1)
        return torch.einsum("bnc,bmc,bmd->bnd", x, x, x) / (x.shape[1] * x.shape[2])


class Outer(Block):
    """Broadcast products: a value against its means over rows and columns."""

    kinds = ("frames", "video", "last")

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        self.how, self.form = draw.pick(("einsum", "broadcast", "batch")), form
        self.note = self.how

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Multiply."""
        rows, columns = x.mean(-1), x.mean(-2)
        if self.how == "einsum":
            return x + torch.einsum("...h,...w->...hw", rows, columns)
        if self.how == "broadcast":
            return x + rows[..., :, None] * columns[..., None, :]
        return x + torch.matmul(rows.unsqueeze(-1), columns.unsqueeze(-2))


class Skip(Block):
    """An earlier value of the same form added, multiplied or blended; however long ago it was made."""

    def __init__(self, draw: Draw, form: ValueForm, forms: list[ValueForm] | None = None) -> None:
        super().__init__()
        alike = [i for i, other in enumerate(forms or ()) if other == form]
        need(bool(alike))
        self.source = draw.pick(alike)
        self.how = draw.pick(("add", "iadd", "mul", "lerp", "sub"))
        self.form, self.note = form, f"{self.how} {self.source}"

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Join."""
        other = call.earlier[self.source]
        if self.how == "add":
            return x + other
        if self.how == "iadd":
            y = x.clone()
            y += other
            return y
        if self.how == "mul":
            return x * torch.sigmoid(other)
        return torch.lerp(x, other, 0.25) if self.how == "lerp" else other - x


class Concatenate(Block):
    """An earlier value joined along the channels, then perhaps narrowed to as many as before."""

    def __init__(self, draw: Draw, form: ValueForm, forms: list[ValueForm] | None = None) -> None:
        super().__init__()
        alike = [i for i, other in enumerate(forms or ()) if other.to(c=form.c) == form]
        need(bool(alike) and form.c <= 16)
        self.source = draw.pick(alike)
        more = (forms or [])[self.source].c
        self.dim, self.first = form.channel_dim, draw.flag()
        self.lin = nn.Linear(form.c + more, form.c) if draw.flag() else None
        self.form = form if self.lin is not None else form.to(c=form.c + more)
        self.note = f"with {self.source}"

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Join."""
        other = call.earlier[self.source]
        y = torch.cat([other, x] if self.first else [x, other], dim=self.dim)
        if self.lin is None:
            return y
        return self.lin(y.movedim(self.dim, -1)).movedim(-1, self.dim)


BLOCKS: tuple[type[Block], ...] = (Einsum, Skip, Gram, Concatenate, Outer, Skip, Einsum)
