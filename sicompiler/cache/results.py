"""What a model returns, as JSON, and back: containers that torch knows, and objects taken apart.

A class is written by its name, and found among the modules that are loaded already: the model that returns it has
them. Nothing is imported. An object is made without its `__init__`, which only a class takes that has no ways of its
own to be copied.
"""

from __future__ import annotations

import copyreg
import sys
from collections import OrderedDict
from typing import Any

import torch
import torch.utils._pytree as pytree

from sicompiler.cache.graphs import Broken, Json, Unpackable, pack_value, unpack_value
from sicompiler.capture.results import Opened, template_of

_OWN_WAYS = (
    *("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__new__", "__deepcopy__", "__del__"),
    *("__getattr__", "__getattribute__", "__setattr__", "__getnewargs__", "__getnewargs_ex__"),
)
_CONTAINERS = {"tuple": tuple, "list": list, "dict": dict, "OrderedDict": OrderedDict}


def class_name(kind: type) -> str:
    """What a class is found by again.

    Raises:
        Unpackable: it is not found by its name.
    """
    module, name = kind.__module__, kind.__qualname__
    if "<" in name or _class(f"{module}:{name}") is not kind:
        raise Unpackable(f"the class {module}.{name}, which is not found by its name")
    return f"{module}:{name}"


def _class(name: str) -> Any:
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def named_class(name: Json) -> type:
    """The class of a name.

    Raises:
        Broken: there is none in the modules that are loaded.
    """
    found = _class(str(name))
    if not isinstance(found, type):
        raise Broken(f"no loaded module has the class {name}")
    return found


def pack_spec(spec: pytree.TreeSpec) -> Json:
    """How flat outputs form a result.

    Raises:
        Unpackable: it has parts without a form in JSON.
    """
    if spec.is_leaf():
        return None
    children = [pack_spec(child) for child in spec.children()]
    for name, kind in _CONTAINERS.items():
        if spec.type is kind:
            return [name, pack_value(spec.context, {}), children]
    if spec.type is Opened:
        return ["opened", _pack_template(spec.context), children]
    if issubclass(spec.type, dict):  # ModelOutput of transformers and diffusers
        return [class_name(spec.type), pack_value(spec.context, {}), children]
    raise Unpackable(f"a {spec.type.__qualname__} among the results")


def unpack_spec(data: Json) -> pytree.TreeSpec:
    """The structure that `pack_spec` wrote.

    Raises:
        Broken: it is none, or a class of it is not loaded.
    """
    if data is None:
        return pytree.tree_structure(0)
    kind, context, below = data
    children = [unpack_spec(child) for child in below]
    if kind == "opened":
        return pytree.TreeSpec(Opened, _unpack_template(context), children)
    if kind in _CONTAINERS:
        return pytree.TreeSpec(_CONTAINERS[kind], unpack_value(context, []), children)
    found = named_class(kind)
    if not issubclass(found, dict) or found not in pytree.SUPPORTED_NODES:
        raise Broken(f"{kind} is no container")
    return pytree.TreeSpec(found, unpack_value(context, []), children)


def _pack_template(template: Any) -> Json:
    if template.shares:
        raise Unpackable(f"a {template.kind.__qualname__} among the results, which shares objects with the model")
    marks = [torch.empty(0) for _ in range(template.count)]
    numbers = {id(mark): index for index, mark in enumerate(marks)}
    return [len(marks), _pack_object(template.filled(marks), numbers, {})]


def _pack_object(value: Any, numbers: dict[int, int], met: dict[int, Any]) -> Json:
    if id(value) in numbers:
        return ["tensor", numbers[id(value)]]
    if isinstance(value, type):
        return ["class", class_name(value)]
    kind = type(value)
    is_container = kind in (tuple, list, dict)
    if not is_container and not hasattr(value, "__dict__"):
        return ["plain", pack_value(value, {})]
    if id(value) in met:
        raise Unpackable(f"a {kind.__qualname__} that stands in two places of a result")
    met[id(value)] = value
    if kind is dict:
        return ["dict", *([pack_value(k, {}), _pack_object(v, numbers, met)] for k, v in value.items())]
    if is_container:
        return [kind.__name__, *(_pack_object(part, numbers, met) for part in value)]
    if not _is_simple(kind):
        raise Unpackable(f"a {kind.__qualname__} among the results, which has its own way to be copied")
    if any(name.startswith("__") for name in vars(value)):
        raise Unpackable(f"a {kind.__qualname__} among the results, with an attribute that Python reads")
    return ["object", class_name(kind), {k: _pack_object(v, numbers, met) for k, v in vars(value).items()}]


def _is_simple(kind: type) -> bool:
    """Whether objects of a class are their attributes and nothing else, copied as `object` does it."""
    own_ways = any(getattr(kind, name, None) is not getattr(object, name, None) for name in _OWN_WAYS)
    slots = any(base.__dict__.get("__slots__") for base in kind.__mro__)
    of_python = kind.__module__.partition(".")[0] in sys.stdlib_module_names - {"__main__"}
    return not (
        own_ways or of_python or slots or kind in copyreg.dispatch_table or issubclass(kind, (dict, list, set, tuple))
    )


def _unpack_template(data: Json) -> Any:
    count, packed = data
    marks = [torch.empty(0) for _ in range(count)]
    found = template_of(_unpack_object(packed, marks), marks)
    if found is None:
        raise Broken("the tensors of a result are in another order")
    return found


def _unpack_object(data: Json, marks: list[torch.Tensor]) -> Any:
    kind, *rest = data
    if kind == "tensor":
        return marks[rest[0]]
    if kind == "plain":
        return unpack_value(rest[0], [])
    if kind == "class":
        return named_class(rest[0])
    if kind in ("tuple", "list"):
        return _CONTAINERS[kind](_unpack_object(part, marks) for part in rest)
    if kind == "dict":
        return {unpack_value(k, []): _unpack_object(v, marks) for k, v in rest}
    if kind == "object":
        found = named_class(rest[0])
        if not _is_simple(found):
            raise Broken(f"{rest[0]} has its own way to be made")
        if any(name.startswith("__") for name in rest[1]):
            raise Broken(f"{rest[0]} has an attribute that Python reads")
        made: Any = object.__new__(found)
        vars(made).update({name: _unpack_object(value, marks) for name, value in rest[1].items()})
        return made
    raise Broken(f"{kind!r:.60} is no part of a result")
