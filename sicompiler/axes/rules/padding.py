"""Padding: a window of one entry that reaches over the borders; mirrored and wrapped pads make the dim whole."""

from __future__ import annotations

import torch

from sicompiler.axes.factor_map import FactorMap, Window
from sicompiler.axes.registry import OpCall, rule
from sicompiler.axes.rules.building import described, letters

aten = torch.ops.aten

_MIRRORED = (aten.reflection_pad1d.default, aten.reflection_pad2d.default, aten.reflection_pad3d.default)


@rule(aten.constant_pad_nd.default, aten.pad.default, *_MIRRORED)
@rule(aten.replication_pad1d.default, aten.replication_pad2d.default, aten.replication_pad3d.default)
def pad(call: OpCall) -> FactorMap:
    """`([a, b]) -> ([a, b]) window={b: k1 s1 p2,0}`; the pads are listed from the last dim on, two for each.

    Whole where the pads mirror or wrap around, where they cut off, and where there was nothing before.
    """
    pads = call["pad"] if "pad" in call.arguments else call["padding"]
    local = call.target not in _MIRRORED and call.arguments.get("mode", "constant") in ("constant", "replicate")
    shape, result = call.operands[0].shape, call.results[0].shape
    source = letters(len(shape))
    target, windows, whole, sizes = list(source), {}, [], {}
    for position in range(len(pads) // 2):
        lo, hi = pads[2 * position : 2 * position + 2]
        dim = len(source) - 1 - position
        name = source[dim]
        if lo == hi == 0:
            continue
        if local and lo >= 0 and hi >= 0 and shape[dim] > 0:
            windows[name] = Window(1, 1, lo, hi)
            sizes[name] = result[dim]
        else:
            target[dim] = f"{name}_out"
            whole += [name, target[dim]]
    return described(call, [source], [target], whole=whole, sizes=sizes, windows=windows)
