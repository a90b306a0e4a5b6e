"""What a model returns, taken apart and put together again: a graph has tensors as results, a model any object.

Language models return a cache of keys and values, VAEs a distribution: objects of plain classes, some with lists of
further objects in them. The tensors inside are outputs of the graph. All else is kept as a template, of which every
run makes a copy, so that no two calls share anything they would not share untouched. What the model itself holds (its
configuration, say) is shared, as it would be.

Nothing is registered with torch but a class of our own: other code in the process sees its own classes as before.
"""

from __future__ import annotations

import functools
import io
import operator
import pickle
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree

_PLAIN = (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool, bool, int, float, complex, str, bytes, type(None))
_SHARED = (  # never copied: code, modules, and what stands for something outside of Python
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.ModuleType,
    torch.nn.Module,
    torch.Generator,
    torch.Stream,
)
_DEPTH = 3  # of what a module holds: its configuration, the configurations inside that


class _Template:
    """An object without its tensors.

    Args:
        value: the object.
        known: ids of objects that are shared, not copied.

        tensors: list that the tensors in the object are put into, each once.

    Attributes:
        kind: the class of the object.
    """

    def __init__(self, value: object, known: Mapping[int, object], tensors: list[torch.Tensor]) -> None:
        self.kind = type(value)
        self._shared: list[object] = []
        places: dict[int, tuple[str, int | str]] = {}

        def place(found: object) -> tuple[str, int | str] | None:
            rows: list[Any] | None = None
            if isinstance(found, torch.device):  # by name: every tensor gives one of its own, and some are kept
                return "device", str(found)
            if isinstance(found, torch.Tensor):
                rows, kind = tensors, "tensor"
            elif isinstance(found, _SHARED) or id(found) in known:
                rows, kind = self._shared, "shared"
            if rows is None:
                return None
            if id(found) not in places:
                places[id(found)] = (kind, len(rows))
                rows.append(found)
            return places[id(found)]

        buffer = io.BytesIO()
        pickler = pickle.Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL)
        pickler.persistent_id = place  # type: ignore[method-assign]
        pickler.dump(value)
        self._bytes, self._count = buffer.getvalue(), len(tensors)

    def filled(self, tensors: Sequence[Any]) -> Any:
        """A new object like the one that was taken apart, with other tensors in their places."""
        rows: dict[str, Sequence[Any]] = {"tensor": tensors, "shared": self._shared}
        unpickler = pickle.Unpickler(io.BytesIO(self._bytes))

        def load(place: tuple[str, Any]) -> Any:
            kind, which = place
            return torch.device(which) if kind == "device" else rows[kind][which]

        unpickler.persistent_load = load  # type: ignore[method-assign]
        return unpickler.load()

    @property
    def count(self) -> int:
        """How many tensors it takes."""
        return self._count

    @property
    def shares(self) -> bool:
        """Whether it holds objects of the model, which are not copied; classes do not count."""
        return not all(isinstance(found, type) for found in self._shared)

    @property
    def content(self) -> tuple[Any, ...]:
        """What is told of the object: equal for objects alike."""
        return self.kind, self._bytes, tuple(map(id, self._shared))

    def __repr__(self) -> str:
        """The kind alone: it is part of the key of a call, which must not depend on where an object lies."""
        return f"_Template({self.kind.__qualname__})"

    def __deepcopy__(self, memo: object) -> _Template:
        """Itself: it never changes, and what it shares with the model must stay the model's."""
        return self


@dataclass
class Opened:
    """An object taken apart: to torch a container of the tensors in it."""

    tensors: list[Any]
    template: _Template

    @property
    def kind(self) -> str:
        """The name of its class."""
        return self.template.kind.__qualname__


pytree.register_pytree_node(
    Opened,
    lambda opened: (opened.tensors, opened.template),
    lambda tensors, template: Opened(list(tensors), template),
    serialized_type_name=f"{Opened.__module__}.{Opened.__qualname__}",
)


