"""The walk: from a model to everything its call can read, one guard for each thing on the way."""

from __future__ import annotations

import collections
import contextvars
import functools
import logging
import queue
import re
import sys
import threading
import types
import weakref
from collections.abc import Hashable, Iterable, Set
from typing import Any

import numpy as np
import torch

from sicompiler.guards.base import Guard
from sicompiler.guards.code import computes_nothing, in_library
from sicompiler.guards.containers import MappingGuard, NumbersGuard, ProxyGuard, SequenceGuard, SetGuard
from sicompiler.guards.functions import PARTS, BuiltinGuard, CellGuard, FunctionGuard, PartsGuard
from sicompiler.guards.identity import token
from sicompiler.guards.modules import ModuleGuard, View
from sicompiler.guards.names import Names
from sicompiler.guards.native import NativeGuard, VariableGuard, WeakGuard, is_moved_by_reading, row_of
from sicompiler.guards.objects import ObjectGuard, OwnerGuard, owns, slots_of
from sicompiler.guards.places import AmbientPlace, ClassPlace, EnvironmentPlace, NamespacePlace, Places
from sicompiler.guards.plain import AgainGuard, OpaqueGuard, PlainGuard, PrintedGuard, is_plain, plain_fact
from sicompiler.guards.tensors import ArrayGuard, TensorGuard
from sicompiler.guards.together import Modules
from sicompiler.guards.undo import Undo

_BUILTINS = (
    types.BuiltinFunctionType,
    types.MethodWrapperType,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
)
_OPAQUE = (types.ModuleType, types.CodeType, types.FrameType)
# Objects of these belong to the process, not to the model.
_OPAQUE_MODULES = frozenset(
    {
        *("_io", "_thread", "_weakref", "asyncio", "concurrent", "ctypes", "io", "logging", "multiprocessing", "queue"),
        *("socket", "subprocess", "threading", "tqdm", "weakref", "typing", "_contextvars", "torch._ops"),
        *("torch._dynamo", "torch.fx", "torch.utils.hooks", "torch.distributed", "torch.cuda", "_frozen_importlib"),
        *("sicompiler.pipelines", "sicompiler.capture", "sicompiler.guards", "sicompiler.compiled_module"),
    }
)
# Objects of those that hold values of the model all the same.
_OPEN = (
    *(threading.local, threading.Event, threading.Condition, threading.Semaphore, threading.Barrier, queue.Queue),
    *(weakref.WeakKeyDictionary, weakref.WeakValueDictionary),
)
_OPEN_MODULES = frozenset({"multiprocessing.sharedctypes"})
_ATTRIBUTE = re.compile(r"(?:^|\.)(\w+)(?:\[.*\])?$")
# What a trace puts on the module that is traced: it ends in the tracer, which changes all the time.
_TRACERS = frozenset({"sicompiler.capture.results", "sicompiler.capture.taped"})
_HEAP_TYPE, _KIND_FLAGS = 1 << 9, 3 << 8  # of classes that can be changed: on the heap, and not immutable
_SEQUENCES = (list, tuple, collections.deque)
_SETS = (set, frozenset)


@functools.lru_cache(maxsize=2**12)
def _is_opaque(kind: type) -> bool:
    if issubclass(kind, _OPEN) or kind.__module__ in _OPEN_MODULES:
        return False
    return issubclass(kind, (logging.Logger, logging.Handler, threading.Thread)) or _is_of_process(kind.__module__)


@functools.lru_cache(maxsize=2**12)
def _is_of_process(module: object) -> bool:
    parts = module.split(".") if isinstance(module, str) else []
    return any(".".join(parts[: depth + 1]) in _OPAQUE_MODULES for depth in range(len(parts)))


def _registered(module: torch.nn.Module) -> list[torch.Tensor | None]:
    return [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]


