"""Guards of modules: class, attributes, hooks, names and layouts of tensors, children."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
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
    """A module of the model at its place, with all below it.

    Args:
        module: the module.
        path: its name in the model.
        walk: who goes on.
        view: what of its attributes counts, of the model itself; None for all.
        foreign: it is no submodule of the model, but somebody holds it: to a trace its weights are constants.
        layouts: whether layouts of parameters and buffers are looked at, or their names only.
    """

    __slots__ = ("address", "attributes", "children", "empty", "hooks", "kind", "registered", "versions", "view")

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
        self.address, self.kind, self.view = id(module), type(module), view
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
        self.empty = [name for name in _HOOKS if view is None and not own[name]]
        self.registered: list[tuple[str, Guard]] = []
        self.empty += [holder for holder in ("_parameters", "_buffers") if not own[holder]]
        for holder in ("_parameters", "_buffers"):
            if holder in self.empty:
                walk.keep(own[holder])
            elif foreign:
                self.registered.append((holder, walk.visit(own[holder], f"{path} {holder}")))
            else:
                self._register(holder, own[holder], path, walk, layouts)
        walk.keep(own["_modules"])
        self.versions = (version(own["_modules"]), tuple(own["_modules"]))
        walk.note(f"{path} children", ("names", self.versions[1]))
        self.children = [
            None if child is None else walk.module_at(child, f"{path}.{name}" if path else name)
            for name, child in own["_modules"].items()
        ]

    def _register(self, holder: str, tensors: dict[str, Any], path: str, walk: Visitor, layouts: bool) -> None:
        walk.keep(tensors)
        shared = False
        for name, tensor in tensors.items():
            where = f"{path}.{name}" if path else name
            twin = None if tensor is None else walk.shared_with(tensor, where)
            shared = shared or twin is not None
            walk.note(where, ("layout", layout_of(tensor) if layouts else None, twin))
        if layouts:
            self.registered.append((holder, RegisteredGuard(tensors, shared)))

    def holds(self, value: Any) -> bool:
        """Whether the module and all below it are as they were. It runs for every module at every call."""
        if id(value) != self.address or type(value) is not self.kind:
            return False
        own = value.__dict__
        attributes = self.attributes
        if version(own) != attributes.version:
            if not attributes.hold(own, _settings(own, self.view)):
                return False
        elif attributes.changing:
            seen = own if self.view is None else self.view(own)
            for name, guard in attributes.changing.items():
                if not guard.holds(seen[name]):
                    return False
        for hooks in self.hooks:
            if not hooks.holds(own):
                return False
        for holder, registered in self.registered:
            if not registered.holds(own[holder]):
                return False
        for name in self.empty:
            if own[name]:
                return False
        children = own["_modules"]
        if not self.children and not children:
            return True
        if version(children) != self.versions[0] and tuple(children) != self.versions[1]:
            return False
        for child, below in zip(children.values(), self.children, strict=True):
            if below is None or child is None:
                if child is not below:
                    return False
            elif not below.holds(child):
                return False
        return True


def _settings(own: Mapping[str, Any], view: View | None) -> dict[str, Any]:
    seen = own if view is None else view(own)
    return {name: value for name, value in seen.items() if name not in _UNREAD}
