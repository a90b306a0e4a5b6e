"""Sample calls of views, joins, splits, look-ups and everything else that moves entries around."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch._ops import OpOverload

from tests.rules.draw import Args, Draw, sampler

aten = torch.ops.aten

# Shapes of the same number of elements: merged, split, reordered, in part or not at all.
RESHAPES = (
    ([2, 3, 4], [6, 4]), ([6, 4], [2, 3, 4]), ([2, 3, 4], [24]), ([3, 4], [3, 4, 1]), ([1, 5], [5]), ([6, 4], [4, 6]),
    ([4, 9], [6, 6]), ([12, 2], [8, 3]), ([2, 3, 5, 3, 2], [3, 2, 5, 2, 3]), ([2, 6, 3], [2, 2, 9]),
    ([4, 1, 6], [2, 2, 3, 1, 2]),
)  # fmt: skip


@sampler(aten.reshape.default, aten.view.default, aten._unsafe_view.default)
def _reshape(draw: Draw, target: OpOverload) -> Args:
    before, after = draw.pick(RESHAPES)
    sizes = list(after)
    if draw.flag():
        sizes[draw.dim(len(sizes))] = -1
    return [draw.tensor(*before), sizes], {}


@sampler(aten.reshape_as.default, aten.view_as.default)
def _reshape_as(draw: Draw, target: OpOverload) -> Args:
    before, after = draw.pick(RESHAPES)
    return [draw.tensor(*before), draw.tensor(*after)], {}


@sampler(aten.flatten.using_ints)
def _flatten(draw: Draw, target: OpOverload) -> Args:
    shape = draw.shape()
    start = draw.size(0, len(shape) - 1)
    return [draw.tensor(*shape), start, draw.pick([-1, *range(start, len(shape))])], {}


@sampler(aten.ravel.default, aten.squeeze.default)
def _plain(draw: Draw, target: OpOverload) -> Args:
    return [draw.tensor(*draw.shape())], {}


@sampler(aten.unflatten.int)
def _unflatten(draw: Draw, target: OpOverload) -> Args:
    shape, parts = draw.shape(), [draw.size(1, 4) for _ in range(draw.size(2, 3))]
    dim = draw.dim(len(shape))
    shape[dim] = math.prod(parts)
    sizes = list(parts)
    if draw.flag():
        sizes[draw.dim(len(sizes))] = -1
    return [draw.tensor(*shape), dim, sizes], {}


@sampler(aten.unsqueeze.default)
def _unsqueeze(draw: Draw, target: OpOverload) -> Args:
    shape = draw.shape()
    return [draw.tensor(*shape), draw.dim(len(shape) + 1)], {}


@sampler(aten.squeeze.dim, aten.squeeze.dims)
def _squeeze(draw: Draw, target: OpOverload) -> Args:
    shape = draw.shape()
    dim = draw.dim(len(shape))
    if draw.flag():
        shape[dim] = 1
    return [draw.tensor(*shape), [dim] if target is aten.squeeze.dims else dim], {}


@sampler(aten.permute.default)
def _permute(draw: Draw, target: OpOverload) -> Args:
    shape, left = draw.shape(), []
    rest = list(range(len(shape)))
    while rest:
        left.append(rest.pop(draw.size(0, len(rest) - 1)) - draw.pick([0, len(shape)]))
    return [draw.tensor(*shape), left], {}


@sampler(aten.movedim.int, aten.transpose.int, aten.swapaxes.default, aten.swapdims.default)
def _two_dims(draw: Draw, target: OpOverload) -> Args:
    shape = draw.shape()
    return [draw.tensor(*shape), draw.dim(len(shape)), draw.dim(len(shape))], {}


@sampler(aten.movedim.intlist)
def _movedim(draw: Draw, target: OpOverload) -> Args:
    source, destination = draw.pick([([0, 1], [2, 0]), ([-1], [0]), ([2, 0], [-1, -2])])
    return [draw.tensor(*draw.shape(3, 4)), source, destination], {}


@sampler(aten.t.default, aten.numpy_T.default)
def _reverse(draw: Draw, target: OpOverload) -> Args:
    return [draw.tensor(*draw.shape(0, 2))], {}


@sampler(aten.repeat.default, aten.tile.default)
def _repeat(draw: Draw, target: OpOverload) -> Args:
    shape = draw.shape(1, 3)
    return [draw.tensor(*shape), [draw.size(1, 3) for _ in range(len(shape) + draw.size(0, 1))]], {}


@sampler(aten.repeat_interleave.self_int)
def _repeat_interleave(draw: Draw, target: OpOverload) -> Args:
    shape, count = draw.shape(1, 3), draw.size(1, 3)
    dim = draw.pick([None, draw.dim(len(shape))])
    size = count * (math.prod(shape) if dim is None else shape[dim])
    return [draw.tensor(*shape), count, dim], {"output_size": draw.pick([None, size])}


@sampler(aten.view_as_complex.default)
def _as_complex(draw: Draw, target: OpOverload) -> Args:
    return [draw.tensor(*draw.shape(1, 3), 2)], {}


@sampler(aten.view_as_real.default)
def _as_real(draw: Draw, target: OpOverload) -> Args:
    return [torch.view_as_complex(draw.tensor(*draw.shape(1, 3), 2))], {}


@sampler(aten.cat.default, aten.concat.default, aten.concatenate.default)
def _cat(draw: Draw, target: OpOverload) -> Args:
    shape = draw.shape()
    dim = draw.dim(len(shape))
    pieces = []
    for _ in range(draw.size(1, 3)):
        shape[dim] = draw.size()
        pieces.append(draw.tensor(*shape))
    return [pieces + draw.pick([[], [draw.tensor(0)]]), dim], {}


@sampler(aten.stack.default)
def _stack(draw: Draw, target: OpOverload) -> Args:
    shape = draw.shape()
    return [[draw.tensor(*shape) for _ in range(draw.size(1, 3))], draw.dim(len(shape) + 1)], {}


@sampler(aten.meshgrid.default, aten.meshgrid.indexing)
def _meshgrid(draw: Draw, target: OpOverload) -> Args:
    vectors = [draw.tensor(draw.size()) for _ in range(draw.size(1, 3))]
    return [vectors], {"indexing": draw.pick(["ij", "xy"])} if target is aten.meshgrid.indexing else {}


@sampler(aten.select_scatter.default)
def _select_scatter(draw: Draw, target: OpOverload) -> Args:
    shape = draw.shape(2, 4)
    dim = draw.dim(len(shape))
    rest = [size for d, size in enumerate(shape) if d != dim % len(shape)]
    return [draw.tensor(*shape), draw.tensor(*rest), dim, draw.dim(shape[dim])], {}


@sampler(aten.slice_scatter.default)
def _slice_scatter(draw: Draw, target: OpOverload) -> Args:
    shape = draw.shape()
    dim = draw.dim(len(shape))
    part, step = list(shape), draw.size(1, 2)
    start = draw.size(0, shape[dim] - 1)
    part[dim] = len(range(start, shape[dim], step))
    return [draw.tensor(*shape), draw.tensor(*part), dim, start, shape[dim], step], {}


@sampler(aten.chunk.default, aten.unsafe_chunk.default, aten.tensor_split.sections)
@sampler(aten.split.Tensor, aten.unsafe_split.Tensor)
def _chunk(draw: Draw, target: OpOverload) -> Args:
    shape, parts, size = draw.shape(), draw.size(1, 4), draw.size(1, 4)
    dim = draw.dim(len(shape))
    shape[dim] = parts * size + draw.pick([0, 0, 1])
    return [draw.tensor(*shape), size if "split.Tensor" in str(target) else parts, dim], {}


@sampler(aten.split.default, aten.split.sizes, aten.split_with_sizes.default, aten.tensor_split.indices)
def _split_sizes(draw: Draw, target: OpOverload) -> Args:
    shape = draw.shape()
    dim = draw.dim(len(shape))
    parts = draw.pick([[draw.size()] * draw.size(1, 3), [draw.size(), draw.size()]])
    shape[dim] = sum(parts)
    if target is aten.tensor_split.indices:
        parts = [sum(parts[:end]) for end in range(1, len(parts))]
    return [draw.tensor(*shape), parts, dim], {}


@sampler(aten.unbind.int)
def _unbind(draw: Draw, target: OpOverload) -> Args:
    shape = draw.shape()
    return [draw.tensor(*shape), draw.dim(len(shape))], {}


@sampler(aten.select.int)
def _select(draw: Draw, target: OpOverload) -> Args:
    shape = draw.shape()
    dim = draw.dim(len(shape))
    return [draw.tensor(*shape), dim, draw.dim(shape[dim])], {}


@sampler(aten.slice.Tensor)
def _slice(draw: Draw, target: OpOverload) -> Args:
    shape = draw.shape()
    dim = draw.dim(len(shape))
    shape[dim] = draw.size(2, 6)
    bounds: list[Any] = draw.pick(
        [[0, 2**63 - 1], [None, None], [1, None], [0, shape[dim]], [0, -1], [-shape[dim], None]]
    )
    return [draw.tensor(*shape), dim, *draw.pick([bounds, [1, 2**63 - 1, 2], [0, 2**63 - 1, 2]])], {}


@sampler(aten.narrow.default)
def _narrow(draw: Draw, target: OpOverload) -> Args:
    shape = draw.shape()
    dim = draw.dim(len(shape))
    start = draw.size(0, shape[dim] - 1) if draw.flag() else 0
    return [draw.tensor(*shape), dim, start, shape[dim] - start], {}


@sampler(aten.zeros.default, aten.ones.default, aten.empty.memory_format)
def _constant(draw: Draw, target: OpOverload) -> Args:
    return [draw.shape()], {"dtype": torch.float64}


@sampler(aten.full.default)
def _full(draw: Draw, target: OpOverload) -> Args:
    return [draw.shape(), 0.5], {}


@sampler(aten.scalar_tensor.default)
def _scalar(draw: Draw, target: OpOverload) -> Args:
    return [0.5], {}


@sampler(aten.new_zeros.default, aten.new_ones.default, aten.new_empty.default, aten.new_full.default)
def _new(draw: Draw, target: OpOverload) -> Args:
    value = [0.5] if target is aten.new_full.default else []
    return [draw.tensor(*draw.shape()), draw.shape(), *value], {}


@sampler(aten.arange.default, aten.arange.start, aten.arange.start_step, aten.linspace.default)
@sampler(aten.eye.default, aten.eye.m)
def _ramp(draw: Draw, target: OpOverload) -> Args:
    n = draw.size(2)
    rows: dict[OpOverload, list[Any]] = {
        aten.arange.start: [3, 3 + n],
        aten.arange.start_step: [0, 2 * n, 2],
        aten.eye.m: [n, n + 1],
        aten.linspace.default: [0, 1, n],
    }
    return rows.get(target, [n]), {"dtype": torch.float64}
