"""Where in the model a node comes from, for people."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx


def module_path(node: fx.Node) -> str:
    """Path of the module a node was traced in; empty if unknown."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def common_module(nodes: Sequence[fx.Node]) -> str:
    """The longest module path that all nodes share."""
    paths = [module_path(n).split(".") for n in nodes if module_path(n)]
    common: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def describe(node: fx.Node) -> str:
    """Name, operator and module of a node, for messages."""
    path = module_path(node)
    return f"{node.name} ({node.target})" + (f" in {path}" if path else "")
