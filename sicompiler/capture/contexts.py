"""Contexts that a model enters while it runs, such as `torch.autocast` and `torch.set_grad_enabled`: inlined.

`torch.export` puts the operators inside into a graph of their own. Inlined they mean the same:

- gradients: a compiled model never records any, and what an operator computes does not depend on it;
- autocast off: a compiled model runs outside of any autocast (see `check_no_autocast`), which is off in it as well;
- `torch.vmap`: the traced operators do not carry the dim that it adds; `run_decompositions` records operators that do;
- autocast on: the traced operators do not carry the casts, the dispatcher makes them. `run_decompositions` runs the
  context and records every cast as an operator; only after that is there nothing left to inline.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from torch import fx

_AUTOCAST = torch.ops.higher_order.wrap_with_autocast  # (device, dtype, enabled, cache_enabled, body, *operands)
_GRAD = torch.ops.higher_order.wrap_with_set_grad_enabled  # (enabled, body, *operands)
_BODY = {_AUTOCAST: 4, _GRAD: 1}  # which argument is the body


def graphs(graph_module: fx.GraphModule) -> Iterator[fx.Graph]:
    """The graph of a module and of every module inside it."""
    for module in graph_module.modules():
        if isinstance(module, fx.GraphModule):
            yield module.graph


def casts_by_itself(graph_module: fx.GraphModule) -> bool:
    """Whether some operators run in an autocast that is on, so that the dispatcher casts their operands."""
    return any(node.args[2] for graph in graphs(graph_module) for node in graph.nodes if node.target is _AUTOCAST)


def maps_by_itself(graph_module: fx.GraphModule) -> bool:
    """Whether some operators run in a `torch.vmap`, which adds a dim to what they work on."""
    return any(_maps(node) for graph in graphs(graph_module) for node in graph.nodes)


def drop_unread_maps(graph_module: fx.GraphModule) -> None:
    """Remove what is computed inside of `torch.vmap` where nothing of it is read, in place.

    The blocks of a block mask are such, where attention is dense: they take operators that no graph can hold.
    """
    graph = graph_module.graph
    if not maps_by_itself(graph_module):
        return
    read = {node for node in graph.nodes if node.op == "output" or (node.is_impure() and node.op == "call_function")}
    for node in reversed(graph.nodes):
        if node in read:
            read.update(node.all_input_nodes)
    if not any(_maps(node) for node in read):
        graph.eliminate_dead_code()


def _maps(node: fx.Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "__module__", "") == "torch._functorch.predispatch"


def inline_contexts(graph_module: fx.GraphModule) -> None:
    """Put the operators of every context in the place of the call, in place.

    Before: `c = wrap_with_autocast('cpu', float32, False, False, body, x); y = c[0]`,
    after: the operators of `body`. Autocasts that are on are left alone.
    """
    graph = graph_module.graph
    for node in list(graph.nodes):
        position = _BODY.get(node.target)
        if position is None or (node.target is _AUTOCAST and node.args[2]):
            continue
        body = node.args[position]
        inner = graph_module.get_submodule(str(body.target))
        assert isinstance(inner, fx.GraphModule)
        inline_contexts(inner)
        operands = zip(inner.graph.find_nodes(op="placeholder"), node.args[position + 1 :], strict=True)
        with graph.inserting_before(node):
            outputs = graph.graph_copy(inner.graph, val_map=dict(operands))
        for user in list(node.users):
            assert user.target is operator.getitem
            assert isinstance(outputs, (tuple, list))
            user.replace_all_uses_with(outputs[user.args[1]])
            graph.erase_node(user)
        graph.erase_node(node)
        if not body.users:
            graph.erase_node(body)
