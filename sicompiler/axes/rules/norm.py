"""Normalisations: layer and RMS norm need the normalised dims whole, group norm has statistics."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sicompiler.axes.factor_map import FactorMap
from sicompiler.axes.registry import OpCall, TensorSpec, rule
from sicompiler.axes.rules.building import described, letters, opaque
from sicompiler.axes.rules.conv import SPACE

aten = torch.ops.aten


@rule(aten.batch_norm.default)
def batch_norm(call: OpCall) -> FactorMap:
    """`([n, c, l], [c], [c], [c], [c]) -> ([n, c, l])` with running statistics: pointwise."""
    if call["training"] or call["running_mean"] is None:
        return opaque(call)
    return _by_channel(call, channels_second(call["input"]))


@rule(aten.group_norm.default)
def group_norm(call: OpCall) -> FactorMap:
    """`([n, g c, h, w], [g c], [g c]) -> ([n, g c, h, w]) stats={c, h, w}`."""
    groups = call["num_groups"]
    labels = channels_second(call["input"])
    labels[1] = "g c"
    sizes = {"g": groups, "c": call["input"].shape[1] // groups}
    affine = [["g c"]] * (len(call.operands) - 1)
    return described(call, [labels, *affine], [labels], sizes=sizes, stats=["c", *labels[2:]])


@rule(aten.instance_norm.default)
def instance_norm(call: OpCall) -> FactorMap:
    """`([n, c, h, w], [c], [c]) -> ([n, c, h, w]) stats={h, w}`, with the statistics of the input."""
    if call["running_mean"] is not None or not call["use_input_stats"]:
        return opaque(call)
    labels = channels_second(call["input"])
    return _by_channel(call, labels, stats=labels[2:])


def _by_channel(call: OpCall, labels: list[str], stats: Sequence[str] = ()) -> FactorMap:
    """A norm of which every operand but the first has one entry a channel."""
    return described(call, [labels, *[["c"]] * (len(call.operands) - 1)], [labels], stats=stats)


@rule(aten.layer_norm.default, aten.native_layer_norm.default, aten.rms_norm.default)
def layer_norm(call: OpCall) -> FactorMap:
    """`([a, b], [b], [b]) -> ([a, b]) whole={b}`; mean and rstd of the native one keep dims of size 1."""
    names = letters(len(call["input"].shape))
    normalised = names[len(names) - len(call["normalized_shape"]) :]
    affine = [normalised] * (len(call.operands) - 1)
    return described(call, [names, *affine], [names] * len(call.results), whole=normalised)


def channels_second(tensor: TensorSpec) -> list[str]:
    """Names of the dims of a tensor `[n, c, *space]`."""
    count = len(tensor.shape) - 2
    space = [] if count == 0 else SPACE.get(count) or letters(count, avoid="ngc")
    return ["n", "c", *space]
