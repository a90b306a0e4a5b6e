"""Guards of modules: class, attributes, hooks, names and layouts of tensors, children."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from sicompiler.guards.base import Guard, Visitor
from sicompiler.guards.containers import AttributesGuard
from sicompiler.guards.identity import version
from sicompiler.guards.tensors import RegisteredGuard, layout_of

View = Callable[[Mapping[str, Any]], Mapping[str, Any]]

# What torch keeps in a module and no call of it reads; the others below have guards of their own.
_UNREAD = frozenset(vars(torch.nn.Module())) - {"training"}
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_FLAGS = {
    "_forward_pre_hooks": ("_forward_pre_hooks_with_kwargs",),
    "_forward_hooks": ("_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
}


class HooksGuard(Guard):
    """The forward hooks, or pre-hooks, of one module: in order, each as code, with its flags."""

    __slots__ = ("guards", "name", "versions")

    def __init__(self, own: dict[str, Any], name: str, path: str, walk: Visitor) -> None:
        self.name = name
        self.versions = self._versions(own)
        kind = name.strip("_").removesuffix("s").replace("_", " ")
        flags = [tuple(key in own.get(flag, ()) for flag in _FLAGS[name]) for key in own[name]]
        walk.note(f"{path} {kind}s", ("hooks", tuple(flags)))
        self.guards = {
            key: walk.visit(hook, f"{path} {kind} {index}") for index, (key, hook) in enumerate(own[name].items())
        }

    def _versions(self, own: dict[str, Any]) -> tuple[int, ...]:
        return tuple(version(own[holder]) for holder in (self.name, *_FLAGS[self.name]) if holder in own)

    def holds(self, value: dict[str, Any]) -> bool:
        """Whether the hooks of a module, given by its attributes, are those that were there."""
        if self._versions(value) != self.versions:
            return False
        return all(guard.holds(value[self.name][key]) for key, guard in self.guards.items())


class ModuleGuard(Guard):
    """A module: one of the model at its place, or a foreign one with all below it.

    Args:
        module: the module.
        path: its name in the model.
        walk: who goes on.
        view: what of its attributes counts, of the model itself; None for all.
        foreign: it is no submodule of the model, but somebody holds it: to a trace its weights are constants.
        layouts: whether layouts of parameters and buffers are looked at, or their names only.
    """

    __slots__ = ("attributes", "below", "children", "empty", "hooks", "kind", "reference", "registered", "view")

    def __init__(
        self,
        module: torch.nn.Module,
        path: str,
        walk: Visitor,
        view: View | None = None,
        foreign: bool = False,
        layouts: bool = True,
    ) -> None:
        own = module.__dict__
        self.reference, self.kind, self.view = weakref.ref(module), type(module), view
        walk.note(f"{path} class", ("class", walk.kind(self.kind)))
        walk.keep(own)
        seen = _settings(own, view)
        walk.note(f"{path} attributes", ("names", tuple(sorted(seen))))
        self.attributes = AttributesGuard(own, seen, path, walk)
        for holder in (*_HOOKS, *itertools.chain(*_FLAGS.values())):
            walk.keep(own[holder])
        self.hooks: list[HooksGuard] = []
        if view is None:  # those of the model itself fire around what is compiled
            self.hooks = [HooksGuard(own, name, path, walk) for name in _HOOKS if own[name]]
        empty = [name for name in _HOOKS if view is None and not own[name]]
        self.registered: list[tuple[str, Guard]] = []
        empty += [holder for holder in ("_parameters", "_buffers", "_modules") if not own[holder]]
        self.empty = {name: own[name] for name in empty}
        walk.nothing.extend(self.empty.values())
        for holder in ("_parameters", "_buffers"):
            if holder in empty:
                walk.keep(own[holder])
            elif foreign:
                self.registered.append((holder, walk.visit(own[holder], f"{path} {holder}")))
            else:
                self._register(holder, own[holder], path, walk, layouts)
        walk.keep(own["_modules"])
        self.children = 0 if "_modules" in empty else version(own["_modules"])
        walk.note(f"{path} children", ("names", tuple(own["_modules"])))
        if not foreign:
            walk.modules.append(self)
        below = [
            None if child is None else walk.module_at(child, f"{path}.{name}" if path else name)
            for name, child in own["_modules"].items()
        ]
        self.below = below if foreign else []

    def _register(self, holder: str, tensors: dict[str, Any], path: str, walk: Visitor, layouts: bool) -> None:
        walk.keep(tensors)
        for name, tensor in tensors.items():
            where = f"{path}.{name}" if path else name
            twin = None if tensor is None else walk.shared_with(tensor, where)
            walk.note(where, ("layout", layout_of(tensor) if layouts else None, twin))
        if layouts:
            self.registered.append((holder, RegisteredGuard(tensors, walk.has_shared(tensors.values()))))

    def holds(self, value: Any) -> bool:
        """Whether it is the same module with the same content; of a foreign one, with all below it."""
        if value is not self.reference() or not all_hold((self,)):
            return False
        return all(
            below is None or below.holds(child) for below, child in zip(self.below, _children(value), strict=True)
        )


def all_hold(guards: Sequence[ModuleGuard]) -> bool:
    """Whether modules are as they were, each by itself.

    Written to be quick: it looks at every module at every call. As long as no dict of children has moved, the modules
    that were met are the modules of the model.

    Args:
        guards: of the modules.
    """
    for guard in guards:
        module = guard.reference()
        if type(module) is not guard.kind:
            return False
        own = module.__dict__
        attributes = guard.attributes
        if version(own) != attributes.version:
            if any(own[name] is not nothing for name, nothing in guard.empty.items()):
                return False
            if not attributes.hold(own, _settings(own, guard.view)):
                return False
        elif attributes.changing and not _changing_hold(guard, own):
            return False
        for name, registered in guard.registered:
            if not registered.holds(own[name]):
                return False
        if guard.children and version(own["_modules"]) != guard.children:
            return False
        for hooks in guard.hooks:
            if not hooks.holds(own):
                return False
    return True


def inside_holds(guard: ModuleGuard, own: dict[str, Any]) -> bool:
    """Whether a module is as it was, whose dict, tensors and children are.

    Args:
        guard: of the module.
        own: its attributes.
    """
    return _changing_hold(guard, own) and all(hooks.holds(own) for hooks in guard.hooks)


def _changing_hold(guard: ModuleGuard, own: dict[str, Any]) -> bool:
    seen = own if guard.view is None else guard.view(own)
    return all(below.holds(seen[name]) for name, below in guard.attributes.changing.items())


def _children(module: Any) -> list[torch.nn.Module | None]:
    return list(module.__dict__["_modules"].values())


def _settings(own: Mapping[str, Any], view: View | None) -> dict[str, Any]:
    seen = own if view is None else view(own)
    return {name: value for name, value in seen.items() if name not in _UNREAD}
