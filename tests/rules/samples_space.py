"""Sample calls of operators that need whole dims, of look-ups, padding and resampling."""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import OpOverload

from sicompiler.axes.registry import rules
from sicompiler.axes.rules.resampling import pool, upsample_nearest, whole_in_space
from tests.rules.draw import Args, Draw, sampler

aten = torch.ops.aten


@sampler(aten.softmax.int, aten.log_softmax.int, aten.cumsum.default, aten.cumprod.default, aten.logcumsumexp.default)
@sampler(aten.sort.default, aten.argsort.default)
def _one_dim(draw: Draw, target: OpOverload) -> Args:
    shape = draw.shape()
    return [draw.tensor(*shape), draw.dim(len(shape))], {}


@sampler(aten._softmax.default, aten._log_softmax.default)
def _softmax(draw: Draw, target: OpOverload) -> Args:
    shape = draw.shape()
    return [draw.tensor(*shape), draw.dim(len(shape)), False], {}


@sampler(aten.sort.stable, aten.argsort.stable)
def _stable(draw: Draw, target: OpOverload) -> Args:
    shape = draw.shape()
    return [draw.tensor(*shape)], {"stable": True, "dim": draw.dim(len(shape))}


@sampler(aten.flip.default, aten.fft_fftshift.default, aten.fft_ifftshift.default)
def _flip(draw: Draw, target: OpOverload) -> Args:
    shape = draw.shape()
    return [draw.tensor(*shape), [draw.dim(len(shape))]], {}


@sampler(aten.roll.default)
def _roll(draw: Draw, target: OpOverload) -> Args:
    shape = draw.shape()
    if len(shape) > 1 and draw.flag():
        return [draw.tensor(*shape), [1, -2], [draw.dim(len(shape) - 1) % (len(shape) - 1), -1]], {}
    return [draw.tensor(*shape), [1], draw.pick([[], [draw.dim(len(shape))]])], {}


@sampler(aten.fft_fftn.default, aten.fft_ifftn.default)
def _fft(draw: Draw, target: OpOverload) -> Args:
    shape = draw.shape(2, 4)
    return [draw.tensor(*shape), draw.pick([None, [3]]), [draw.dim(len(shape))]], {}


@sampler(aten.topk.default)
def _topk(draw: Draw, target: OpOverload) -> Args:
    shape = draw.shape()
    dim = draw.dim(len(shape))
    return [draw.tensor(*shape), draw.size(1, shape[dim]), dim], {}


@sampler(aten.tril.default, aten.triu.default)
def _triangle(draw: Draw, target: OpOverload) -> Args:
    return [draw.tensor(*draw.shape(2, 4)), draw.pick([-1, 0, 1])], {}


@sampler(aten.embedding.default)
def _embedding(draw: Draw, target: OpOverload) -> Args:
    rows = draw.size(2)
    return [draw.tensor(rows, draw.size()), draw.integers(rows, *draw.shape(1, 3))], {}


@sampler(aten.gather.default)
def _gather(draw: Draw, target: OpOverload) -> Args:
    shape = draw.shape()
    dim = draw.dim(len(shape))
    index = [draw.pick([size, max(1, size - 1)]) for size in shape]
    index[dim] = draw.size()
    return [draw.tensor(*shape), dim, draw.integers(shape[dim], *index)], {}


@sampler(aten.index.Tensor)
def _index(draw: Draw, target: OpOverload) -> Args:
    shape, picked = draw.shape(2, 4), draw.shape(1, 2)
    indices: list[Any] = [None] * len(shape)
    for dim in {draw.dim(len(shape)) % len(shape), draw.dim(len(shape)) % len(shape)}:
        indices[dim] = draw.integers(shape[dim], *draw.shrunk(picked))
    while indices[-1] is None:
        indices.pop()
    return [draw.tensor(*shape), indices], {}


@sampler(aten.index_select.default)
def _index_select(draw: Draw, target: OpOverload) -> Args:
    shape = draw.shape()
    dim = draw.dim(len(shape))
    return [draw.tensor(*shape), dim, draw.integers(shape[dim], draw.size())], {}


@sampler(aten.constant_pad_nd.default, aten.pad.default)
def _pad(draw: Draw, target: OpOverload) -> Args:
    shape = [draw.size(2, 5) for _ in range(draw.size(1, 4))]
    pads = [draw.pick([0, 0, 1, -1]) for _ in range(2 * draw.size(1, len(shape)))]
    return [draw.tensor(*shape), pads], {}


@sampler(aten.reflection_pad1d.default, aten.reflection_pad2d.default, aten.reflection_pad3d.default)
@sampler(aten.replication_pad1d.default, aten.replication_pad2d.default, aten.replication_pad3d.default)
def _mirror(draw: Draw, target: OpOverload) -> Args:
    count = _space(target)
    shape = [draw.size(), draw.size(), *(draw.size(2, 5) for _ in range(count))]
    return [draw.tensor(*shape), [draw.pick([0, 0, 1]) for _ in range(2 * count)]], {}


def _space(target: OpOverload) -> int:
    return next(int(mark[0]) for mark in ("1d", "2d", "3d") if mark in str(target))


@sampler(*(target for target, found in rules().items() if found in (upsample_nearest, whole_in_space)))
def _upsample(draw: Draw, target: OpOverload) -> Args:
    count = _space(target)
    shape = [draw.size(2, 5) for _ in range(count)]
    source = draw.tensor(draw.size(), draw.size(), *shape)
    ratio = draw.pick([1, 2, 3])
    sizes = draw.pick(
        [[ratio * size for size in shape], [ratio * size for size in shape], [size + 1 for size in shape]]
    )
    if "adaptive" in str(target):
        return [source, [max(1, size // 2) for size in shape]], {}
    corners = [False] if any(argument.name == "align_corners" for argument in target._schema.arguments) else []
    if target._overloadname == "vec" and draw.flag():
        return [source, None, *corners, [float(ratio)] * count], {}
    scales: list[Any] = [None] if target._overloadname == "vec" else []
    return [source, sizes, *corners, *scales], {}


@sampler(*(target for target, found in rules().items() if found is pool))
def _pool(draw: Draw, target: OpOverload) -> Args:
    count = _space(target)
    chosen = [draw.pick([(1, 1, 0), (2, 2, 0), (3, 2, 1)]) for _ in range(count)]
    kernel, stride, padding = (list(values) for values in zip(*chosen, strict=True))
    source = draw.tensor(draw.size(), draw.size(), *(k * draw.size(2, 3) for k in kernel))
    ceil = {"ceil_mode": draw.flag()}
    return [source, kernel, stride, padding], ceil


@sampler(aten.pixel_shuffle.default)
def _pixel_shuffle(draw: Draw, target: OpOverload) -> Args:
    r = draw.size(1, 3)
    return [draw.tensor(*draw.shape(0, 2), draw.size(1, 3) * r * r, draw.size(1, 4), draw.size(1, 4)), r], {}


@sampler(aten.pixel_unshuffle.default)
def _pixel_unshuffle(draw: Draw, target: OpOverload) -> Args:
    r = draw.size(1, 3)
    return [draw.tensor(*draw.shape(0, 2), draw.size(1, 3), r * draw.size(1, 4), r * draw.size(1, 4)), r], {}
