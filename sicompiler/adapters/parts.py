"""Which parts of a denoiser run: by a plan, or while learning."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.utils._pytree as pytree

from sicompiler.adapters.subgraph import Part
from sicompiler.capture import Program
from sicompiler.rehash.plan import RehashPlan
from sicompiler.rehash.recorder import Recorder


def parts_of(plan: RehashPlan) -> tuple[Part, Part]:
    """What runs by a plan: the denoiser with its feature, and from the cut on."""
    full = Part("full", plan.cut, plan.full_snapshots, any(plan.checks))
    return full, Part("skip", plan.cut, plan.skip_snapshots)


def watching(recorder: Recorder, whole: Program) -> list[Part]:
    """What runs while learning: the denoiser with the features of all cuts, and from each cut on.

    Held are features of this evaluation and, of each branch, of the one before, but for those that a part is given.
    """
    branches = max(recorder.branches, 1)
    nodes = list(whole.graph_module.graph.nodes)
    nbytes = sum(nodes[p].meta["val"].nbytes for p in recorder.positions)
    held = (branches + 1) * nbytes
    probes = [Part("skip", cut.positions, 0, beside_bytes=held - cut.nbytes) for cut in recorder.cuts]
    return [Part("full", recorder.positions, branches, looked_at=True), *probes]


def distance(one: Any, other: Any) -> float:
    """2-norm of the difference of all tensors in two outputs."""
    pairs = zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True)
    squares = [float((a.float() - b.float()).square().sum()) for a, b in pairs if isinstance(a, torch.Tensor)]
    return math.sqrt(sum(squares))
