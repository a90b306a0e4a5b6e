"""What a plan depends on of a live model, and noticing at every call whether any of it has changed.

A LoRA that is loaded or scaled, another attention processor, FreeU, a switch turned on, weights cast or moved: all of
them change modules, their attributes or their tensors, and a trace made before no longer computes what the model would.
Describing all of that takes tens of milliseconds for a big model. So it is described once, and a call compares: objects
that can't change are compared by identity, tensors by shape and dtype (where a call runs its inputs tell; weights may
lie in far memory meanwhile), and only what can change inside itself (a dict of scales, an attention processor) is
described anew. Nothing of the model is kept alive for that.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

# Beside what torch keeps in a module: where accelerate and diffusers keep hooks, which move weights about.
_INTERNAL = (frozenset(vars(torch.nn.Module())) - {"training"}) | {"_hf_hook", "_diffusers_hook"}
_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)
_FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial)
MAX_ENTRIES = 256  # of a container of settings; anything longer is data

_IGNORED = object()
_Layout = tuple[torch.Size, torch.dtype, bool] | None


@dataclass(frozen=True)
class _Seen:
    """One module as it was when it was described.

    Attributes:
        kind: its class.
        names: of all its attributes, in order.
        fixed: settings that can't change inside themselves: name and object.
        stand_ins: the other settings, described.
        parameters, buffers: their names and layouts.
        children: names of its submodules.
    """

    kind: type
    names: list[str]
    fixed: tuple[tuple[str, Any], ...]
    stand_ins: tuple[tuple[str, Any], ...]
    parameters: dict[str, _Layout]
    buffers: dict[str, _Layout]
    children: list[str]

    def is_still(self, module: torch.nn.Module, root: bool) -> bool:
        """Whether a module looks as this one did. Written to be quick: it runs for every module at every call."""
        own = module.__dict__
        if type(module) is not self.kind or list(own) != self.names:
            return False
        for name, value in self.fixed:
            if own[name] is not value:
                return False
        for name, known in self.stand_ins:
            if stand_in(own[name], root, 2) != known:
                return False
        children, parameters, buffers = own["_modules"], own["_parameters"], own["_buffers"]
        if (children or self.children) and _children(own) != self.children:
            return False
        if (parameters or self.parameters) and not _are_still(parameters, self.parameters):
            return False
        return not (buffers or self.buffers) or _are_still(buffers, self.buffers)


def _are_still(held: Mapping[str, torch.Tensor | None], known: Mapping[str, _Layout]) -> bool:
    """Whether tensors have the names and layouts that they had."""
    if list(held) != list(known):
        return False
    for name, tensor in held.items():
        layout = known[name]
        if tensor is None or layout is None:
            if (tensor is None) != (layout is None):
                return False
        elif tensor.dtype is not layout[1] or tensor.shape != layout[0] or tensor.is_meta != layout[2]:
            return False
    return True


class Noticed:
    """The key of a live model, described anew only after something of it has changed."""

    def __init__(self) -> None:
        self._seen: tuple[list[_Seen], int] | None = None

    def key(self, model: torch.nn.Module) -> int:
        """A hash of all that a plan depends on of the model: its modules, their settings, layouts of its tensors."""
        if self._seen is None or not self._is_still(model, self._seen[0]):
            seen = [_described(module, module is model) for module in _modules(model)]
            self._seen = (seen, hash(tuple(map(_hashable, seen))))
        return self._seen[1]

    def _is_still(self, model: torch.nn.Module, seen: list[_Seen]) -> bool:
        """Compare module by module; as long as all are as they were, the next one stands where it stood."""
        pairs = zip(seen, _modules(model), strict=False)
        return all(known.is_still(module, module is model) for known, module in pairs)


def _modules(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """All modules, each before its children; shared ones wherever they are."""
    left: list[torch.nn.Module | None] = [model]
    while left:
        module = left.pop()
        if module is not None:
            yield module
            left += reversed(module.__dict__["_modules"].values())


def _described(module: torch.nn.Module, root: bool) -> _Seen:
    own = module.__dict__
    settings = [(name, value) for name, value in own.items() if name not in _INTERNAL]
    return _Seen(
        type(module),
        list(own),
        tuple((name, value) for name, value in settings if _is_fixed(value)),
        tuple((name, stand_in(value, root, 2)) for name, value in settings if not _is_fixed(value)),
        {name: _layout(tensor) for name, tensor in own["_parameters"].items()},
        {name: _layout(tensor) for name, tensor in own["_buffers"].items()},
        _children(own),
    )


def _hashable(seen: _Seen) -> Hashable:
    """What of a described module counts: not the order of its attributes, and nothing that belongs to hooks."""
    fixed = tuple((name, stand_in(value, False, 2)) for name, value in seen.fixed)
    settings = sorted((row for row in (*fixed, *seen.stand_ins) if row[1] is not _IGNORED), key=lambda row: row[0])
    tensors = (tuple(seen.parameters.items()), tuple(seen.buffers.items()))
    return (seen.kind.__qualname__, tuple(settings), tensors, tuple(seen.children))


def _children(own: dict[str, Any]) -> list[str]:
    return [name for name, child in own["_modules"].items() if child is not None]


def _layout(tensor: torch.Tensor | None) -> _Layout:
    return None if tensor is None else (tensor.shape, tensor.dtype, tensor.is_meta)


def _is_fixed(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (
        type(value) is tuple and len(value) <= MAX_ENTRIES and all(map(_is_fixed, value))
    )


def stand_in(value: Any, root: bool, depth: int) -> Any:
    """A hashable stand-in for a setting; tensors and modules have their own places in the key."""
    if isinstance(value, _PLAIN):
        return (type(value), value)
    if isinstance(value, (torch.Tensor, torch.nn.Module)) or (root and isinstance(value, _FUNCTIONS)):
        return _IGNORED  # functions of the model itself are where sicompiler and accelerate sit
    name = (type(value).__qualname__, getattr(value, "__qualname__", ""))
    if depth == 0 or isinstance(value, _FUNCTIONS):
        return name
    if isinstance(value, dict):
        inside = [(str(k), stand_in(v, root, depth - 1)) for k, v in value.items()] if len(value) <= MAX_ENTRIES else []
    elif isinstance(value, (list, tuple)):
        inside = [("", stand_in(v, root, depth - 1)) for v in value] if len(value) <= MAX_ENTRIES else []
    else:  # a configuration, an attention processor
        inside = [(k, stand_in(v, root, 0)) for k, v in getattr(value, "__dict__", {}).items()]
    return (*name, *(row for row in inside if row[1] is not _IGNORED))
