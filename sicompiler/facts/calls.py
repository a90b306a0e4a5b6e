"""Calls of operators: arguments by their schema names, and the tensors among them in schema order."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

import sicompiler.ops  # noqa: F401  (registers group_stats)


def bind(target: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Name the arguments of a call by the operator's schema and fill in the defaults."""
    named: dict[str, Any] = {}
    for position, argument in enumerate(target._schema.arguments):
        if position < len(args) and not argument.kwarg_only:
            named[argument.name] = args[position]
        elif argument.name in kwargs:
            named[argument.name] = kwargs[argument.name]
        else:
            named[argument.name] = argument.default_value
    return named


def flatten_tensors(arguments: Mapping[str, Any], is_tensor: Callable[[Any], bool]) -> list[Any]:
    """The tensors among named arguments, in schema order, lists flattened, None left out."""
    found: list[Any] = []
    for argument in arguments.values():
        items = argument if isinstance(argument, (list, tuple)) else (argument,)
        found.extend(item for item in items if is_tensor(item))
    return found


def takes_statistics(node: fx.Node) -> bool:
    """Whether a node is the first pass of a group norm."""
    return node.target is torch.ops.sicompiler.group_stats.default


def operands_of(node: fx.Node) -> tuple[tuple[fx.Node, int], ...]:
    """The tensor operands of a node in schema order: the node that makes each, and which of its results it is."""
    if node.target is operator.getitem:
        source, index = node.args[0], node.args[1]
        assert isinstance(source, fx.Node) and isinstance(index, int)
        return ((source, index),)
    if not isinstance(node.target, OpOverload):
        return tuple((source, 0) for source in node.all_input_nodes)
    found: list[tuple[fx.Node, int]] = []
    named = node.kwargs
    arguments = node.args
    if named:
        arguments += tuple(named[a.name] for a in node.target._schema.arguments if a.name in named)
    for argument in arguments:
        if isinstance(argument, fx.Node):
            found.append((argument, 0))
        elif isinstance(argument, (list, tuple)):
            found += [(item, 0) for item in argument if isinstance(item, fx.Node)]
    return tuple(found)
