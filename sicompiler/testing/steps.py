"""The steps a random model grows by: each takes a value and makes another, or gives up (None) where it can't."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from sicompiler.testing.builder import Builder, Value
from sicompiler.testing.layouts import Layout, broadcast

Step = Callable[[Builder, Value], Value | None]

CHANNELS_LAST = ("(b f) (h w) c", "(b h w) f c", "b (f h w) c", "b f (h w) c", "b h w f c", "(f h w) b c")
CHANNELS_SECOND = {
    3: ("(b h w) c f",),
    4: ("(b f) c h w", "(f b) c h w", "(b h) c f w", "b c (f h) w"),
    5: ("b c f h w",),
}


def _channels_last(b: Builder, v: Value) -> Value:
    return v if v.layout.groups[-1] == "c" else v.moved(b.layout(CHANNELS_LAST))


def _channels_second(b: Builder, v: Value, ranks: tuple[int, ...] = (4, 5, 3)) -> Value:
    if v.layout.groups[1] == "c" and len(v.layout.groups) in ranks:
        return v
    return v.moved(b.layout(CHANNELS_SECOND[b.draw.pick(ranks)]))


def _linear(b: Builder, x: Any, size: int, out: int, *, bias: bool = True) -> Any:
    return F.linear(x, b.weight(out, size, fan_in=size), b.near(0, out) if bias else None)


def move(b: Builder, v: Value) -> Value:
    """Another layout."""
    moved = v.moved(b.layout())
    return moved.like(moved.x.contiguous()) if b.draw.flag() else moved


def activation(b: Builder, v: Value) -> Value:
    """One pointwise operator."""
    options: tuple[Callable[[Any], Any], ...] = (
        F.silu,
        F.gelu,
        torch.tanh,
        torch.sigmoid,
        lambda x: x * 0.5,
        lambda x: 1.0 + x,
        lambda x: x / 1.25,
    )
    f = b.draw.pick(options)
    return v.like(f(v.x))


def clamped(b: Builder, v: Value) -> Value:
    """A comparison and a choice, continuous."""
    return v.like(torch.where(v.x > 0, v.x, v.x * 0.1))


def normalize_groups(b: Builder, v: Value) -> Value:
    """GroupNorm, in 3 to 5 dims."""
    v = _channels_second(b, v)
    c = v.size("c")
    groups = b.draw.divisor(c)
    weight, bias = (b.near(1, c), b.near(0, c)) if b.draw.flag() else (None, None)
    x = F.group_norm(v.x, groups, weight, bias, 1e-3)
    return v.like(F.silu(x) if b.draw.flag() else x)


def normalize_layer(b: Builder, v: Value) -> Value:
    """LayerNorm over the channels."""
    v, c = _channels_last(b, v), v.size("c")
    weight, bias = (b.near(1, c), b.near(0, c)) if b.draw.flag() else (None, None)
    return v.like(F.layer_norm(v.x, (c,), weight, bias, 1e-3))


def convolution(b: Builder, v: Value) -> Value:
    """A convolution in 1 to 3 dims; kernel 1, kernel 3, or along the first of the dims only."""
    v = _channels_second(b, v)
    count, c, out = len(v.layout.groups) - 2, v.size("c"), b.draw.pick(b.scale.channels)
    kernel = b.draw.pick(((1,) * count, (3,) * count, (3, *(1,) * (count - 1))))
    weight = b.weight(out, c, *kernel, fan_in=c * torch.Size(kernel).numel())
    bias = b.near(0, out) if b.draw.flag() else None
    f = (F.conv1d, F.conv2d, F.conv3d)[count - 1]
    return v.like(f(v.x, weight, bias, padding=tuple(k // 2 for k in kernel)), c=out)


def causal_convolution(b: Builder, v: Value) -> Value:
    """A convolution over the frames that looks back only: padding in front, of zeros or of the first frame."""
    v = v.moved(Layout.of("b c f h w"))
    c, kernel = v.size("c"), b.draw.pick((3, 2))
    weight = b.weight(c, c, kernel, 3, 3, fan_in=9 * kernel * c)
    # Contiguous: of some permuted tensors, kernels and fake tensors disagree about the layout of the padded one.
    x = v.x.contiguous()
    if b.draw.flag():
        x = F.pad(x, (0, 0, 0, 0, kernel - 1, 0), mode="replicate")
        return v.like(F.conv3d(x, weight, padding=(0, 1, 1)))
    return v.like(F.conv3d(F.pad(x, (1, 1, 1, 1, kernel - 1, 0)), weight, b.near(0, c)))


def residual_block(b: Builder, v: Value) -> Value:
    """Two convolutions with activations around a residual, as VAEs stack them; without a norm, halos add up."""
    v = v.moved(Layout.of("(b f) c h w"))
    c, dilation = v.size("c"), b.draw.pick((1, 2))
    x = F.silu(F.conv2d(F.silu(v.x), b.weight(c, c, 3, 3, fan_in=9 * c), padding="same", dilation=dilation))
    return v.like(v.x + F.conv2d(x, b.weight(c, c, 3, 5, fan_in=15 * c), b.near(0, c), padding=(1, 2)))


def smooth(b: Builder, v: Value) -> Value:
    """Pooling with overlapping windows: the mean, or the largest entry."""
    v = v.moved(Layout.of("(b f) c h w"))
    f: Callable[..., Any] = F.avg_pool2d if b.draw.flag() else F.max_pool2d
    return v.like(f(v.x, 3, stride=1, padding=1))


def downsample(b: Builder, v: Value) -> Value | None:
    """A strided convolution of each frame."""
    v = v.moved(Layout.of("(b f) c h w"))
    c, h, w = v.size("c"), v.size("h"), v.size("w")
    if b.draw.flag():
        x = F.conv2d(v.x, b.weight(c, c, 3, 3, fan_in=9 * c), None, stride=2, padding=1)
        return v.like(x, h=(h + 1) // 2, w=(w + 1) // 2)
    if h > 1 and w > 1 and b.draw.flag():
        x = F.conv2d(F.pad(v.x.contiguous(), (0, 1, 0, 1)), b.weight(c, c, 3, 3, fan_in=9 * c), b.near(0, c), stride=2)
        return v.like(x, h=h // 2, w=w // 2)
    if h % 2 or w % 2:
        return None
    return v.like(F.avg_pool2d(v.x, 2), h=h // 2, w=w // 2)


def upsample(b: Builder, v: Value) -> Value:
    """Nearest upsampling of each frame, by a factor or to a size."""
    video = v.layout.groups == ("b", "c", "f", "h", "w")
    v = v if video else v.moved(Layout.of("(b f) c h w"))
    h, w = 2 * v.size("h"), 2 * v.size("w")
    if h * w > 64 * 64:
        return v
    if video:
        return v.like(F.interpolate(v.x, scale_factor=(1.0, 2.0, 2.0), mode="nearest"), h=h, w=w)
    if b.draw.flag():
        return v.like(F.interpolate(v.x, size=(h, w), mode="nearest"), h=h, w=w)
    return v.like(F.interpolate(v.x, scale_factor=2.0, mode="nearest"), h=h, w=w)


def projection(b: Builder, v: Value) -> Value:
    """A linear layer over the channels."""
    v, out = _channels_last(b, v), b.draw.pick(b.scale.channels)
    return v.like(_linear(b, v.x, v.size("c"), out, bias=b.draw.flag()), c=out)


def feed_forward(b: Builder, v: Value) -> Value:
    """GEGLU: a linear layer whose halves gate each other, then another, with a residual."""
    v, c = _channels_last(b, v), v.size("c")
    hidden = 2 * c
    halves = _linear(b, v.x, c, 2 * hidden).chunk(2, dim=-1)
    return v.like(v.x + _linear(b, halves[0] * F.gelu(halves[1]), hidden, c))


def gate(b: Builder, v: Value) -> Value:
    """Halves of the channels gate each other."""
    dim = v.layout.dim_of("c")
    if dim is None or v.size("c") % 2:
        return v
    halves = v.x.chunk(2, dim) if b.draw.flag() else v.x.split(v.size("c") // 2, dim)
    return v.like(halves[0] * torch.sigmoid(halves[1]), c=v.size("c") // 2)


def attention(b: Builder, v: Value) -> Value:
    """Self-attention over the second to last dim, in heads; q, k, v from three layers or from one."""
    v = _channels_last(b, v)
    *batch, tokens, c = v.shape
    n, heads = torch.Size(batch).numel(), b.draw.divisor(c)
    x = v.x.reshape(n, tokens, c) if len(batch) > 1 else v.x
    form = b.draw.pick(("three", "chunk", "unbind", "causal", "mask"))
    if form == "chunk":
        parts = [_linear(b, x, c, 3 * c).chunk(3, -1)[i] for i in range(3)]
        q, k, value = (p.view(n, tokens, heads, c // heads).transpose(1, 2) for p in parts)
    elif form == "unbind":
        qkv = _linear(b, x, c, 3 * c).view(n, tokens, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
        q, k, value = (qkv.unbind(0)[i] for i in range(3))
    else:
        parts = [_linear(b, x, c, c, bias=False) for _ in range(3)]
        q, k, value = (p.view(n, tokens, heads, c // heads).transpose(1, 2) for p in parts)
    mask = b.weight(tokens, tokens, buffer=True) if form == "mask" else None
    found = F.scaled_dot_product_attention(q, k, value, attn_mask=mask, is_causal=form == "causal")
    found = _linear(b, found.transpose(1, 2).reshape(n, tokens, c), c, c).reshape(v.shape)
    return v.like(v.x + found)


def cross_attention(b: Builder, v: Value) -> Value | None:
    """Attention to the context, which all frames share, or to the first frame."""
    v = v.moved(Layout.of("(b f) (h w) c"))
    batch, c, f = v.size("b"), v.size("c"), v.size("f")
    n, tokens = v.shape[:2]
    if b.draw.flag():
        other, width = v.x.view(batch, f, tokens, c)[:, 0], c
    elif b.context is not None:
        other, width = b.context, 8
    else:
        return None
    if b.draw.flag():
        other = other.repeat_interleave(f, dim=0)
        key, value = _linear(b, other, width, c), _linear(b, other, width, c)
    else:
        both = [_linear(b, other, width, c) for _ in range(2)]
        key, value = (x.unsqueeze(1).expand(-1, f, -1, -1).reshape(n, -1, c) for x in both)
    heads = b.draw.divisor(c)
    q, k, value = (x.reshape(n, -1, heads, c // heads).transpose(1, 2) for x in (_linear(b, v.x, c, c), key, value))
    found = F.scaled_dot_product_attention(q, k, value).transpose(1, 2).reshape(n, tokens, c)
    return v.like(v.x + found)


def scores(b: Builder, v: Value) -> Value:
    """Attention written out: two batched products around a softmax."""
    v = v.moved(b.layout(("(b f) (h w) c", "(b h w) f c")))
    weights = torch.softmax(torch.bmm(v.x, v.x.transpose(1, 2)) * v.size("c") ** -0.5, dim=-1)
    return v.like(torch.matmul(weights, v.x))


def embed_time(b: Builder, v: Value) -> Value | None:
    """Add an embedding of the time step, one vector for each sample, or scale and shift by it."""
    if b.time is None:
        return None
    c, f = v.size("c"), v.size("f")
    vector = _linear(b, F.silu(b.time) if b.draw.flag() else b.time, 8, c)
    if v.layout.groups == ("bf", "c", "h", "w") and b.draw.flag():
        return v.like(v.x + vector.repeat_interleave(f, dim=0)[:, :, None, None])
    if v.layout.order.index("c") < v.layout.order.index("b"):
        vector = vector.transpose(0, 1)
    vector = broadcast(vector, [n for n in v.layout.order if n in "bc"], v.layout, v.by_name)
    return v.like(v.x * (1 + vector)) if b.draw.flag() else v.like(v.x + vector)


def embed_positions(b: Builder, v: Value) -> Value:
    """Add a table of positions that the model computes or holds: of frames, or of rows."""
    name = b.draw.pick(("f", "h"))
    if b.draw.flag():
        table = torch.cos(b.weight(1, buffer=True) * b.positions(v.size(name)))
    else:
        table = b.weight(v.size(name), buffer=True)
    return v.like(v.x + broadcast(table, [name], v.layout, v.by_name))


def _partner(b: Builder, v: Value, free: str) -> Value | None:
    """An earlier value of the same sizes (but for one factor), in the layout of `v`."""
    for other in b.values:
        if all(other.size(n) == v.size(n) for n in "bcfhw" if n != free):
            return other.moved(v.layout)
    return None


def skip(b: Builder, v: Value) -> Value | None:
    """Join with an earlier value, along the channels or the frames."""
    name = b.draw.pick(("c", "f"))
    other, dim = _partner(b, v, name), v.layout.dim_of(name)
    if other is None or dim is None or v.size(name) > 24:
        return None
    parts = [v.x, other.x] if b.draw.flag() else [other.x, v.x]
    return v.like(torch.cat(parts, dim), **{name: v.size(name) + other.size(name)})


def residual(b: Builder, v: Value) -> Value | None:
    """Add an earlier value."""
    other = _partner(b, v, "")
    if other is None:
        return None
    return v.like(torch.lerp(v.x, other.x, 0.3)) if b.draw.flag() else v.like(v.x + other.x)


def first_frames(b: Builder, v: Value) -> Value | None:
    """The first frame before all others, as causal convolutions pad; or without the first one."""
    dim = v.layout.dim_of("f")
    if dim is None:
        return None
    f = v.size("f")
    if f > 1 and b.draw.flag():
        return v.like(v.x.narrow(dim, 1, f - 1), f=f - 1)
    return v.like(torch.cat([v.x.narrow(dim, 0, 1), v.x], dim), f=f + 1) if f < 16 else None


def unstack(b: Builder, v: Value) -> Value | None:
    """Take the frames apart and stack them in another order."""
    dim = v.layout.dim_of("f")
    if dim is None or v.size("f") > 8:
        return None
    frames = v.x.unbind(dim)
    return v.like(torch.stack([frames[i] for i in reversed(range(v.size("f")))], dim))


def center(b: Builder, v: Value) -> Value:
    """Take away the mean over a dim."""
    dim = b.draw.pick(range(len(v.shape)))
    return v.like(v.x - v.x.mean(dim, keepdim=True))


def soften(b: Builder, v: Value) -> Value:
    """Softmax over a dim."""
    return v.like(torch.softmax(v.x, b.draw.pick(range(len(v.shape)))))


def in_place(b: Builder, v: Value) -> Value:
    """Operators that write into their operand."""
    x = v.x.clone()
    return v.like(x.mul_(0.5).add_(v.x)) if b.draw.flag() else v.like(x.add_(1.0))


def no_op(b: Builder, v: Value) -> Value:
    """What gives its operand back."""
    f: Callable[[Any], Any] = b.draw.pick(
        (lambda x: F.dropout(x, 0.1, False), lambda x: x.contiguous(), lambda x: x.to(torch.float64))
    )
    return v.like(f(v.x))


def shared_view(b: Builder, v: Value) -> Value:
    """Two views of one value, both read."""
    flat = v.x.flatten(0, 1)
    rest = v.shape[2:]
    return v.like((flat * 0.5).reshape(v.shape) + flat.reshape([*v.shape[:2], *rest]))


STEPS: tuple[Step, ...] = (
    *(activation, convolution, normalize_groups, move, projection, residual, skip, attention),
    *(feed_forward, normalize_layer, convolution, normalize_groups, embed_time, upsample, downsample),
    *(cross_attention, embed_positions, gate, clamped, scores, first_frames, unstack, center, soften),
    *(shared_view, in_place, no_op, causal_convolution, residual_block, smooth),
)
