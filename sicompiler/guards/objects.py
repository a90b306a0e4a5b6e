"""Guards of objects of any class: attention processors, configurations, dataclasses, hooks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sicompiler.guards.base import Guard, Visitor
from sicompiler.guards.containers import AttributesGuard

_MISSING = object()


def slots_of(kind: type) -> Iterator[str]:
    """Names that objects of a class have outside of their dict."""
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            if name not in ("__dict__", "__weakref__"):
                mangled = name.startswith("__") and not name.endswith("__")
                yield f"_{base.__name__.lstrip('_')}{name}" if mangled else name


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
