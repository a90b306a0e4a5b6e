"""Which parts of a denoiser run: by a plan, or while learning."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
import torch.utils._pytree as pytree

from sicompiler.capture import Program
from sicompiler.pipelines.component import CompiledComponent
from sicompiler.pipelines.rehash.guidance import drift
from sicompiler.pipelines.subgraph import GraphPart
from sicompiler.rehash.kinds import CallKind, FirstCalls
from sicompiler.rehash.loop import DenoisingLoop
from sicompiler.rehash.plan import RehashPlan
from sicompiler.rehash.recorder import LoopRecorder
from sicompiler.runtime.call import Call


def parts_of(plan: RehashPlan) -> tuple[GraphPart, GraphPart]:
    """What runs by a plan: the denoiser with its feature, and from the cut on."""
    full = GraphPart("full", plan.cut, plan.full_snapshots, any(plan.checks))
    return full, GraphPart("skip", plan.cut, plan.skip_snapshots)


def watching(recorder: LoopRecorder, whole: Program) -> list[GraphPart]:
    """What runs while learning: the denoiser with the features of all cuts, and from each cut on.

    Held are features of this evaluation and, of each branch, of the one before, but for those that a part is given.
    """
    branches, held = max(recorder.branches, 1), held_bytes(recorder, whole)
    probes = [GraphPart("skip", cut.positions, 0, beside_bytes=held - cut.nbytes) for cut in recorder.cuts]
    return [GraphPart("full", recorder.positions, branches, looked_at=True), *probes]


def held_bytes(recorder: LoopRecorder, whole: Program) -> int:
    """Bytes of the features of all cuts, of this evaluation and, for each branch, of the one before."""
    nodes = list(whole.graph_module.graph.nodes)
    one = sum(int(nodes[p].meta["val"].nbytes) for p in recorder.positions)
    return (max(recorder.branches, 1) + 1) * one


def distance(one: Any, other: Any) -> float:
    """2-norm of the difference of all tensors in two outputs."""
    pairs = zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True)
    squares = [float((a.float() - b.float()).square().sum()) for a, b in pairs if isinstance(a, torch.Tensor)]
    return math.sqrt(sum(squares))


def named_inputs(component: CompiledComponent, call: Call) -> list[tuple[str, Any]]:
    """Every leaf among the inputs of a call, with the name of its argument."""
    try:
        method = getattr(type(component.model), component.method)
        given = inspect.signature(method).bind_partial(
            None, *call.args, **call.kwargs
        )  # None stands for the model itself
    except TypeError:  # what the method can't take it will refuse
        return [("", leaf) for leaf in pytree.tree_leaves(call.inputs)]
    return [(name, leaf) for name, value in list(given.arguments.items())[1:] for leaf in pytree.tree_leaves(value)]


def kind_of(component: CompiledComponent, loop: DenoisingLoop, guidance: str, call: Call) -> CallKind:
    """What a call that begins is to the first one of its branch in the loop.

    Args:
        component: the denoiser.
        loop: that the call belongs to.
        guidance: settings of it that the pipeline shows now.
        call: with its key: all that a trace of it depends on.
    """
    if loop.first_calls is None:
        loop.first_calls = FirstCalls(lambda: component.key_of(Call.of(component.model, (), {})))
    assert loop.setting is not None
    differs = loop.first_calls.compared(loop.calls, call.key, named_inputs(component, call))
    return CallKind(differs, drift(loop.setting.guidance, guidance))
