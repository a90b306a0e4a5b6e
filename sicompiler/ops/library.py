"""Registers our operators with torch, so that they are OpOverloads like any aten operator.

`torch.library.custom_op` would do it in fewer lines, but an operator that changes an operand costs 25 us per call then,
and 5 us this way (measured on torch 2.13). That matters in a loop of a thousand slices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

_Function = TypeVar("_Function", bound=Callable[..., Any])

NAMESPACE = "sicompiler"
_KEY = "CompositeExplicitAutograd"
_LIBRARY: torch.library.Library = globals().get("_LIBRARY") or torch.library.Library(NAMESPACE, "FRAGMENT")


def operator(schema: str, fake: Callable[..., Any]) -> Callable[[_Function], _Function]:
    """Register the decorated function as the operator `torch.ops.sicompiler.<name>.default`.

    The operators are for inference: on operands that require grad they run, and torch warns if `backward` reaches them.

    Args:
        schema: name, arguments and results as torch writes them, e.g. `f(Tensor x, int n) -> Tensor`.
        fake: the same function on tensors without memory: it tells shapes, strides and dtypes of the results.

    Returns:
        A decorator that returns the function unchanged. Registering a name again, as a reload of the module does,
        changes nothing.
    """
    name = schema.partition("(")[0]

    def register(function: _Function) -> _Function:
        if torch._C._dispatch_has_kernel(f"{NAMESPACE}::{name}"):
            return function
        _LIBRARY.define(schema)
        _LIBRARY.impl(name, torch.no_grad()(function), _KEY)
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
        return function

    return register
