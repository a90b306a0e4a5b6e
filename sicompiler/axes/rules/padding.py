"""Padding: padded dims are whole, the other dims are free."""

from __future__ import annotations

import torch

from sicompiler.axes.factor_map import FactorMap
from sicompiler.axes.registry import OpCall, rule
from sicompiler.axes.rules.building import described, letters

aten = torch.ops.aten


@rule(aten.constant_pad_nd.default, aten.pad.default)
@rule(aten.reflection_pad1d.default, aten.reflection_pad2d.default, aten.reflection_pad3d.default)
@rule(aten.replication_pad1d.default, aten.replication_pad2d.default, aten.replication_pad3d.default)
def pad(call: OpCall) -> FactorMap:
    """`([a, b]) -> ([a, b_out]) whole={b, b_out}`; the pads are listed from the last dim on, two for each."""
    pads = call["pad"] if "pad" in call.arguments else call["padding"]
    source = letters(len(call.operands[0].shape))
    target = list(source)
    for position in range(len(pads) // 2):
        if pads[2 * position] or pads[2 * position + 1]:
            dim = len(source) - 1 - position
            target[dim] = f"{source[dim]}_out"
    whole = [name for pair in zip(source, target, strict=True) for name in dict.fromkeys(pair) if pair[0] != pair[1]]
    return described(call, [source], [target], whole=whole)
