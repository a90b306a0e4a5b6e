"""Small tools that passes share: insert a call with its fake value, copy a program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode

from sicompiler.capture import Program


def insert_call(
    graph: fx.Graph, mode: FakeTensorMode, target: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> fx.Node:
    """Insert an operator call at the graph's insert point, with the fake value it computes in `meta["val"]`."""
    node = graph.call_function(target, args, dict(kwargs or {}))
    fake_args, fake_kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    with mode, torch.no_grad():
        node.meta["val"] = target(*fake_args, **fake_kwargs)
    return node


def inherit(node: fx.Node, origin: fx.Node) -> fx.Node:
    """Let a new node tell the source line and module of the node it stands for."""
    for key in ("stack_trace", "nn_module_stack"):
        if key in origin.meta:
            node.meta[key] = origin.meta[key]
    return node


def copy_program(program: Program) -> Program:
    """A program whose graph may be changed without changing the original."""
    graph = fx.Graph()
    output = graph.graph_copy(program.graph_module.graph, val_map={})
    original = program.graph_module.graph.output_node()
    node = graph.output(output)
    node.meta.update(original.meta)
    return program.with_graph(fx.GraphModule(torch.nn.Module(), graph))
