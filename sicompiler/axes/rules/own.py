"""Rules of the operators our passes insert before planning."""

from __future__ import annotations

import torch

import sicompiler.ops  # noqa: F401  (registers the operators)
from sicompiler.axes.factor_map import FactorMap
from sicompiler.axes.registry import OpCall, rule
from sicompiler.axes.rules.building import described
from sicompiler.axes.rules.norm import channels_second

ops = torch.ops.sicompiler


@rule(ops.group_apply.default)
def group_apply(call: OpCall) -> FactorMap:
    """`([n, g c, h, w], [n, g, moment], [g c], [g c]) -> ([n, g c, h, w]) whole={moment}`: free everywhere."""
    groups = call["stats"].shape[1]
    labels = channels_second(call["x"])
    labels[1] = "g c"
    sizes = {"g": groups, "c": call["x"].shape[1] // groups}
    affine = [["g c"]] * (len(call.operands) - 2)
    return described(call, [labels, ["n", "g", "moment"], *affine], [labels], sizes=sizes, whole=["moment"])


@rule(ops.group_stats.default)
def group_stats(call: OpCall) -> FactorMap:
    """`([n, g c, h, w]) -> ([n, g, moment]) merge={c, h, w} whole={moment}`: partial statistics merge (Chan)."""
    groups = call["groups"]
    labels = channels_second(call["x"])
    labels[1] = "g c"
    sizes = {"g": groups, "c": call["x"].shape[1] // groups}
    return described(call, [labels], [["n", "g", "moment"]], sizes=sizes, merge=["c", *labels[2:]], whole=["moment"])