class ModelDescription:
    """One description of a model: facts by path, and guards.

    Args:
        model: where to begin.
        view: what of the attributes of the model itself counts; None for all of them, and its hooks.
        methods: names of the entry points.
        path: what the model is called.
        undo: keeps the content of all that is met, to put it back; None where nothing is.
        layouts: whether layouts of parameters and buffers are facts, and values of small tensors; not in a trace.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        view: View | None,
        methods: Iterable[str] = ("forward",),
        undo: Undo | None = None,
        path: str = "",
        layouts: bool = True,
    ) -> None:
        self.facts: dict[str, Hashable] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        self.reach: set[str] = {*methods}
        self._names = Names()
        self._reach = self._names.bits(self.reach)  # the same
        self.classes: dict[type, ClassPlace] = {}
        self.namespaces: dict[int, NamespacePlace] = {}
        self._kinds: dict[type, Hashable] = {}  # facts of classes
        self._undo, self._layouts, self.looks_inside = undo, layouts, layouts
        self._met: dict[int, str] = {}
        self._twins: dict[int, str] = {}
        self._owners: list[tuple[OwnerGuard, Any]] = []
        self._doubles: collections.Counter[str] = collections.Counter()
        self._alive: list[Any] = []  # what an address is remembered of must not go while the walk lasts
        self._tree = {id(part): ".".join(filter(None, (path, name))) for name, part in model.named_modules()}
        names = collections.Counter(id(tensor) for part in model.modules() for tensor in _registered(part))
        self._shared = {address for address, count in names.items() if count > 1}
        self._absent: set[str] = set()  # modules that are not imported yet
        self._held: dict[str, types.ModuleType] = {}  # modules of Python that are attributes
        self._moving: list[tuple[str, Any]] = []
        self._environment, self._reads_environment = EnvironmentPlace(), False
        self._strings: set[str] = set()  # which code may look up by
        self.ambient = AmbientPlace(self)
        self._met[id(model)] = "the model"
        self.modules: list[ModuleGuard] = []
        self.nothing: list[dict[str, Any]] = []
        ModuleGuard(model, path, self, view, layouts=layouts)
        while self._grow():
            pass
        self._all_modules = Modules(self.modules)
        self._places = Places([*self.classes.values(), *self.namespaces.values()])
        self.moving = [(path, type(value).__qualname__) for path, value in self._moving if self._is_read(path)]
        self._alive.clear()
        self._kinds.clear()
        self._owners.clear()
        self._moving.clear()
        self._held.clear()

    def _is_read(self, path: str) -> bool:
        """Whether some code of the model names the attribute at a path."""
        attribute = _ATTRIBUTE.search(path)
        return attribute is None or attribute[1] in self.reach

    def _grow(self) -> bool:
        for path, module in self._held.items():
            if self._is_read(path):
                self.namespace(module.__dict__, self._reach, module.__name__)
        if self._reads_environment:
            self._environment.wants(self.reach, self)
            self._environment.wants(self._strings, self)
        grown = [place.grow(self.reach, self) for place in list(self.classes.values())]
        grown += [place.grow(self) for place in list(self.namespaces.values())]
        grown += [owner.grow(value, self.reach, self) for owner, value in list(self._owners)]
        return any(grown) or any(place.pending for place in self.namespaces.values())

    def holds(self, model: torch.nn.Module) -> bool:
        """Whether everything that was met is as it was."""
        return (
            self.ambient.holds()
            and self._environment.holds()
            and sys.modules.keys().isdisjoint(self._absent)
            and self.modules[0].reference() is model
            and not any(self.nothing)
            and self._all_modules.hold()
            and self._places.hold()
        )

    def note(self, path: str, fact: Hashable) -> None:
        """Write down a fact."""
        if path in self.facts:  # two classes of one name, say
            self._doubles[path] += 1
            path = f"{path} ({self._doubles[path]})"
        self.facts[path] = fact
        if isinstance(fact, tuple) and fact[:2] == ("plain", str):
            self._strings.add(fact[2])

    def reads(self, names: Iterable[str]) -> None:
        """Some code was met that can read these names."""
        bits = self._names.bits(names)
        if bits & ~self._reach:
            self.reach.update(names)
            self._reach |= bits

    def namespace(self, entries: dict[str, Any], names: Set[str] | int, path: str) -> None:
        """Some code was met that can read these globals."""
        place = self.namespaces.get(id(entries))
        if place is None:
            place = self.namespaces[id(entries)] = NamespacePlace(entries, path, self._names)
        place.wants(names if isinstance(names, int) else self._names.bits(names))

    def environment(self) -> None:
        """Some code was met that reads environment variables, of names that it or other code spells out."""
        self._reads_environment = True

    def imported(self, module: str, names: Set[str], of: str) -> None:
        """Some code was met that imports a module while it runs, and can read these names of it."""
        found = sys.modules.get(module)
        if found is not None:
            self.namespace(found.__dict__, names, module)
        elif not in_library(module) and module.partition(".")[0] != of.partition(".")[0]:
            self._absent.add(module)  # of another package: whoever imports it may set something in it

    def keep(self, value: Any, slot: str | None = None) -> None:
        """Keep the content of what can change inside itself."""
        if self._undo is not None:
            self._undo.keep(value, slot)

    def tensor(self, path: str, tensor: torch.Tensor) -> None:
        """Keep hold of a tensor that is no parameter or buffer."""
        self.tensors[path] = tensor

    def kind(self, kind: type) -> Hashable:
        """Describe a class and those it inherits from."""
        known = self._kinds.get(kind)
        if known is not None:
            return known
        bases = list(kind.__mro__)
        if not in_library(type(kind).__module__):
            bases += type(kind).mro(type(kind))  # the class of the class
        for base in bases:
            if base.__flags__ & _KIND_FLAGS != _HEAP_TYPE or base in self.classes or computes_nothing(base.__module__):
                continue
            self.classes[base] = ClassPlace(base)
        fact = self._kinds[kind] = (token(kind), kind.__qualname__)
        return fact

    def shared_with(self, tensor: torch.Tensor, path: str) -> str | None:
        """The other name of a parameter or buffer that has two."""
        self._alive.append(tensor)
        known = self._twins.setdefault(id(tensor), path)
        return None if known == path else known

    def has_shared(self, tensors: Iterable[torch.Tensor | None]) -> bool:
        """Whether some of these parameters or buffers have other names too."""
        return any(id(tensor) in self._shared for tensor in tensors if tensor is not None)

    def module_at(self, module: torch.nn.Module, path: str) -> Guard:
        """Describe a submodule at its place."""
        if self._again(module, path):
            return AgainGuard(module)
        if isinstance(module, torch.jit.ScriptModule):  # no Python's; captured, it is refused
            self.note(path, ("opaque", token(module)))
            return OpaqueGuard(module)
        return ModuleGuard(module, path, self, foreign=id(module) not in self._tree, layouts=self._layouts)

    def _again(self, value: Any, path: str) -> bool:
        address = id(value)
        known = self._met.get(address)
        if known is not None:
            self.note(path, ("again", known))
            return True
        self._met[address] = path
        self._alive.append(value)
        return False

    def visit(self, value: Any, path: str) -> Guard:
        """Describe what is at a path."""
        if is_plain(value):
            self.note(path, plain_fact(value))
            return PlainGuard(value)
        if isinstance(value, torch.nn.Module) and id(value) in self._tree:
            self.note(path, ("again", self._tree[id(value)]))
            return AgainGuard(value)
        if self._again(value, path):
            return AgainGuard(value)
        if isinstance(value, type):
            self.note(path, ("class", self.kind(value)))
            return OpaqueGuard(value)
        if isinstance(value, torch.Tensor):
            return TensorGuard(value, path, self)
        if isinstance(value, np.ndarray):
            return ArrayGuard(value, path, self)
        if isinstance(value, torch.nn.Module):
            return ModuleGuard(value, path, self, foreign=True)
        return (
            self._code(value, path)
            or self._container(value, path)
            or self._native(value, path)
            or self._object(value, path)
        )

    def _code(self, value: Any, path: str) -> Guard | None:
        if isinstance(value, types.FunctionType):
            if value.__module__ in _TRACERS:
                self.note(path, ("opaque", token(value)))
                return OpaqueGuard(value)
            return FunctionGuard(value, path, self)
        if isinstance(value, types.CellType):
            return CellGuard(value, path, self)
        if type(value) in PARTS:
            return PartsGuard(value, path, self)
        if isinstance(value, _BUILTINS):
            return BuiltinGuard(value, path, self)
        return None

    def _container(self, value: Any, path: str) -> Guard | None:
        guard: Guard
        if isinstance(value, dict):
            guard = MappingGuard(value, path, self)
        elif isinstance(value, _SEQUENCES):
            guard = NumbersGuard(value, path, self) if all(map(is_plain, value)) else SequenceGuard(value, path, self)
        elif isinstance(value, _SETS):
            guard = SetGuard(value, path, self)
        elif isinstance(value, types.MappingProxyType):
            guard = ProxyGuard(value, path, self)
        else:
            return None
        has_more = hasattr(value, "__dict__") or next(slots_of(type(value)), None) is not None
        return ObjectGuard(value, f"{path} object", self, guard) if has_more else guard

    def _native(self, value: Any, path: str) -> Guard | None:
        """The guard of what no attribute shows."""
        if isinstance(value, contextvars.ContextVar):
            self.note(path, ("variable", value.name))
            return VariableGuard(value, path, self)
        if isinstance(value, weakref.ReferenceType):
            self.note(path, ("reference", type(value).__name__))
            return WeakGuard(value, path, self)
        row = row_of(value)
        if row is not None:
            return NativeGuard(value, path, self, row)
        if is_moved_by_reading(value):
            self._moving.append((path, value))
            self.note(path, ("opaque", token(value)))
            return OpaqueGuard(value)
        return None

    def _object(self, value: Any, path: str) -> Guard:
        kind = type(value)
        if isinstance(value, types.ModuleType):
            self._held[path] = value
        inside = hasattr(value, "__dict__") or next(slots_of(kind), None) is not None
        if (
            isinstance(value, _OPAQUE)
            or _is_opaque(kind)  # type: ignore[arg-type]
            or (not inside and kind.__weakrefoffset__)
        ):
            self.note(path, ("opaque", token(value)))
            return OpaqueGuard(value)
        if not inside:
            self.note(path, ("printed", repr(value)))
            return PrintedGuard(value)
        if owns(value, self._tree):
            owner = OwnerGuard(value, path, self)
            self._owners.append((owner, value))
            return owner
        return ObjectGuard(value, path, self)
