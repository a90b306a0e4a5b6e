"""Resampling: nearest upsampling by a whole number is free, pooling is a window, the rest is whole in space."""

from __future__ import annotations

import functools
import struct

import torch

from sicompiler.axes.factor_map import FactorMap, Window
from sicompiler.axes.registry import OpCall, TensorSpec, rule
from sicompiler.axes.rules.building import described, letters, spread
from sicompiler.axes.rules.conv import SPACE, is_tiling

aten = torch.ops.aten

_EXACT = {
    aten._upsample_nearest_exact1d.default,
    aten._upsample_nearest_exact1d.vec,
    aten._upsample_nearest_exact2d.default,
    aten._upsample_nearest_exact2d.vec,
    aten._upsample_nearest_exact3d.default,
    aten._upsample_nearest_exact3d.vec,
}


@rule(aten.upsample_nearest1d.default, aten.upsample_nearest2d.default, aten.upsample_nearest3d.default)
@rule(aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec, aten.upsample_nearest3d.vec, *_EXACT)
def upsample_nearest(call: OpCall) -> FactorMap:
    """`([n, c, l]) -> ([n, c, l r]) whole={r}` for a whole number r; whole for any other ratio."""
    source, target = call.operands[0].shape[2:], call.results[0].shape[2:]
    space = SPACE[len(source)]
    sizes = dict(zip(space, source, strict=True))
    labels, whole = [], []
    for name, size, out in zip(space, source, target, strict=True):
        ratio = out // size
        if ratio * size == out and (call.target in _EXACT or _rounds_down(ratio, out)):
            sizes[f"r{name}"] = ratio
            labels.append(f"{name} r{name}")
            whole.append(f"r{name}")
        else:
            sizes[f"{name}_out"] = out
            labels.append(f"{name}_out")
            whole += [name, f"{name}_out"]
    return described(call, [["n", "c", *space]], [["n", "c", *labels]], sizes=sizes, whole=whole)


@functools.lru_cache(maxsize=1024)
def _rounds_down(ratio: int, size: int) -> bool:
    """Whether floor(i * (1/ratio)), as the kernel computes it in float32 or float64, is i // ratio for all i < size.

    It isn't for a few ratios (41 in float32), and then a slice would round another way than the whole.
    """

    def single(value: float) -> float:
        return float(struct.unpack("f", struct.pack("f", value))[0])

    scale = single(1 / ratio)
    return all(int(single(i * scale)) == i // ratio == int(i * (1 / ratio)) for i in range(size))


@rule(aten.upsample_linear1d.default, aten.upsample_bilinear2d.default, aten.upsample_trilinear3d.default)
@rule(aten.upsample_linear1d.vec, aten.upsample_bilinear2d.vec, aten.upsample_trilinear3d.vec)
@rule(aten.upsample_bicubic2d.default, aten.upsample_bicubic2d.vec)
@rule(aten._upsample_bilinear2d_aa.default, aten._upsample_bilinear2d_aa.vec)
@rule(aten._upsample_bicubic2d_aa.default, aten._upsample_bicubic2d_aa.vec)
@rule(aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default)
def whole_in_space(call: OpCall) -> FactorMap:
    """`([n, c, h, w]) -> ([n, c, h_out, w_out]) whole={h, w, h_out, w_out}`."""
    count = next(int(mark[0]) for mark in ("1d", "2d", "3d") if mark in str(call.target))
    batch = letters(len(call.operands[0].shape) - count, avoid=SPACE[count])
    target = [f"{name}_out" for name in SPACE[count]]
    labels = [[*batch, *SPACE[count]], [*batch, *target]]
    return described(call, labels[:1], labels[1:], whole=[*SPACE[count], *target])


@rule(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)
@rule(aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default)
def pool(call: OpCall) -> FactorMap:
    """`([n, c, l kl]) -> ([n, c, l]) whole={kl}` where the windows tile the dim, else `window={l: k3 s1 p1}`."""
    count = next(int(mark[0]) for mark in ("1d", "2d", "3d") if mark in str(call.target))
    space = SPACE[count]
    shape, result = call.operands[0].shape, call.results[0].shape
    kernels = spread(call["kernel_size"], count)
    strides = spread(call["stride"] or call["kernel_size"], count)
    pads, dilations = spread(call["padding"], count), spread(call.arguments.get("dilation", 1), count)
    source, sizes, windows, whole = [], {}, {}, []
    target = list(space)
    arguments = zip(space, kernels, strides, pads, dilations, shape[-count:], result[-count:], strict=True)
    for d, (name, kernel, stride, padding, dilation, size, out) in enumerate(arguments):
        window = Window(kernel, stride, padding, padding, dilation)
        sizes[name] = out
        source.append(name)
        if is_tiling(window, size, out):
            source[d] = f"{name} k{name}"
            sizes[f"k{name}"] = kernel
            whole.append(f"k{name}")
        elif call["ceil_mode"]:  # the last window may be cut short
            source[d] = f"{name}_in"
            sizes[source[d]] = size
            whole += [source[d], name]
        else:
            windows[name] = window
    batch = letters(len(shape) - count, avoid=space) if len(shape) != count + 2 else ["n", "c"]
    operands, results = [[*batch, *source]], [[*batch, *target]]
    return described(call, operands, results, sizes=sizes, whole=whole, windows=windows)


@rule(aten.pixel_shuffle.default)
def pixel_shuffle(call: OpCall) -> FactorMap:
    """`([n, c rh rw, h, w]) -> ([n, c, h rh, w rw]) whole={rh, rw}`."""
    packed, plain, sizes = _pixels(call.operands[0], call.results[0], call["upscale_factor"])
    return described(call, [packed], [plain], sizes=sizes, whole=["rh", "rw"])


@rule(aten.pixel_unshuffle.default)
def pixel_unshuffle(call: OpCall) -> FactorMap:
    """`([n, c, h rh, w rw]) -> ([n, c rh rw, h, w]) whole={rh, rw}`."""
    packed, plain, sizes = _pixels(call.results[0], call.operands[0], call["downscale_factor"])
    return described(call, [plain], [packed], sizes=sizes, whole=["rh", "rw"])


def _pixels(packed: TensorSpec, plain: TensorSpec, factor: int) -> tuple[list[str], list[str], dict[str, int]]:
    """Dims with blocks of pixels among the channels, dims with them in their places, and sizes of the factors."""
    rank = len(packed.shape)
    batch = ["n"] if rank == 4 else letters(rank - 3, avoid="chw")
    sizes = {"c": plain.shape[-3], "rh": factor, "rw": factor}
    sizes |= dict(zip("hw", packed.shape[-2:], strict=True))
    return [*batch, "c rh rw", "h", "w"], [*batch, "c", "h rh", "w rw"], sizes
