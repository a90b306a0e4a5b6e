"""Cut: one captured graph becomes two, a full one that also gives the values of a cut, and one that starts at them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from sicompiler.capture import Binding, Program, Source
from sicompiler.errors import BadInput
from sicompiler.facts.storages import fake_tensors
from sicompiler.passes.edit import copy_program, inherit, insert_call


def full_program(program: Program, cut: Sequence[int]) -> Program:
    """A program with the values of a cut as further outputs.

    Before: `return y`
    After:  `return (y, [x])`
    Exact because nothing else changes. A value that an output shows already is copied: two outputs over one memory
    would let no loop go around the graph.

    Args:
        program: left as it is.
        cut: positions of the nodes whose values are wanted.

    Raises:
        BadInput: a position is none of an operator that gives one tensor.
    """
    result = copy_program(program)
    graph = result.graph_module.graph
    output = graph.output_node()
    values = [_of_its_own(graph, result.fake_mode, value, output) for value in _values(graph, cut)]
    outputs = [*pytree.tree_leaves(output.args[0]), *values]
    output.args = (tuple(outputs),)
    spec = pytree.tree_structure((pytree.tree_unflatten(list(outputs[: -len(values)]), program.out_spec), values))
    result.graph_module.recompile()
    return Program(result.graph_module, result.bindings, result.constants, spec, result.fake_mode)


def skip_program(program: Program, cut: Sequence[int]) -> Program:
    """The program that starts at the values of a cut: they are further inputs, and what only fed them is gone.

    Before: `x = deep(a); y = late(x, b); return y`
    After:  `y = late(x, b); return y`, with `x` a placeholder behind all others
    Exact if it is given the values that the full program gives. Placeholders of inputs stay, read or not, so that it is
    called with the inputs of the full one; those of weights that nothing reads any more go.

    Args:
        program: left as it is.
        cut: positions of the nodes whose values are given.

    Raises:
        BadInput: a position is none of an operator that gives one tensor.
    """
    old = program.graph_module.graph
    given = _values(old, cut)
    needed = _needed(old, given)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    bindings: list[Binding] = []
    for node, binding in zip(program.placeholders, program.bindings, strict=True):
        if binding.source is Source.INPUT or node in needed:
            copies[node] = _copied(graph, node, copies)
            bindings.append(binding)
    for number, node in enumerate(given):
        copies[node] = graph.placeholder(f"given_{number}")
        value = node.meta["val"]
        with program.fake_mode:  # a value of its own, not one that shares memory with what the full graph makes
            copies[node].meta["val"] = torch.empty_strided(
                value.shape, value.stride(), dtype=value.dtype, device=value.device
            )
        bindings.append(Binding(Source.INPUT, f"given_{number}"))
    for node in old.nodes:
        if node in needed and node not in copies and node.op != "output":
            copies[node] = _copied(graph, node, copies)
    output = graph.output(fx.node.map_arg(old.output_node().args[0], lambda n: copies[n]))
    output.meta.update(old.output_node().meta)
    graph_module = fx.GraphModule(torch.nn.Module(), graph)
    return Program(graph_module, tuple(bindings), program.constants, program.out_spec, program.fake_mode)


def _values(graph: fx.Graph, cut: Sequence[int]) -> list[fx.Node]:
    nodes = list(graph.nodes)
    found = [nodes[position] for position in cut]
    for node in found:
        if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor):
            raise BadInput(f"a cut goes through single tensors that operators give; {node.format_node()} is none")
    if not found:
        raise BadInput("a cut needs one value at least")
    return found


def _of_its_own(graph: fx.Graph, mode: FakeTensorMode, value: fx.Node, output: fx.Node) -> fx.Node:
    """The value, or a copy where it shares memory with an output."""
    storage = value.meta["val"].untyped_storage()._cdata
    shown = (t for node in output.all_input_nodes for t in fake_tensors(node))
    if all(t.untyped_storage()._cdata != storage for t in shown):
        return value
    with graph.inserting_before(output):
        return inherit(insert_call(graph, mode, torch.ops.aten.clone.default, (value,)), value)


def _needed(graph: fx.Graph, given: Sequence[fx.Node]) -> set[fx.Node]:
    """Everything the output needs, from the given values on."""
    stop, found, waiting = set(given), set[fx.Node](), [graph.output_node()]
    while waiting:
        node = waiting.pop()
        if node not in found and node not in stop:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def _copied(graph: fx.Graph, node: fx.Node, copies: dict[fx.Node, fx.Node]) -> fx.Node:
    copy = graph.node_copy(node, lambda n: copies[n])
    copy.meta = dict(node.meta)
    return copy
