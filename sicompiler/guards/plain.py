"""Guards of what can't change inside itself, and of what is compared by identity alone."""

from __future__ import annotations

import enum
import types
from collections.abc import Hashable
from typing import Any

import numpy as np
import torch

from sicompiler.guards.base import Guard
from sicompiler.guards.identity import token

_SIMPLE = frozenset(
    {
        *(bool, int, float, complex, str, bytes, type(None), type(Ellipsis), type(NotImplemented), range, slice),
        *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size),
    }
)
_BY_REPR = frozenset({float, complex, slice})  # 0.0 == -0.0, nan != nan, and slices have no hash


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a string, or another that is only ever replaced; tuples of such ones are too."""
    kind = type(value)
    if kind in _SIMPLE:
        return True
    if kind is tuple or kind is frozenset:
        return all(map(is_plain, value))
    return isinstance(value, (enum.Enum, np.generic)) and not isinstance(value, np.void)  # a record can be written into


def plain_fact(value: Any) -> Hashable:
    """What tells a plain value from all others, of other types too: True is not 1."""
    kind = type(value)
    if kind in _BY_REPR:
        return ("plain", kind, repr(value))
    if kind in _SIMPLE:
        return ("plain", kind, value)
    if kind is tuple:
        return ("plain", kind, tuple(map(plain_fact, value)))
    if kind is frozenset:
        return ("plain", kind, frozenset(map(plain_fact, value)))
    if isinstance(value, enum.Enum):
        return ("plain", kind, value.name)
    return ("plain", kind, str(value.dtype), value.tobytes())


class PlainGuard(Guard):
    """Numbers, strings, dtypes, devices, members of enumerations, and tuples of these: by value and type."""

    __slots__ = ("value",)
    settled = True

    def __init__(self, value: Any) -> None:
        self.value = value

    def holds(self, value: Any) -> bool:
        """Whether the value and its type are the same."""
        if value is self.value:
            return True
        return type(value) is type(self.value) and plain_fact(value) == plain_fact(self.value)


class OpaqueGuard(Guard):
    """What is not looked into: loggers, locks, files, operators of torch, objects of extensions. By identity."""

    __slots__ = ("number",)
    settled = True

    def __init__(self, value: Any) -> None:
        self.number = token(value)

    def holds(self, value: Any) -> bool:
        """Whether it is the same object."""
        return token(value) == self.number


class PrintedGuard(Guard):
    """Objects of extensions that have no attributes and no weak references, such as `itertools.count`: as printed."""

    __slots__ = ("text",)

    def __init__(self, value: Any) -> None:
        self.text = repr(value)

    def holds(self, value: Any) -> bool:
        """Whether it prints as it did."""
        return repr(value) == self.text

    def flatten(self, value: Any, quick: object) -> bool:
        """Nothing, of a type such as `int | str`."""
        return isinstance(value, (types.UnionType, types.GenericAlias))


class AgainGuard(Guard):
    """What was met before, at another place, where its content is guarded: only that it is the same object."""

    __slots__ = ("address",)
    settled = True

    def __init__(self, value: Any) -> None:
        self.address = id(value)

    def holds(self, value: Any) -> bool:
        """Whether the same object is here."""
        return id(value) == self.address
