"""Guards of what is not inside the model, but read by its code: classes, globals, torch's own settings."""

from __future__ import annotations

import os
import types
import weakref
from collections.abc import Iterable, Set
from typing import Any

import torch
from torch._ops import _OpNamespace, _Ops
from torch.nn.modules import module as torch_module

from sicompiler.guards.base import Guard, Visitor
from sicompiler.guards.code import in_library, is_read_by_syntax
from sicompiler.guards.identity import class_entries, token, version
from sicompiler.guards.names import Names
from sicompiler.guards.plain import OpaqueGuard, is_plain
from sicompiler.guards.quick import Quick, lasts

_REGISTRIES = (_Ops, _OpNamespace)  # of torch's operators: they get an entry when one is first looked up
DEFAULTS = ("the default dtype", "the default device")
_GLOBAL_HOOKS = ("_global_forward_pre_hooks", "_global_forward_hooks")


class ClassPlace:
    """A class: those of its functions, properties and attributes that some code of the model names.

    Args:
        kind: the class; it is not kept alive.
    """

    def __init__(self, kind: type) -> None:
        self._kind = weakref.ref(kind)
        self._entries: list[tuple[str, Guard]] = []
        self._changing: list[tuple[str, Guard]] = []  # of these, what may change inside itself
        self._done: set[str] = set()
        self._left: set[str] = set()
        self._names: Set[str] = frozenset()
        self.version = self._reach = 0
        self.path = kind.__qualname__

    def grow(self, reach: set[str], walk: Visitor) -> bool:
        """Describe what came into reach since; whether there was any."""
        kind, self._names = self._kind(), reach
        assert kind is not None
        entries = class_entries(kind)
        now = version(entries)
        if now == self.version and len(reach) == self._reach:  # it only ever grows
            return False
        in_reach: set[str] = set()
        if now != self.version:
            self._left = entries.keys() - self._done
            in_reach = {name for name in self._left if is_read_by_syntax(name)}
        in_reach |= self._left & reach
        self._left -= in_reach
        self.version, self._reach = now, len(reach)
        new = [name for name in entries if name in in_reach] if in_reach else []
        for name in new:
            self._done.add(name)
            value = entries[name]
            walk.note(f"{self.path}.{name} there", ("names", (walk.kind(kind), name)))
            if not isinstance(value, (types.MemberDescriptorType, types.GetSetDescriptorType)):
                walk.keep(kind, name)
                row = (name, walk.visit(value, f"{self.path}.{name}"))
                self._entries.append(row)
                if not row[1].settled:
                    self._changing.append(row)
        return bool(new)

    def holds(self) -> bool:
        """Whether what counts of the class is as it was."""
        kind = self._kind()
        if kind is None:
            return False
        entries = class_entries(kind)
        now = version(entries)
        guards = self._changing
        if now != self.version:
            if {n for n in entries if n in self._names or is_read_by_syntax(n)} != self._done:
                return False
            guards = self._entries
        for name, guard in guards:
            if not guard.holds(entries[name]):
                return False
        self.version = now
        return True

    def flatten(self, quick: Quick) -> bool:
        """Put what has to be asked in lists that are gone through faster; whether that can be, of this class."""
        kind = self._kind()
        if kind is None or not lasts(kind):
            return False
        quick.place(class_entries(kind), dict(self._changing))
        return True


class NamespacePlace:
    """The globals of a Python module: functions, numbers, tensors and all else that code of the model names.

    Args:
        entries: the dict of the module.
        path: name of the module.
        names: which names are which bits of a number.
    """

    def __init__(self, entries: dict[str, Any], path: str, names: Names) -> None:
        self._dict, self.path, self._names = entries, path, names
        self._library = in_library(entries.get("__name__"))
        self._wanted = 0
        self._fresh = 0  # of these, the ones that were not looked up yet
        self._there = 0  # names that the dict has, as of its version and the number of names then
        self._left = set[str]()  # keys of the dict that were no names then
        self._as_of = (0, 0)
        self._guards: dict[str, Guard] = {}
        self._changing: dict[str, Guard] = {}  # of these, what may change inside itself
        self._below: dict[int, types.ModuleType] = {}
        self.version = 0

    @property
    def pending(self) -> bool:
        """Whether there are names to look up."""
        return bool(self._fresh)

    def wants(self, names: int) -> None:
        """More names that are read."""
        fresh = names & ~self._wanted
        if fresh:
            self._wanted |= fresh
            self._fresh |= fresh

    def _new(self, fresh: int) -> list[str]:
        """The names among some that the dict has, in order."""
        as_of = (version(self._dict), len(self._names))
        if as_of[0] != self._as_of[0]:
            self._there, self._left, self._as_of = 0, set(self._dict), (as_of[0], 0)
        if as_of != self._as_of:
            found = self._names.among(self._left, since=self._as_of[1])
            self._left -= found
            self._there |= self._names.bits(found)
            self._as_of = as_of
        return sorted(self._names.of(fresh & self._there))

    def grow(self, walk: Visitor) -> bool:
        """Describe the names that are new; whether there were any."""
        if not self._fresh:
            return False
        self.version = version(self._dict)
        fresh, self._fresh = self._fresh, 0
        known = set(self._below)
        new = self._new(fresh)
        for name in new:
            value, path = self._dict[name], f"{self.path}.{name}"
            if isinstance(value, types.ModuleType):
                self._guards[name] = OpaqueGuard(value)
                walk.note(path, ("module", value.__name__))
                if not isinstance(value, _REGISTRIES):
                    self._below[id(value)] = value
            elif self._library and not _is_followed(value):
                self._guards[name] = OpaqueGuard(value)
                walk.note(path, ("library", token(value)))
            else:
                walk.keep(self._dict, name)
                self._guards[name] = walk.visit(value, path)
            if not self._guards[name].settled:
                self._changing[name] = self._guards[name]
        for address, module in self._below.items():  # `F.silu`: the names after the dot
            walk.namespace(module.__dict__, fresh if address in known else self._wanted, module.__name__)
        return bool(new)

    def holds(self) -> bool:
        """Whether what is read is as it was."""
        now = version(self._dict)
        moved = now != self.version
        for name, guard in (self._guards if moved else self._changing).items():
            if not (name in self._dict and guard.holds(self._dict[name])):
                return False
        if moved:
            others = self._names.among(self._dict.keys() - self._guards.keys())
            if self._wanted & self._names.bits(others):
                return False
        self.version = now
        return True

    def flatten(self, quick: Quick) -> bool:
        """Put what has to be asked in lists that are gone through faster."""
        quick.place(self._dict, self._changing)
        return True


