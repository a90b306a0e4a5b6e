"""The code of classes and Python modules, told to be as it was in a few passes over lists.

Most guards are of functions that nobody ever changes: to ask each by itself takes a step of Python and a dozen places
in memory. Where a class or a module holds them under the same version of its dict, they are the same objects, and all
there is left to see is whether something was set on them. Objects of the model are never kept here, only what lives as
long as the Python module it was defined in.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
import sys
import types
from collections.abc import Callable
from typing import Any

from sicompiler.guards.base import Guard
from sicompiler.guards.identity import version
from sicompiler.guards.plain import is_plain

_DEPTH = 4
_CONTAINERS = (list, tuple, dict, set, frozenset)
_ATTRIBUTES: Callable[[Any], dict[str, Any]] = operator.attrgetter("__dict__")


class Quick:
    """What holds if nothing has changed: versions of dicts, and attributes of code by identity."""

    def __init__(self) -> None:
        self._dicts: list[dict[str, Any]] = []
        self._versions: list[int] = []
        self._same: dict[str, tuple[list[Any], list[Any]]] = {}
        self._bare: list[Any] = []
        self._lists: list[list[Any]] = []
        self._lengths: list[int] = []
        self._entries: list[Any] = []  # of all lists, one after the other
        self._sets: list[set[Any] | frozenset[Any]] = []
        self._members: list[frozenset[Any]] = []
        self._named: list[tuple[dict[str, Any], str, Guard]] = []  # what has to be asked, by its name in a place
        self._asked: list[tuple[Any, Guard]] = []  # the same, inside of code

    def place(self, entries: dict[str, Any], guards: dict[str, Guard]) -> None:
        """Take in the dict of a class or Python module.

        Args:
            entries: the dict.
            guards: of those of its entries that may change inside themselves.
        """
        self.versioned(entries)
        for name, guard in guards.items():
            if not guard.flatten(entries[name], self):
                self._named.append((entries, name, guard))

    def inside(self, value: Any, guard: Guard) -> bool:
        """Something that code holds is as it was; asked by itself where lists can't tell."""
        if not guard.flatten(value, self):
            self._asked.append((value, guard))
        return True

    def versioned(self, entries: dict[str, Any]) -> None:
        """Nothing is set in a dict, or taken out."""
        self._dicts.append(entries)
        self._versions.append(version(entries))

    def same(self, value: Any, attribute: str, expected: Any) -> None:
        """An object has just this under an attribute."""
        values, wanted = self._same.setdefault(attribute, ([], []))
        values.append(value)
        wanted.append(expected)

    def bare(self, value: Any) -> None:
        """An object has no attributes in its dict."""
        self._bare.append(value)

    def listed(self, value: list[Any]) -> None:
        """A list has just these entries."""
        self._lists.append(value)
        self._lengths.append(len(value))
        self._entries += value

    def members(self, value: set[Any] | frozenset[Any]) -> None:
        """A set has just these members, none of which is equal to another thing."""
        self._sets.append(value)
        self._members.append(frozenset(value))

    def holds(self) -> bool:
        """Whether all of it is as it was; if not, the guards have to be asked."""
        if list(map(version, self._dicts)) != self._versions:
            return False
        try:
            for attribute, (values, wanted) in self._same.items():
                if not all(map(operator.is_, map(operator.attrgetter(attribute), values), wanted)):
                    return False
        except (AttributeError, ValueError):  # a variable of a closure that is empty by now
            return False
        if any(map(_ATTRIBUTES, self._bare)) or self._sets != self._members:
            return False
        if list(map(len, self._lists)) != self._lengths:
            return False
        if not all(map(operator.is_, itertools.chain.from_iterable(self._lists), self._entries)):
            return False
        return all(guard.holds(value) for value, guard in self._asked) and all(
            guard.holds(entries[name]) for entries, name, guard in self._named
        )


def lasts(kind: type) -> bool:
    """Whether a class lives as long as the Python module it was defined in: it can be found there."""
    found: Any = sys.modules.get(kind.__module__)
    for name in kind.__qualname__.split("."):
        found = getattr(found, "__dict__", {}).get(name)
    return found is kind


def is_code(value: Any, depth: int = _DEPTH) -> bool:
    """Whether a value may be kept by who keeps the code that reads it: code itself, classes, what can't change.

    Args:
        value: anything.
        depth: how far to look into lists and dicts.
    """
    if isinstance(value, (types.FunctionType, type, dataclasses.Field)) or is_plain(value):
        return True
    if not depth or type(value) not in _CONTAINERS:
        return False
    inside = value.values() if type(value) is dict else value
    return all(is_code(entry, depth - 1) for entry in inside)
