"""The registry of axis rules, keyed by operator overload. An operator without a rule is never sliced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch._ops import OpOverload

from sicompiler.axes.factor_map import FactorMap
from sicompiler.facts.calls import bind, flatten_tensors


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of a tensor, without data."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class OpCall:
    """One call of an operator, as an axis rule sees it.

    Attributes:
        target: the operator overload.
        arguments: every argument by its schema name, defaults filled in; tensors are `TensorSpec`s.
        operands: the tensor arguments in schema order, tensor lists flattened, absent ones (None) left out.
        results: the tensor results.
    """

    target: OpOverload
    arguments: Mapping[str, Any]
    operands: tuple[TensorSpec, ...]
    results: tuple[TensorSpec, ...]

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]


Rule = Callable[[OpCall], FactorMap]

_RULES: dict[OpOverload, Rule] = {}


def rule(*targets: OpOverload) -> Callable[[Rule], Rule]:
    """Register a rule for one or more overloads.

    Raises:
        ValueError: an overload has a rule already.
    """

    def register(function: Rule) -> Rule:
        for target in targets:
            if target in _RULES:
                raise ValueError(f"{target} has an axis rule already: {_RULES[target].__qualname__}")
        _RULES.update(dict.fromkeys(targets, function))
        return function

    return register


def rules() -> Mapping[OpOverload, Rule]:
    """All registered rules, read-only."""
    return MappingProxyType(_RULES)


def rules_of_users() -> Mapping[OpOverload, Rule]:
    """The rules that are not those of this package: what is kept on disk depends on them."""
    return {t: f for t, f in _RULES.items() if not getattr(f, "__module__", "").startswith("sicompiler.axes.rules.")}


def op_call(
    target: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], results: tuple[TensorSpec, ...]
) -> OpCall:
    """Build an `OpCall` from positional and keyword arguments whose tensors are `TensorSpec`s."""
    arguments = bind(target, args, kwargs)
    operands = flatten_tensors(arguments, lambda a: isinstance(a, TensorSpec))
    return OpCall(target, MappingProxyType(arguments), tuple(operands), results)


def factor_map(call: OpCall) -> FactorMap | None:
    """The factor map of a call; None where the operator has no rule."""
    found = _RULES.get(call.target)
    return None if found is None else found(call)