_MOVES = 3  # of the dict of a place, though nothing that is read of it changes: then it is asked by itself
_PATIENCE = 8  # how often lists are made anew because of what no version tells


class Places:
    """Classes and globals together: those that stay as they are in lists, the others one by one.

    Args:
        places: all of them, described.
    """

    def __init__(self, places: Iterable[ClassPlace | NamespacePlace]) -> None:
        self._places = list(places)
        self._versions = [0] * len(self._places)  # when the lists were made
        self._moves = [0] * len(self._places)
        self._alone: list[ClassPlace | NamespacePlace] = []
        self._quick: Quick | None = None
        self._asked = 0

    def hold(self) -> bool:
        """Whether all of them are as they were."""
        if self._quick is not None and self._quick.holds():
            return all(place.holds() for place in self._alone)
        if not all(place.holds() for place in self._places):
            return False
        self._asked += 1
        if self._asked > 1:  # who asks once, in the middle of a trace, has no use for lists
            self._flatten()
        return True

    def _flatten(self) -> None:
        """Make the lists anew, as they don't hold though all places do."""
        known = self._versions
        self._versions = [place.version for place in self._places]
        if known == self._versions and self._asked > _PATIENCE:
            self._moves = [_MOVES] * len(self._places)
        self._moves = [
            moves + (now != before) for moves, now, before in zip(self._moves, self._versions, known, strict=True)
        ]
        self._alone, self._quick = [], Quick()
        for place, moves in zip(self._places, self._moves, strict=True):
            if moves > _MOVES or not place.flatten(self._quick):
                self._alone.append(place)


class EnvironmentPlace:
    """Environment variables that some code of the model may read: those whose names stand in code or in attributes."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._entries: dict[Any, Any] = os.environ._data  # type: ignore[attr-defined]  # every change ends up there
        self._version = version(self._entries)
        self._set = _environment()
        self._values: dict[str, str] = {}  # of these, those that may be read

    def wants(self, names: Set[str], walk: Visitor) -> None:
        """More names that may be read."""
        self._names |= names
        for name in sorted((self._set.keys() & names) - self._values.keys()):
            self._values[name] = self._set[name]
            walk.note(f"the environment variable {name}", ("variable", self._set[name]))

    def holds(self) -> bool:
        """Whether all of them are as they were."""
        now = version(self._entries)
        if now != self._version:
            if {name: value for name, value in _environment().items() if name in self._names} != self._values:
                return False
            self._version = now
        return True


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.isascii()}


_FAST = "torch.backends.mha.get_fastpath_enabled()"


class AmbientPlace:
    """What torch itself holds for all modules: global hooks, default dtype and device, the fast path of attention."""

    def __init__(self, walk: Visitor) -> None:
        self._dtype, self._device = torch.get_default_dtype(), torch.get_default_device()
        self._fast = torch.backends.mha.get_fastpath_enabled()
        for path, value in zip((*DEFAULTS, _FAST), (self._dtype, self._device, self._fast), strict=True):
            walk.note(path, ("plain", type(value), value))
        self._hooks = [version(getattr(torch_module, name)) for name in _GLOBAL_HOOKS]
        for name in _GLOBAL_HOOKS:
            walk.visit(list(getattr(torch_module, name).values()), f"global hooks of torch ({name})")

    def holds(self) -> bool:
        """Whether all of it is as it was."""
        return (
            torch.get_default_dtype() is self._dtype
            and torch.backends.mha.get_fastpath_enabled() == self._fast
            and torch.get_default_device() == self._device
            and [version(getattr(torch_module, name)) for name in _GLOBAL_HOOKS] == self._hooks
        )


def _is_followed(value: Any) -> bool:
    """Whether something in the globals of a library is not the library's own, but put there: a function, a number."""
    if isinstance(value, types.FunctionType):
        return not in_library(value.__globals__.get("__name__"))
    return is_plain(value)


def global_hooks() -> list[Any]:
    """Forward hooks that fire for every module there is; those of torch's own tools, which change nothing, left out."""
    hooks = [hook for name in _GLOBAL_HOOKS for hook in getattr(torch_module, name).values()]
    return [hook for hook in hooks if not str(getattr(hook, "__module__", "")).startswith("torch.")]