def _is_leaf(value: object) -> bool:
    """Lists, tuples and dicts, those of transformers and diffusers with them, are torch's; all else is ours to open."""
    return not isinstance(value, (list, tuple, dict))


def open_results(result: Any, known: Mapping[int, object] | None = None) -> Any:
    """A result in which every object that is neither a tensor, a number nor a container is an `Opened`.

    Args:
        result: what a model returned.
        known: objects that are shared rather than copied, by id.

    Raises:
        TypeError, pickle.PicklingError: an object can't be copied.
    """

    def opened(leaf: Any) -> Any:
        if isinstance(leaf, _PLAIN):
            return leaf
        tensors: list[torch.Tensor] = []
        template = _Template(leaf, known or {}, tensors)
        return Opened(tensors, template)

    return pytree.tree_map(opened, result, is_leaf=_is_leaf)


def open_inputs(inputs: Any) -> Any:
    """Arguments of a call in which every object that holds tensors is an `Opened`, unless torch knows its class.

    Args:
        inputs: positional and keyword ones.
    """
    args, kwargs = inputs
    if all(isinstance(value, _PLAIN) for value in (*args, *kwargs.values())):
        return inputs  # as in most calls

    def opened(leaf: Any) -> Any:
        if isinstance(leaf, _PLAIN):
            return leaf
        try:
            made = open_results(leaf)
        except Exception:  # pickle raises anything: what can't be copied has to be taken as it is
            return leaf
        return made if isinstance(made, Opened) and made.tensors else leaf

    return pytree.tree_map(opened, inputs)


def template_of(value: object, tensors: Sequence[torch.Tensor]) -> Any:
    """The template of an object; None where it does not hold just these tensors, in this order."""
    found: list[torch.Tensor] = []
    template = _Template(value, {}, found)
    return template if len(found) == len(tensors) and all(map(operator.is_, found, tensors)) else None


def close_results(result: Any) -> Any:
    """The result in the form in which the model returns it."""

    def closed(leaf: Any) -> Any:
        return leaf.template.filled(leaf.tensors) if isinstance(leaf, Opened) else leaf

    return pytree.tree_map(closed, result, is_leaf=_is_leaf)


def has_opened(spec: pytree.TreeSpec) -> bool:
    """Whether `close_results` has something to do where results have this structure."""
    return spec.type is Opened or any(map(has_opened, spec.children()))


def leaves_of(result: Any) -> list[Any]:
    """All tensors and plain values in what a model returned, those inside of objects too."""
    return pytree.tree_leaves(open_results(result))


def tensors_of(value: Any) -> list[torch.Tensor]:
    """All tensors in a structure of any objects."""
    return [leaf for leaf in leaves_of(value) if isinstance(leaf, torch.Tensor)]


def held_by(model: torch.nn.Module) -> dict[int, object]:
    """What the modules of a model hold beside tensors and plain values, by id: configurations and the like."""
    held: dict[int, object] = {}
    for module in model.modules():
        for name, value in module.__dict__.items():
            if name not in ("_parameters", "_buffers", "_modules"):
                _hold(value, held, _DEPTH)
    return held


def _hold(value: object, held: dict[int, object], depth: int) -> None:
    if isinstance(value, (*_PLAIN, *_SHARED)) or id(value) in held:
        return
    held[id(value)] = value
    if depth:
        inside = [*value.values()] if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
        for part in (*inside, *getattr(value, "__dict__", {}).values()):
            _hold(part, held, depth - 1)


def with_open_results(call: Callable[..., Any], model: torch.nn.Module) -> Callable[..., Any]:
    """A call whose results are taken apart.

    Args:
        call: a method of a model.
        model: what results share with it is not copied.
    """
    known = held_by(model)

    @functools.wraps(call)
    def opened(*args: Any, **kwargs: Any) -> Any:
        return open_results(call(*args, **kwargs), known)

    return opened
