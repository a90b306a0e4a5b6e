"""The pass list, and the manager that runs it: verify after every pass, time it, show it to who is watching."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import torch
from torch._ops import OpOverload

from sicompiler.capture import Program, compile_now
from sicompiler.errors import PassError
from sicompiler.facts.storages import fake_tensors
from sicompiler.passes.clean import drop_dead_code, drop_noops, forward_copies, name_dtypes, name_shapes
from sicompiler.passes.dense_factors import dense_factors
from sicompiler.passes.edit import copy_program
from sicompiler.passes.fuse_groupnorm import fuse_groupnorm
from sicompiler.passes.layouts import real_layouts
from sicompiler.passes.legalise_groupnorm import split_groupnorm
from sicompiler.passes.schedule import sink_to_first_use

log = logging.getLogger("sicompiler.passes")

_VALUES = (torch.Tensor, int, float, bool, torch.SymInt)  # what most calls give: a tensor, or a number

Pass = Callable[[Program], None]
Observer = Callable[[str, Program], None]  # called with the name of each finished stage

# The whole pipeline on one screen. A plan is made between `legal` and `rewritten`: it chooses the regions that
# `passes.outer` and `passes.loop` carry out.
PIPELINE: dict[str, tuple[Pass, ...]] = {
    "clean": (
        *(real_layouts, name_dtypes, name_shapes, drop_noops, forward_copies),
        *(drop_dead_code, sink_to_first_use),
    ),
    "legal": (split_groupnorm, dense_factors, real_layouts),
    "rewritten": (fuse_groupnorm,),
}


def run_stage(stage: str, program: Program, *, observer: Observer | None = None, in_place: bool = False) -> Program:
    """Run the passes of one stage on a copy of a program.

    Args:
        stage: a key of `PIPELINE`.
        program: left as it is.
        observer: called with the stage and its result.
        in_place: change the program, which nobody else reads.

    Raises:
        PassError: a pass left a graph that breaks the contract of its stage (a bug of ours).
    """
    result = program if in_place or stage == "rewritten" else copy_program(program)
    for run in PIPELINE[stage]:
        began = time.perf_counter()
        run(result)
        verify_graph(result, run.__name__, loops=stage == "rewritten")
        log.debug("%s: %s took %.3f s", stage, run.__name__, time.perf_counter() - began)
    result.graph_module.recompile()
    if stage == "rewritten":
        compile_now(result.graph_module)
    if observer is not None:
        observer(stage, result)
    return result


def verify_graph(program: Program, after: str, *, loops: bool) -> None:
    """Check what every stage promises: a well-formed, pure graph whose tensors carry fake values.

    Args:
        program: what a pass left behind.
        after: name of the pass, for the message.
        loops: whether sliced loops and the mutation of their buffers are allowed.

    Raises:
        PassError: with the node that breaks the contract.
    """
    graph = program.graph_module.graph
    try:
        graph.lint()
    except RuntimeError as error:
        raise PassError(f"after {after}: {error}") from error
    if len(program.placeholders) != len(program.bindings):
        raise PassError(f"after {after}: {len(program.placeholders)} placeholders for {len(program.bindings)} bindings")
    pure: set[object] = set()  # operators that have been looked at
    for node in () if loops else graph.nodes:
        if node.op == "call_function":
            if node.target not in pure and isinstance(node.target, OpOverload) and node.target._schema.is_mutable:
                raise PassError(f"after {after}: {node.name} ({node.target}) writes into its operands")
            pure.add(node.target)
            if not isinstance(node.meta.get("val"), _VALUES) and node.users and not fake_tensors(node):
                raise PassError(f"after {after}: {node.name} ({node.target}) carries no fake value")
        elif node.op == "get_attr":
            raise PassError(f"after {after}: unexpected get_attr {node.name}")


def stages() -> Sequence[str]:
    """Names of the stages that `sicompiler dump --stage` knows, in order."""
    return ("captured", "clean", "legal", "planned", "rewritten")
