"""Running random models: from a module to its legal graph, and from a rewritten graph to its outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sicompiler.capture import Program, capture, flatten_inputs
from sicompiler.compiler.analyzed_graph import AnalyzedGraph, analyze_graph
from sicompiler.passes.loop import outline_loops
from sicompiler.passes.manager import run_stage
from sicompiler.regions.region import Region


def legal_graph(
    module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], *, device_type: str = "cpu"
) -> AnalyzedGraph:
    """Capture a model and bring its graph into the form in which regions are chosen."""
    program = capture(module, args, kwargs)
    return analyze_graph(run_stage("legal", run_stage("clean", program)), device_type)


def rewritten(graph: AnalyzedGraph, regions: Sequence[tuple[Region, int]]) -> Program:
    """Carry out regions, as `sicompiler.compiler.planner.rewrite` carries out those of a plan."""
    return run_stage("rewritten", outline_loops(graph.program, graph.view, regions))


def run_program(program: Program, module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a program returns for the inputs of a call, in the form the model returns it."""
    values = program.arguments(module, flatten_inputs(args, kwargs)[0])
    with torch.no_grad():
        flat = program.graph_module(*values)
    return program.results(flat)
