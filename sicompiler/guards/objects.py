"""Guards of objects of any class: attention processors, configurations, dataclasses, hooks."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Container, Iterator
from typing import Any

import torch

from sicompiler.guards.base import Guard, Visitor
from sicompiler.guards.containers import AttributesGuard
from sicompiler.guards.quick import Quick

_MISSING = object()


def slots_of(kind: type) -> Iterator[str]:
    """Names that objects of a class have outside of their dict.

    A slot that a subclass hides, behind a property for instance, holds nothing that code can reach by its name.
    """
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else tuple(slots):
            mangled = slot.startswith("__") and not slot.endswith("__")
            name = f"_{base.__name__.lstrip('_')}{slot}" if mangled else slot
            if isinstance(inspect.getattr_static(kind, name, None), types.MemberDescriptorType):
                yield name


class ObjectGuard(Guard):
    """An object: its class, its attributes, those in slots too, and what it holds where it is a container.

    Args:
        value: the object.
        path: where it is.
        walk: who goes on.
        content: guard of what it holds, where its class is one of containers.
    """

    __slots__ = ("address", "attributes", "content", "kind", "slots")

    def __init__(self, value: Any, path: str, walk: Visitor, content: Guard | None = None) -> None:
        self.address, self.kind, self.content = id(value), type(value), content
        walk.note(f"{path} class", ("class", walk.kind(self.kind)))
        own = getattr(value, "__dict__", None)
        self.attributes: AttributesGuard | None = None
        if isinstance(own, dict):
            walk.note(f"{path} attributes", ("names", tuple(sorted(map(str, own)))))
            walk.keep(own)
            self.attributes = AttributesGuard(own, own, path, walk)
        self.slots: list[tuple[str, Guard]] = []
        for name in slots_of(self.kind):
            entry = getattr(value, name, _MISSING)
            if entry is not _MISSING:
                walk.keep(value, name)
                self.slots.append((name, walk.visit(entry, f"{path}.{name}")))

    def holds(self, value: Any) -> bool:
        """Whether it is the same object with the same content."""
        if id(value) != self.address or type(value) is not self.kind:
            return False
        if self.attributes is not None and not self.attributes.holds(value.__dict__):
            return False
        if self.content is not None and not self.content.holds(value):
            return False
        return all(guard.holds(getattr(value, name, _MISSING)) for name, guard in self.slots)

    def flatten(self, value: Any, quick: Quick) -> bool:
        """The slots by identity, of a field of a dataclass."""
        if type(value) is not dataclasses.Field:
            return False
        for name, guard in self.slots:
            found = getattr(value, name)
            quick.same(value, name, found)
            quick.inside(found, guard)
        return True


class OwnerGuard(Guard):
    """An object that owns other models, such as a pipeline that a closure refers to.

    It holds much that this model never reads and that changes from step to step, so only those attributes count that
    some code of the model names.
    """

    __slots__ = ("address", "guards", "kind", "path")

    def __init__(self, value: Any, path: str, walk: Visitor) -> None:
        self.address, self.kind, self.path = id(value), type(value), path
        walk.note(path, ("class", walk.kind(self.kind)))
        self.guards: dict[str, Guard] = {}

    def grow(self, value: Any, reach: set[str], walk: Visitor) -> bool:
        """Describe what came into reach since; whether there was any.

        Args:
            value: the object.
            reach: names that code of the model can read.
            walk: who goes on.
        """
        own = value.__dict__
        new = sorted(name for name in own if name in reach and name not in self.guards)
        for name in new:
            walk.keep(own, name)
            self.guards[name] = walk.visit(own[name], f"{self.path}.{name}")
        return bool(new)

    def holds(self, value: Any) -> bool:
        """Whether it is the same object, and what is read of it as it was."""
        if id(value) != self.address or type(value) is not self.kind:
            return False
        own = value.__dict__
        return all(name in own and guard.holds(own[name]) for name, guard in self.guards.items())


def owns(value: Any, known: Container[int]) -> bool:
    """Whether an object holds modules that are none of the model's.

    Args:
        value: the object.
        known: ids of the modules of the model.
    """
    entries = getattr(value, "__dict__", {}).values()
    return any(isinstance(entry, torch.nn.Module) and id(entry) not in known for entry in entries)
