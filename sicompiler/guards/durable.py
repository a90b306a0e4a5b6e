"""The facts of a walk in a form that means the same in another process: a text without addresses.

In this process a class, a function or a constant is told by its identity. Here it is told by what it is: a class by its
name (what is read of it are facts of their own), code by its bytes, a tensor by its content. Where that is not known,
there is no such text, and nothing is kept for another process.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import re
import threading
import types
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from torch._ops import OpOverload, OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensor

from sicompiler.guards.identity import Token
from sicompiler.guards.sources import NotDurable, modules_of, sources_of
from sicompiler.guards.tensors import bytes_of

MOST_CONSTANT_BYTES = 2**28  # of tensors beside the weights: more takes too long to look at
_ADDRESS = re.compile(r"0x[0-9a-f]{6,}")
_UNORDERED = ("['_use_default_values']",)  # where diffusers keeps which arguments of a configuration nobody gave
# Facts that are others in every process, and that no graph depends on:
_OF_PROCESS = (
    "._torchdynamo_wrapper_id",  # the address of a function, noted on it by torch
    "._original_object_hash",  # of a configuration of transformers, by Python's hash of strings
    "transformers.utils.hub.SESSION_ID",
)
# Objects that belong to the process, and compute nothing:
_SERVICES = (
    "logging.",
    "_thread.",
    "threading.",
    "_io.",
    "_contextvars.",
    "contextvars.",
    "tqdm.",
    "torch.",
    "typing.",
)
# A sentinel is told by the places where it stands, compiled code by its name and the version of its library.
_EMPTY = ("<capsule object", "<object object", "<instancemethod ", "<pybind11_builtins.")
_PRINTED = frozenset(
    {bool, int, float, complex, str, bytes, range, slice, type(None), type(Ellipsis), type(NotImplemented)}
)
_TORCH = (torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size)
_NAMED = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.MethodDescriptorType)


def durable_digest(facts: Mapping[str, Hashable]) -> str:
    """A hash of the facts of a walk that is the same in every process with the same model, code and constants.

    Args:
        facts: by path; the objects they are about must be alive.

    Raises:
        NotDurable: a fact has no such form.
    """
    met: dict[int, Any] = {}
    known: dict[int, str] = {}  # by id of a part of a fact, which the facts keep: that of a class stands in many
    lines = []
    for path in sorted(facts):
        fact: Any = facts[path]
        if path.endswith(_OF_PROCESS):
            continue
        kind = fact[0]
        if kind in _OF_TEXT or (kind == "plain" and type(fact[2]) is fact[1] and fact[1] in _PRINTED):  # most of them
            lines.append(f"{path} = {kind} {fact[-1]!r}")
        elif kind == "names" and len(fact[1]) == 2 and type(fact[1][0]) is tuple:  # of a class
            lines.append(f"{path} = {_shown(fact[1][0], known, met)} {fact[1][1]!r}")
        else:
            form = _unordered if path.endswith(_UNORDERED) else _FORMS.get(kind, durable)
            lines.append(f"{path} = {form(fact)}")
            _meet(fact, met)
    text = "\n".join(lines)
    address = _ADDRESS.search(text)
    if address is not None:
        line = text[text.rfind("\n", 0, address.start()) + 1 :].partition("\n")[0]
        raise NotDurable(f"{line:.120} has an address in it")
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    modules: set[str] = set()
    named: dict[str, Any] = {}
    for found in met.values():
        modules |= modules_of(found)
        if isinstance(found, type) and named.setdefault(durable(found), found) is not found:
            raise NotDurable(f"two classes with the name {found.__module__}.{found.__qualname__}")
    digest.update(sources_of(modules).encode())
    return digest.hexdigest()


def _shown(part: Any, known: dict[int, str], met: dict[int, Any]) -> str:
    """A part of facts as a text, worked out once."""
    text = known.get(id(part))
    if text is None:
        _meet(part, met)
        text = known[id(part)] = durable(part)
    return text


def _meet(fact: Any, met: dict[int, Any]) -> None:
    """Put down the classes, functions and code that a fact is about, by their addresses."""
    if isinstance(fact, Token):
        found = None if fact.reference is None else fact.reference()
        if isinstance(found, (type, types.FunctionType, types.CodeType)):
            met[id(found)] = found
    elif isinstance(fact, type):
        met[id(fact)] = fact
    elif isinstance(fact, (tuple, frozenset)) and not isinstance(fact, torch.Size):
        for part in fact:
            if type(part) not in _PRINTED:
                _meet(part, met)


def durable(value: Any) -> str:
    """A plain value, a fact or a part of one as a text.

    Raises:
        NotDurable: it has none.
    """
    kind = type(value)  # nearly all are plain, or tuples
    if kind in _PRINTED:
        return repr(value)
    if kind is tuple:
        return f"({','.join([durable(part) for part in value])})"
    if isinstance(value, Token):
        return _object(value)
    if isinstance(value, type):
        return f"class {value.__module__}.{value.__qualname__}"
    if isinstance(value, tuple) and not isinstance(value, torch.Size):
        return f"({','.join(map(durable, value))})"
    if isinstance(value, frozenset):
        return f"{{{','.join(sorted(map(durable, value)))}}}"
    if isinstance(value, enum.Enum):
        return f"{durable(type(value))}.{value.name}={value.value!r}"
    if isinstance(value, _TORCH):
        return repr(value)
    if isinstance(value, np.generic):
        return f"{value.dtype}:{value.tobytes().hex()}"
    raise NotDurable(f"a {type(value).__qualname__} among the facts")


def _object(token: Token) -> str:
    """What an object is, told by its token."""
    found = None if token.reference is None else token.reference()
    if isinstance(found, type):
        return durable(found)
    if isinstance(found, types.CodeType):
        return _code_of(token)
    if isinstance(found, types.ModuleType):
        return f"module {found.__name__}"
    if isinstance(found, torch.Tensor):
        return content(found)
    if isinstance(found, (OpOverload, OpOverloadPacket)):
        return f"operator {found}"
    if isinstance(found, _NAMED):
        return f"function {found.__module__}.{found.__qualname__}"
    if isinstance(found, re.Pattern):
        return durable(("pattern", found.pattern, found.flags))
    name = f"{token.kind.__module__}.{token.kind.__qualname__}"
    if name.startswith(_SERVICES) and token.kind is not threading.local:
        return f"some {name}"
    if found is None:
        raise NotDurable(f"a {name}, which can't be looked into")
    printed = repr(found)
    if _ADDRESS.search(printed):
        raise NotDurable(f"a {name}, which can't be looked into")
    return f"some {name} {printed}"


def _library(fact: Any) -> str:
    """What stands in the globals of a library: its version tells the rest."""
    token = fact[1]
    found = None if token.reference is None else token.reference()
    name = getattr(found, "__qualname__", token.kind.__qualname__)
    return durable((fact[0], token.kind, str(getattr(found, "__module__", "")), str(name)))


@functools.lru_cache(maxsize=2**14)
def _code_of(token: Token) -> str:
    """What the code does that a token stands for, which never changes."""
    code = None if token.reference is None else token.reference()
    assert isinstance(code, types.CodeType)
    return _code(code)


def _code(code: types.CodeType) -> str:
    """What code does: its bytes, names and constants, those of functions inside of it too; not where it stands."""
    parts = (
        code.co_code,
        code.co_exceptiontable,
        (code.co_flags, code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount),
        (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_name),
    )
    inside = "".join(map(_constant, code.co_consts))
    return hashlib.sha256(f"{parts!r}{inside}".encode("utf-8", "surrogatepass")).hexdigest()[:24]


def _constant(value: Any) -> str:
    """A constant of code, in which 0.0 and -0.0, 1 and True differ by how they print."""
    if isinstance(value, types.CodeType):
        return _code(value)
    if isinstance(value, tuple):
        return f"({','.join(map(_constant, value))})"
    return durable(value)


def _tensor(fact: Any) -> str:
    """The fact of a constant: its content and layout; how often it was written into does not matter then."""
    _, token, _, *layout, _ = fact
    return durable((_object(token), *layout))


def _printed(fact: Any) -> str:
    """An object of an extension as it prints; some print where they lie and hold nothing that Python reads."""
    return durable((fact[0], _ADDRESS.sub("", fact[1]) if fact[1].startswith(_EMPTY) else fact[1]))


def _unordered(fact: Any) -> str:
    """A list that was made of a set: strings come out of a set in another order in every process."""
    *kind, entries = fact
    is_short = not entries or isinstance(entries[0], tuple)
    return durable((*kind, frozenset(entries) if is_short else entries[-1]))


_OF_TEXT = ("again", "builtin", "module")  # they hold nothing but a text
_FORMS = {"library": _library, "printed": _printed, "tensor": _tensor}


def constants_of(facts: Mapping[str, Hashable]) -> list[torch.Tensor]:
    """The tensors that facts are about, as far as they are alive: those that a trace takes as constants."""
    tokens = [fact[1] for fact in facts.values() if isinstance(fact, tuple) and fact[0] == "tensor"]
    found = [None if token.reference is None else token.reference() for token in tokens]
    return [tensor for tensor in found if isinstance(tensor, torch.Tensor)]


def content(tensor: torch.Tensor) -> str:
    """A tensor by its values; one without memory by its kind alone.

    Raises:
        NotDurable: its values can't be looked at, or it is very large.
    """
    if isinstance(tensor, FakeTensor) or tensor.is_meta:
        return "no values"
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout is not torch.strided:
        raise NotDurable(f"a constant of class {type(tensor).__qualname__}")
    if tensor.nbytes > MOST_CONSTANT_BYTES:
        raise NotDurable(f"a constant of {tensor.nbytes} bytes")
    return hashlib.sha256(bytes_of(tensor)).hexdigest()[:24]
