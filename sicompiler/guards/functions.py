"""Guards of code: functions, bound methods, partials, descriptors."""

from __future__ import annotations

import contextlib
import functools
import types
from typing import Any

from sicompiler.guards.base import Guard, Visitor
from sicompiler.guards.code import imports_of, names_of
from sicompiler.guards.containers import AttributesGuard
from sicompiler.guards.identity import token
from sicompiler.guards.plain import is_plain
from sicompiler.guards.quick import Quick, is_code

WRAPPER = type(functools.lru_cache(lambda: None))
_EMPTY = object()
_ENVIRONMENT = frozenset({"environ", "environb", "getenv"})


class FunctionGuard(Guard):
    """A function: its code, defaults, the cells of its closure and its attributes, deep, and the globals it reads."""

    __slots__ = ("address", "attributes", "cells", "code", "defaults", "guards")

    def __init__(self, function: types.FunctionType, path: str, walk: Visitor) -> None:
        self.address, self.code = id(function), function.__code__
        scope = function.__globals__.get("__name__")
        walk.note(path, ("code", token(self.code), scope, function.__qualname__))
        names = names_of(self.code)
        walk.reads(names)
        if not names.isdisjoint(_ENVIRONMENT):
            walk.environment()
        self.defaults = function.__defaults__ if is_plain(function.__defaults__) else None
        self.guards: list[tuple[str, Guard]] = []
        for part in ("__defaults__", "__kwdefaults__"):
            value = getattr(function, part)
            if value is not None and value is not self.defaults:
                self.guards.append((part, walk.visit(value, f"{path} {part.strip('_')}")))
        if self.defaults is not None:
            walk.visit(self.defaults, f"{path} defaults")
        cells = zip(self.code.co_freevars, function.__closure__ or (), strict=True)
        self.cells = [walk.visit(cell, f"{path} variable {name}") for name, cell in cells]
        self.attributes: AttributesGuard | None = None
        if function.__dict__:
            walk.note(f"{path} attributes", ("names", tuple(sorted(function.__dict__))))
            walk.keep(function.__dict__)
            self.attributes = AttributesGuard(function.__dict__, function.__dict__, path, walk)
        walk.namespace(function.__globals__, names, str(scope))
        for module in imports_of(self.code, function.__globals__.get("__package__")):
            walk.imported(module, names, of=str(scope))

    def holds(self, value: Any) -> bool:
        """Whether it is the same function, and does what it did."""
        if id(value) != self.address or value.__code__ is not self.code:
            return False
        if self.defaults is not None and value.__defaults__ is not self.defaults:
            return False
        for part, guard in self.guards:
            if not guard.holds(getattr(value, part)):
                return False
        if self.cells:
            for guard, cell in zip(self.cells, value.__closure__, strict=True):
                if not guard.holds(cell):
                    return False
        return not value.__dict__ if self.attributes is None else self.attributes.holds(value.__dict__)

    def flatten(self, value: types.FunctionType, quick: Quick) -> bool:
        """Code, defaults and attributes by identity, variables of the closure and what they hold one by one."""
        for attribute in ("__code__", "__defaults__", "__kwdefaults__"):
            quick.same(value, attribute, getattr(value, attribute))
        for part, guard in self.guards:
            quick.inside(getattr(value, part), guard)
        for guard, cell in zip(self.cells, value.__closure__ or (), strict=True):
            quick.inside(cell, guard)
        if self.attributes is None:
            quick.bare(value)
        else:
            quick.same(value, "__dict__", value.__dict__)
            quick.inside(value.__dict__, self.attributes)
        return True


class CellGuard(Guard):
    """A variable of a closure; functions that share it see the same one."""

    __slots__ = ("address", "guard")

    def __init__(self, cell: types.CellType, path: str, walk: Visitor) -> None:
        self.address = id(cell)
        walk.keep(cell)
        try:
            content = cell.cell_contents
        except ValueError:
            content = _EMPTY
        self.guard = walk.visit(content, path)

    def holds(self, value: Any) -> bool:
        """Whether the variable has the same content."""
        if id(value) != self.address:
            return False
        try:
            content = value.cell_contents
        except ValueError:
            content = _EMPTY
        return self.guard.holds(content)

    def flatten(self, value: types.CellType, quick: Quick) -> bool:
        """The content by identity, where it is code or can't change."""
        try:
            content = value.cell_contents
        except ValueError:
            return False
        if not is_code(content):
            return False
        quick.same(value, "cell_contents", content)
        return quick.inside(content, self.guard)


# What callables and descriptors are made of: by type, the attributes that say what they do.
PARTS: dict[type, tuple[str, ...]] = {
    types.MethodType: ("__func__", "__self__"),
    # As a decorator it is made anew for every call; what it has begun itself is of one use.
    contextlib._GeneratorContextManager: ("func", "args", "kwds"),
    functools.partial: ("func", "args", "keywords", "__dict__"),
    functools.partialmethod: ("func", "args", "keywords"),
    functools.cached_property: ("func",),
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    property: ("fget",),
    WRAPPER: ("__wrapped__",),
}


class PartsGuard(Guard):
    """Bound methods, partials, properties, static and class methods, cached functions: by what they are made of."""

    __slots__ = ("guards", "kind")

    def __init__(self, value: Any, path: str, walk: Visitor) -> None:
        self.kind = type(value)
        walk.note(f"{path} kind", ("class", walk.kind(self.kind)))
        walk.keep(value)
        self.guards: list[tuple[str, Guard]] = []
        for part in PARTS[self.kind]:
            inside = (
                f"{path} {part.strip('_')}" if part in ("args", "keywords", "kwds", "__self__", "__dict__") else path
            )
            self.guards.append((part, walk.visit(getattr(value, part, _EMPTY), inside)))

    def holds(self, value: Any) -> bool:
        """Whether it is made of the same parts."""
        if type(value) is not self.kind:
            return False
        return all(guard.holds(getattr(value, part, _EMPTY)) for part, guard in self.guards)

    def flatten(self, value: Any, quick: Quick) -> bool:
        """The parts by identity, and what is inside of them."""
        parts = [(part, guard, getattr(value, part, _EMPTY)) for part, guard in self.guards]
        if not all(is_code(found) for _, _, found in parts):
            return False
        for part, guard, found in parts:
            quick.same(value, part, found)
            quick.inside(found, guard)
        return True


class BuiltinGuard(Guard):
    """A function or method of an extension: which, and what it is bound to."""

    __slots__ = ("bound", "name")

    def __init__(self, value: Any, path: str, walk: Visitor) -> None:
        self.name = _name(value)
        walk.note(path, ("builtin", self.name))
        bound = getattr(value, "__self__", None)
        self.bound = None if bound is None or isinstance(bound, types.ModuleType) else walk.visit(bound, f"{path} self")

    def holds(self, value: Any) -> bool:
        """Whether it is the same function, bound to the same."""
        if _name(value) != self.name:
            return False
        return self.bound is None or self.bound.holds(getattr(value, "__self__", None))

    def flatten(self, value: Any, quick: Quick) -> bool:
        """Nothing, of one that is bound to nothing."""
        return self.bound is None


def _name(value: Any) -> str:
    module, name = getattr(value, "__module__", ""), getattr(value, "__qualname__", getattr(value, "__name__", ""))
    return f"{module}.{name}"
