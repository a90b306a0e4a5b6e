"""Random numbers: operators that draw them are refused, as a plan may run them in another order, in slices or twice."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

_CHANCES = ("dropout_p", "p")
_SWITCHES = ("train", "training")


def draws(node: fx.Node) -> bool:
    """Whether an operator of a graph draws random numbers: dropout that is off, or of probability zero, does not."""
    target = node.target
    if not isinstance(target, OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    given = _arguments(node, target)
    if any(given.get(name) is False for name in _SWITCHES):
        return False
    return not any(name in given and given[name] == 0 for name in _CHANCES)


def _arguments(node: fx.Node, target: OpOverload) -> dict[str, Any]:
    schema = target._schema.arguments
    given = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    given.update(zip((argument.name for argument in schema), node.args, strict=False))
    return given | node.kwargs
