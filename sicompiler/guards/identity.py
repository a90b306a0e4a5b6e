"""Telling whether something is still the same thing, at little cost and without keeping it alive."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable
from typing import Any

_fresh = itertools.count(1)
_tokens: dict[int, tuple[weakref.ref[Any], Token]] = {}


class Token(int):
    """The number of an object in this process, and the way back to it.

    Attributes:
        kind: the class of the object.
        reference: to the object, if there can be one.
    """

    kind: type
    reference: weakref.ref[Any] | None

    @staticmethod
    def of(number: int, value: Any, reference: weakref.ref[Any] | None) -> Token:
        """The number of an object."""
        made = Token(number)
        made.kind, made.reference = type(value), reference
        return made


def token(value: Any) -> Token:
    """A number that stands for one object: never given to another one, even at the same address after it is gone.

    Objects that can't be referred to weakly are told by their address; who asks compares their content besides.
    """
    address = id(value)
    known = _tokens.get(address)
    if known is not None and known[0]() is value:
        return known[1]
    forget = _tokens.pop  # bound here: objects that outlive this module, when Python ends, still call back

    def gone(_: object) -> None:
        forget(address, None)

    try:
        reference = weakref.ref(value, gone)
    except TypeError:
        return Token.of(-address, value, None)
    number = Token.of(next(_fresh), value, reference)
    _tokens[address] = (reference, number)
    return number


def _content_version(mapping: dict[Any, Any]) -> int:
    """Without torch's help every dict counts as changed, and is compared entry by entry."""
    return -next(_fresh)


def _versions() -> Callable[[Any], int]:
    try:
        from torch._C._dynamo.guards import dict_version
    except ImportError:
        return _content_version
    probe = {"a": object()}
    before = dict_version(probe)
    probe["a"] = object()
    return dict_version if dict_version(probe) != before else _content_version


# Of a dict: moves with every entry that is set or taken out, and is never that of another dict. TorchDynamo's own.
version: Callable[[Any], int] = _versions()


def class_entries(kind: type) -> dict[str, Any]:
    """The dict behind a class, which `__dict__` shows through a proxy that has no version."""
    entries: dict[str, Any] = gc.get_referents(kind.__dict__)[0]
    return entries
