"""Blocks that attend."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sicompiler.testing.builder import Draw
from sicompiler.testing.modules.form import Block, BlockCall, ValueForm, need


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    """Turn pairs of channels that lie half the width apart, as Llama does."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def rotate_pairs(x: torch.Tensor) -> torch.Tensor:
    """Turn neighbouring channels, as GPT-J and Flux do."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([-second, first], dim=-1).flatten(-2)


def rotate_complex(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Turn neighbouring channels by a product of complex numbers, as Wan does."""
    turned = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(turned).flatten(-2)


def rotate_written(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn neighbouring channels, written into an empty tensor by strided slices."""
    out = torch.empty_like(x)
    first, second = x[..., 0::2], x[..., 1::2]
    out[..., 0::2] = first * cos - second * sin
    out[..., 1::2] = first * sin + second * cos
    return out


def turn(x: torch.Tensor, how: str) -> torch.Tensor:
    """Rotary embedding of [batch, heads, tokens, width]."""
    positions = torch.arange(x.shape[-2], dtype=x.dtype, device=x.device)
    rates = 1.0 / 10.0 ** (torch.arange(0, x.shape[-1], 2, dtype=x.dtype, device=x.device) / x.shape[-1])
    angles = torch.outer(positions, rates)
    if how == "complex":
        return rotate_complex(x, angles)
    if how == "written":
        return rotate_written(x, angles.cos(), angles.sin())
    if how == "pairs":
        wide = angles.repeat_interleave(2, dim=-1)
        return x * wide.cos() + rotate_pairs(x) * wide.sin()
    wide = torch.cat([angles, angles], dim=-1)
    return x * wide.cos() + rotate_half(x) * wide.sin()


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, how: str, mask: torch.Tensor | None) -> torch.Tensor:
    """Attention of [batch, heads, tokens, width], as authors write it."""
    scale = q.shape[-1] ** -0.5
    if how == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if how == "causal":
        return F.scaled_dot_product_attention(q, k, v, is_causal=mask is None and q.shape[-2] == k.shape[-2])
    if how == "einsum":
        scores = torch.einsum("bhqd,bhkd->bhqk", q * scale, k)
    elif how == "bmm":
        flat = [t.flatten(0, 1) for t in (q, k, v)]
        weights = torch.softmax(torch.bmm(flat[0], flat[1].transpose(-1, -2)) * scale, -1)
        return torch.bmm(weights, flat[2]).view(*q.shape[:3], v.shape[-1])
    elif how == "baddbmm":
        flat = [t.reshape(-1, *t.shape[2:]) for t in (q, k, v)]
        empty = torch.zeros(flat[0].shape[0], q.shape[-2], k.shape[-2], dtype=q.dtype, device=q.device)
        weights = torch.baddbmm(empty, flat[0], flat[1].mT, beta=0, alpha=scale).softmax(-1)
        return torch.bmm(weights, flat[2]).reshape(*q.shape[:3], v.shape[-1])
    else:
        scores = (q @ k.transpose(-2, -1)) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(dim=-1)
    return torch.einsum("bhqk,bhkd->bhqd", weights, v) if how == "einsum" else weights @ v


HOW = ("sdpa", "matmul", "einsum", "bmm", "causal", "baddbmm", "sdpa")


class SelfAttention(Block):
    """Self-attention in heads: how q, k and v are made and cut, rotary positions, a mask, how it is written."""

    kinds = ("tokens", "temporal", "sequence")
    mask: torch.Tensor | None

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        n, c = form.shape[-2], form.c
        self.heads = draw.divisor(c)
        self.how, self.cut = draw.pick(HOW), draw.pick(("three", "chunk", "unbind", "permute", "split", "rearrange"))
        width = c // self.heads
        self.rope = draw.pick((None, None, "half", "pairs", "complex", "written")) if width % 2 == 0 else None
        self.to_qkv = nn.Linear(c, 3 * c, bias=draw.flag())
        self.norm_q = nn.RMSNorm(width) if draw.flag() else None
        self.out = nn.Linear(c, c) if draw.flag() else nn.Identity()
        kind = draw.pick((None, None, "bool", "float", "computed"))
        if self.how in ("bmm", "baddbmm", "causal"):
            kind = None
        self.computes_mask = kind == "computed"
        allowed = torch.rand(n, n) < 0.7
        allowed.fill_diagonal_(True)
        self.register_buffer("mask", {"bool": allowed, "float": torch.randn(n, n)}.get(str(kind)))
        self.form, self.note = form, f"{self.how} heads={self.heads} cut={self.cut} rope={self.rope} mask={kind}"

    def cut_heads(self, x: torch.Tensor) -> Any:
        """Queries, keys and values: [batch, heads, tokens, width]."""
        b, n, c = x.shape
        width = c // self.heads
        if self.cut == "three":
            weights = self.to_qkv.weight.chunk(3)
            biases = self.to_qkv.bias.chunk(3) if self.to_qkv.bias is not None else (None, None, None)
            made = [F.linear(x, w, v) for w, v in zip(weights, biases, strict=True)]
            return tuple(t.view(b, -1, self.heads, width).transpose(1, 2) for t in made)
        qkv = self.to_qkv(x)
        if self.cut == "chunk":
            return tuple(t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in qkv.chunk(3, dim=-1))
        if self.cut == "split":
            return tuple(t.reshape(b, n, self.heads, width).permute(0, 2, 1, 3) for t in qkv.split(c, dim=-1))
        if self.cut == "permute":
            q, k, v = qkv.reshape(b, n, 3, self.heads, width).permute(2, 0, 3, 1, 4)
            return q, k, v
        if self.cut == "rearrange":
            parts = qkv.reshape(b, n, 3, self.heads, width)
            return tuple(parts[:, :, i].transpose(1, 2).contiguous() for i in range(3))
        return qkv.view(b, n, 3, self.heads, width).transpose(1, 3).unbind(dim=2)

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Attend and add."""
        q, k, v = self.cut_heads(x)
        if self.norm_q is not None:
            q, k = self.norm_q(q), self.norm_q(k)
        if self.rope is not None:
            q, k = turn(q, self.rope), turn(k, self.rope)
        mask = self.mask
        if self.computes_mask:
            positions = torch.arange(x.shape[1], device=x.device)
            mask = (positions[:, None] - positions[None, :]).abs() <= 2
        y = attend(q, k, v, self.how, mask)
        return x + self.out(y.transpose(1, 2).reshape(x.shape))


class CrossAttention(Block):
    """Attention to the prompt, which every frame sees."""

    kinds = ("tokens", "sequence")

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        self.heads, self.how, self.expands = draw.divisor(form.c), draw.pick(HOW), draw.flag()
        self.to_q, self.to_kv = nn.Linear(form.c, form.c, bias=False), nn.Linear(8, 2 * form.c, bias=False)
        self.out = nn.Linear(form.c, form.c)
        self.form, self.note = form, f"{self.how} heads={self.heads}"

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Attend and add."""
        context = call.context if call.context is not None else x.new_ones(1, 3, 8)
        n = x.shape[0] // context.shape[0]
        if self.expands:
            context = context.unsqueeze(1).expand(-1, n, -1, -1).reshape(x.shape[0], 3, 8)
        else:
            context = context.repeat_interleave(n, 0)
        parts = [self.to_q(x), *self.to_kv(context).chunk(2, dim=-1)]
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in parts)
        y = attend(q, k, v, self.how, None)
        return x + self.out(y.transpose(1, 2).flatten(2))


class WindowAttention(Block):
    """Attention within windows of rows and columns, shifted by a roll, as Swin does; sizes are padded if they must."""

    kinds = ("last",)
    bias: torch.Tensor

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        self.window, self.shift, self.how = draw.pick((2, 3)), draw.pick((0, 1)), draw.pick(HOW[:4])
        self.heads = draw.divisor(form.c)
        self.qkv, self.out = nn.Linear(form.c, 3 * form.c), nn.Linear(form.c, form.c)
        count = self.window**2
        self.bias = nn.Parameter(torch.randn(self.heads, count, count) / 4)
        need(form.h >= self.window and form.w >= self.window)
        self.form, self.note = form, f"{self.how} window={self.window} shift={self.shift}"

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Roll, partition, attend, put together, roll back, add."""
        size, (b, f, h, w, c) = self.window, x.shape
        y = x.flatten(0, 1)
        down, right = -h % size, -w % size
        if down or right:
            y = F.pad(y, (0, 0, 0, right, 0, down))
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), dims=(1, 2))
        rows, columns = y.shape[1] // size, y.shape[2] // size
        y = y.view(-1, rows, size, columns, size, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, size * size, c)
        q, k, v = self.qkv(y).reshape(y.shape[0], size * size, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.bias[None] if self.how in ("sdpa", "matmul", "einsum") else None
        y = attend(q, k, v, self.how, bias)
        y = self.out(y.transpose(1, 2).reshape(-1, size, size, c))
        y = y.view(b * f, rows, columns, size, size, c).transpose(2, 3).reshape(b * f, rows * size, columns * size, c)
        if self.shift:
            y = torch.roll(y, shifts=(self.shift, self.shift), dims=(1, 2))
        return x + y[:, :h, :w].reshape(b, f, h, w, c)


class LinearAttention(Block):
    """Attention without a matrix of scores: keys and values meet first, by einsum or matmul."""

    kinds = ("tokens", "temporal", "sequence")

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        self.heads, self.how = draw.divisor(form.c), draw.pick(("softmax", "relu", "elu"))
        self.qkv = nn.Linear(form.c, 3 * form.c, bias=False)
        self.form, self.note = form, f"{self.how} heads={self.heads}"

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Attend and add."""
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in self.qkv(x).chunk(3, -1))
        if self.how == "softmax":
            state = torch.einsum("bnhd,bnhe->bhde", k.softmax(dim=1), v)
            return x + torch.einsum("bnhd,bhde->bnhe", q.softmax(dim=-1), state).flatten(2)
        activation = F.relu if self.how == "relu" else F.elu
        q, k, v = ((activation(q) + 1).transpose(1, 2), (activation(k) + 1).transpose(1, 2), v.transpose(1, 2))
        total = torch.einsum("bhnd,bhd->bhn", q, k.sum(dim=2))
        y = (q @ (k.transpose(-2, -1) @ v)) / total.unsqueeze(-1)
        return x + y.transpose(1, 2).flatten(2)


class MultiHead(Block):
    """nn.MultiheadAttention, without gradients and with its weights or without."""

    kinds = ("tokens", "temporal")

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(form.c, draw.divisor(form.c), batch_first=True)
        self.weights = draw.flag()
        self.form, self.note = form, f"need_weights={self.weights}"

    def forward(self, x: torch.Tensor, call: BlockCall) -> Any:
        """Attend and add."""
        y, weights = self.attn(x, x, x, need_weights=self.weights)
        return x + y if weights is None else x + y * weights.mean(-1, keepdim=True)


BLOCKS: tuple[type[Block], ...] = (
    *(SelfAttention, CrossAttention, WindowAttention, SelfAttention, LinearAttention, MultiHead, SelfAttention),
)
