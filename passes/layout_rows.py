"""How kernels of the CPU lay out what they give, where fake tensors don't tell: rows of operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from sicompiler.facts.storages import fact_of
from sicompiler.facts.strides import (
    Strided,
    format_strides,
    has_format,
    pointwise_strides,
    suggests_channels_last,
    view_strides,
)
from sicompiler.facts.workspace.conv import each_dim, goes_to_onednn
from sicompiler.facts.workspace.onednn import takes

aten = torch.ops.aten

Channels = bool  # whether a result has its channels innermost; else it is row-major


def strided(tensor: torch.Tensor) -> Strided:
    """Shape and strides of a tensor, as numbers."""
    return tuple(map(int, tensor.shape)), tuple(map(int, tensor.stride()))


def _joined(parts: Sequence[Strided]) -> Channels:
    """`cat` is channels-last where all its operands are."""
    return bool(parts) and all(map(suggests_channels_last, parts))


def _cat(arguments: dict[str, Any]) -> Channels:
    return _joined([strided(t) for t in arguments["tensors"] if t.numel()])


def _roll(arguments: dict[str, Any]) -> Channels | None:
    """A roll is a `cat` of two narrowed views for one dim, and one roll after the other for several."""
    tensor, dims = arguments["self"], list(arguments["dims"] or ())
    if not dims:
        return False
    shape, stride = strided(tensor)
    channels = False
    for dim, shift in zip(dims, arguments["shifts"], strict=True):
        size = shape[dim]
        start = (size - shift) % max(size, 1)
        parts = [(*shape[: dim % len(shape)], n, *shape[dim % len(shape) + 1 :]) for n in (size - start, start)]
        channels = _joined([(part, stride) for part in parts])
        stride = format_strides(shape, channels)
    return channels


def _pad(arguments: dict[str, Any]) -> Channels:
    """Circular padding fills a row-major tensor; the other modes follow the input."""
    if arguments["mode"] == "circular":
        return False
    return suggests_channels_last(strided(arguments["self"]))


def _follows(name: str) -> Callable[[dict[str, Any]], Channels]:
    def follow(arguments: dict[str, Any]) -> Channels:
        return suggests_channels_last(strided(arguments[name]))

    return follow


def _as_dense(arguments: dict[str, Any]) -> Channels:
    """Row-major or channels-last where the input is dense so, whatever the strides of its dims of one entry say."""
    tensor = strided(arguments["input"])
    if has_format(tensor, False):
        return False
    return (len(tensor[0]) in (4, 5) and has_format(tensor, True)) or suggests_channels_last(tensor)


def _rms_norm(arguments: dict[str, Any]) -> Channels | None:
    """Row-major where each of its rows is one entry and it lies so; of the rest fake tensors know."""
    rows_of_one = max(arguments["normalized_shape"], default=1) == 1
    return False if rows_of_one and has_format(strided(arguments["input"]), False) else None


def _row_major(arguments: dict[str, Any]) -> Channels:
    return False


def _transposed(arguments: dict[str, Any]) -> Channels | None:
    """A transposed convolution is channels-last where its input or weight is; what else it is, fake tensors know."""
    if arguments["weight"].dim() == 5 and not takes(arguments["weight"].dtype):
        return False  # ATen's own: always row-major
    either = any(suggests_channels_last(strided(arguments[name])) for name in ("input", "weight"))
    return None if either else False


RESAMPLED = (
    *(aten.upsample_nearest2d, aten._upsample_nearest_exact2d, aten.upsample_bilinear2d, aten.upsample_bicubic2d),
    *(aten._upsample_bilinear2d_aa, aten._upsample_bicubic2d_aa),
    *(aten.upsample_nearest3d, aten._upsample_nearest_exact3d, aten.upsample_trilinear3d),
)


def _positions(arguments: dict[str, Any]) -> Iterator[int]:
    """Size of the result of a convolution in each dim of space."""
    space = arguments["input"].shape[2:], arguments["weight"].shape[2:]
    per_dim = (each_dim(arguments[name], len(space[0])) for name in ("stride", "padding", "dilation"))
    for size, kernel, stride, padding, dilation in zip(*space, *per_dim, strict=True):
        yield (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _convolution(arguments: dict[str, Any]) -> Channels | None:
    """Channels-last where the input or the weight is, but for `slow_conv3d`; the kernels that unfold join groups."""
    x, weight, groups = (arguments[name] for name in ("input", "weight", "groups"))
    if x.dim() != weight.dim() or x.dim() < 4:
        return None
    either = any(suggests_channels_last(strided(tensor)) for tensor in (x, weight))
    if goes_to_onednn(fact_of(x), fact_of(weight), (*arguments["stride"], *arguments["dilation"]), groups > 1):
        return either
    if x.dim() == 5 or groups == 1:
        return either and x.dim() == 4
    part = (x.shape[0], weight.shape[0] // groups, *_positions(arguments))
    return either and suggests_channels_last((part, format_strides(part, True)))


ROWS: dict[Any, Callable[[dict[str, Any]], Channels | None]] = {
    **{packet.vec: _follows("input") for packet in RESAMPLED},
    **{packet.default: _follows("self") for packet in RESAMPLED},
    aten._native_batch_norm_legit_no_training.default: _as_dense,
    aten.batch_norm.default: _as_dense,
    aten.cat.default: _cat,
    aten.channel_shuffle.default: _follows("self"),
    aten.constant_pad_nd.default: _follows("self"),
    aten.conv2d.default: _convolution,
    aten.conv3d.default: _convolution,
    aten.conv_transpose1d.default: _transposed,
    aten.conv_transpose2d.input: _transposed,
    aten.conv_transpose3d.input: _transposed,
    aten.group_norm.default: _follows("input"),
    aten.im2col.default: _row_major,
    aten.layer_norm.default: _row_major,
    aten.masked_fill.Scalar: _row_major,
    aten.masked_fill.Tensor: _row_major,
    aten.pad.default: _pad,
    aten.rms_norm.default: _rms_norm,
    aten.roll.default: _roll,
    aten.tril.default: _row_major,
    aten.triu.default: _row_major,
    aten.upsample_linear1d.default: _row_major,
    aten.upsample_linear1d.vec: _row_major,
    aten.upsample_nearest1d.default: _row_major,
    aten.upsample_nearest1d.vec: _row_major,
}

VIEWS = frozenset(
    {
        *(aten.reshape.default, aten.view.default, aten._unsafe_view.default),
        *(aten.flatten.using_ints, aten.unflatten.int),
    }
)

# Results as `empty_like` makes them, or as it would.
LIKE = frozenset(
    {
        *(aten.clone.default, aten.deg2rad.default, aten.empty_like.default, aten.flip.default),
        *(aten.full_like.default, aten.hardtanh.default, aten.nan_to_num.default, aten.ones_like.default),
        *(aten.prelu.default, aten.rad2deg.default, aten.relu6.default, aten.sort.default),
        aten.zeros_like.default,
    }
)


def _stacked(arguments: dict[str, Any]) -> tuple[int, ...] | None:
    """Strides of a `stack`: it is a `cat` in the dim itself, seen with one dim more; behind the last dim, of views."""
    tensors, dim = arguments["tensors"], arguments["dim"] % (arguments["tensors"][0].dim() + 1)
    shape = (*tensors[0].shape[:dim], len(tensors), *tensors[0].shape[dim:])
    if dim == tensors[0].dim():
        return format_strides(shape, _joined([strided(t[..., None]) for t in tensors]))
    joined = (*shape[:dim], shape[dim] * shape[dim + 1], *shape[dim + 2 :])
    return view_strides((joined, format_strides(joined, _joined([*map(strided, tensors)]))), shape)


def _indexed(arguments: dict[str, Any]) -> tuple[int, ...] | None:
    """`TensorIterator` of the source, with strides of 0 in the dims looked into, and of the indices."""
    shape, stride = strided(arguments["self"])
    looked_into = [d for d, index in enumerate(arguments["indices"]) if index is not None]
    indices = [arguments["indices"][d] for d in looked_into]
    if any(index.dtype is not torch.int64 or index.shape != indices[0].shape for index in indices):
        return None
    if looked_into[-1] - looked_into[0] >= len(looked_into):  # those apart come first
        order = [*looked_into, *(d for d in range(len(shape)) if d not in looked_into)]
        shape, stride = tuple(shape[d] for d in order), tuple(stride[d] for d in order)
        looked_into = list(range(len(looked_into)))
    before, after = looked_into[0], len(shape) - looked_into[-1] - 1
    own = tuple(indices[0].shape)
    source = (
        (*shape[:before], *own, *shape[looked_into[-1] + 1 :]),
        (*stride[:before], *[0] * len(own), *stride[looked_into[-1] + 1 :]),
    )
    placed = []
    for index in indices:
        wide = (*[1] * before, *own, *[1] * after)
        seen = view_strides(strided(index), wide)
        placed.append((wide, format_strides(wide, False) if seen is None else seen))
    return pointwise_strides([source, *placed])


def _gated(arguments: dict[str, Any]) -> tuple[int, ...]:
    """`glu` is made by `TensorIterator` of the halves of its input."""
    return pointwise_strides([strided(half) for half in arguments["self"].chunk(2, arguments["dim"])])


# Strides of results that are in no memory format; None where the fake value is to be believed.
STRIDES: dict[Any, Callable[[dict[str, Any]], tuple[int, ...] | None]] = {
    aten.glu.default: _gated,
    aten.index.Tensor: _indexed,
    aten.stack.default: _stacked,
}

# Pointwise by their tag, but not made by `TensorIterator` or not from the operands as they are.
NOT_ITERATED = frozenset({aten.isfinite.default, aten.isinf.default, aten.positive.default, aten.pow.Scalar})

# C++ functions of other operators, which choose the same strides without memory.
COMPOSITE = frozenset({aten.einsum.default})
