"""Convolutions: batch and out-channels are free, in-channels add up, space is a window.

Space is free where windows do not overlap: kernel 1, or a kernel as wide as the stride (a patch embedding), with no
padding. A bias lacks the in-channels: it goes with the first partial result only.
"""

from __future__ import annotations

import torch

from sicompiler.axes.factor_map import FactorMap, Window
from sicompiler.axes.registry import OpCall, rule
from sicompiler.axes.rules.building import described, opaque, spread

aten = torch.ops.aten

SPACE = {1: ["l"], 2: ["h", "w"], 3: ["t", "h", "w"]}  # names of the spatial dims by their number


def _paddings(call: OpCall, windows: list[Window]) -> list[Window]:
    """Fill in the padding: numbers, or `same` and `valid` (the odd one of `same` is added at the end)."""
    padding = call["padding"]
    if padding == "valid":
        return windows
    if padding == "same":
        totals = [w.dilation * (w.kernel - 1) for w in windows]
        pads = [(total // 2, total - total // 2) for total in totals]
    else:
        pads = [(pad, pad) for pad in spread(padding, len(windows))]
    return [Window(w.kernel, w.stride, lo, hi, w.dilation) for w, (lo, hi) in zip(windows, pads, strict=True)]


def is_tiling(window: Window, size: int, result_size: int) -> bool:
    """Whether the windows lie side by side and use up the whole dim."""
    side_by_side = window.kernel == window.stride and (window.kernel == 1 or window.dilation == 1)
    return side_by_side and window.pad_lo == window.pad_hi == 0 and result_size * window.kernel == size


@rule(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
@rule(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)
def conv(call: OpCall) -> FactorMap:
    """`([n, ci, l], [co, ci, kl], [co]) -> ([n, co, l]) reduce={ci} whole={kl} window={l: k3 s1 p1}`.

    Grouped: `([n, g ci, l], [g co, ci, kl], [g co]) -> ([n, g co, l])`. There co is whole: slicing g needs the
    argument `groups` changed and slicing co does not, and a resize only sees the size of the merged dim.
    """
    weight, result = call["weight"].shape, call.results[0].shape
    count = len(weight) - 2
    space, groups = SPACE[count], call["groups"]
    kernels = [f"k{name}" for name in space]
    strides, dilations = spread(call["stride"], count), spread(call["dilation"], count)
    shapes = zip(weight[2:], strides, dilations, strict=True)
    windows = _paddings(call, [Window(kernel, stride, dilation=dilation) for kernel, stride, dilation in shapes])
    sizes = {"g": groups, "ci": weight[1], "co": weight[0] // groups}
    source, kept = [], {}
    inputs = call["input"].shape[-count:]
    for name, kernel, window, size, out in zip(space, kernels, windows, inputs, result[-count:], strict=True):
        sizes |= {name: out, kernel: window.kernel}
        if is_tiling(window, size, out):
            source.append(f"{name} {kernel}")
        else:
            source.append(name)
            kept[name] = window
    batch = ["n"] if len(result) == count + 2 else []
    channels = "g co" if groups > 1 else "co"
    bias = [[channels]] if call["bias"] is not None else []
    operands = [[*batch, "g ci" if groups > 1 else "ci", *source], [channels, "ci", *kernels], *bias]
    whole = [*kernels, "co"] if groups > 1 else kernels
    results = [[*batch, channels, *space]]
    return described(call, operands, results, sizes=sizes, whole=whole, reduce=["ci"], windows=kept)


@rule(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
def conv_transpose(call: OpCall) -> FactorMap:
    """`([n, ci, l], [ci, co, kl], [co]) -> ([n, co, l kl]) reduce={ci} whole={kl}` where nothing overlaps.

    Overlapping windows add into each other: there space is whole. Grouped ones are not sliced at all.
    """
    if call["groups"] > 1:
        return opaque(call)
    shape, weight, result = call["input"].shape, call["weight"].shape, call.results[0].shape
    count = len(weight) - 2
    space = SPACE[count]
    kernels = [f"k{name}" for name in space]
    whole = list(kernels)
    sizes = dict(zip(kernels, weight[2:], strict=True))
    target = []
    arguments = (spread(call[name], count) for name in ("stride", "padding", "output_padding", "dilation"))
    for d, (stride, padding, extra, dilation) in enumerate(zip(*arguments, strict=True)):
        kernel = weight[2 + d]
        if kernel == stride and padding == extra == 0 and dilation == 1:
            sizes[space[d]] = shape[d - count]
            target.append(f"{space[d]} {kernels[d]}")
        else:
            target.append(f"{space[d]}_out")
            whole += [space[d], f"{space[d]}_out"]
    batch = ["n"] if len(result) == count + 2 else []
    bias = [["co"]] if call["bias"] is not None else []
    operands = [[*batch, "ci", *space], ["ci", "co", *kernels], *bias]
    return described(call, operands, [[*batch, "co", *target]], sizes=sizes, whole=whole, reduce=["ci"])
