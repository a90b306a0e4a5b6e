"""Sizes and numbers that depend on data, as a traced graph has them: symbols."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch._ops import OpOverload

_OPEN_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class Refused(Exception):
    """A reason why an operator is not bounded."""


def is_symbolic(node: fx.Node) -> bool:
    """Whether a node is a number, or holds a tensor with a size, that depends on data."""
    return any(
        isinstance(size, (torch.SymInt, torch.SymBool, torch.SymFloat))
        for leaf in pytree.tree_leaves(node.meta.get("val"))
        for size in (tuple(leaf.shape) if isinstance(leaf, torch.Tensor) else (leaf,))
    )


def depends_on_data(target: OpOverload) -> bool:
    """Whether an operator gives a number, or a size, that depends on the values of a tensor."""
    return not _OPEN_TAGS.isdisjoint(target.tags)


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call by name, defaults filled in."""
    assert isinstance(node.target, OpOverload)
    given = dict(enumerate(node.args))
    return {
        argument.name: given.get(position, node.kwargs.get(argument.name, argument.default_value))
        for position, argument in enumerate(node.target._schema.arguments)
    }
