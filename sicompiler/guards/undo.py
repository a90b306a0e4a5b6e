"""Putting back whatever a trace has written into anything a model can reach."""

from __future__ import annotations

import collections
import contextvars
import functools
import operator
import types
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from sicompiler.guards.native import ROWS, UNSET, Native, value_of

T = TypeVar("T")
_ABSENT = object()
_CACHED = type(functools.lru_cache(lambda: None))


class Undo:
    """Contents of what can change inside itself, kept by a walk, to be put back where they have changed.

    Attributes:
        moving: what every call would change and nobody can put back: where it is, and the name of its class.
    """

    def __init__(self) -> None:
        self._steps: list[Callable[[], None]] = []
        self.moving: list[tuple[str, str]] = []

    def keep(self, value: Any, slot: str | None = None) -> None:
        """Keep the content of one thing.

        Args:
            value: a container, tensor, array, cell or cached function; anything else is left alone.
            slot: keep one attribute, or one entry of a dict, instead.
        """
        if slot is not None:
            self._steps.append(_entry(value, slot) if isinstance(value, dict) else _attribute(value, slot))
        else:
            step = next((make(value) for kind, make in _KINDS if isinstance(value, kind)), None)
            if step is not None:
                self._steps.append(step)

    def keep_by(self, read: Callable[[], T], write: Callable[[T], object]) -> None:
        """Keep what a function tells.

        Args:
            read: tells it.
            write: puts it back.
        """
        content = read()

        def back() -> None:
            if read() != content:
                write(content)

        self._steps.append(back)

    def back(self) -> None:
        """Put everything back that was kept.

        Raises:
            Exception: the first thing that could not be put back; everything else is.
        """
        failed: list[Exception] = []
        for step in self._steps:
            try:
                step()
            except Exception as error:  # a setter of a user's class may raise anything
                failed.append(error)
        if failed:
            raise failed[0]


def _dict(value: dict[Any, Any]) -> Callable[[], None]:
    base: Any = collections.OrderedDict if isinstance(value, collections.OrderedDict) else dict
    keys, entries = list(base.keys(value)), list(base.values(value))

    def back() -> None:
        if not (_identical(list(base.values(value)), entries) and _identical(list(base.keys(value)), keys)):
            base.clear(value)
            for key, entry in zip(keys, entries, strict=True):
                base.__setitem__(value, key, entry)

    return back


def _sequence(value: Any) -> Callable[[], None]:
    base: Any = list if isinstance(value, list) else collections.deque
    entries = list(value)

    def back() -> None:
        if not _identical(list(value), entries):
            base.clear(value)
            base.extend(value, entries)

    return back


def _set(value: set[Any]) -> Callable[[], None]:
    members = set(value)

    def back() -> None:
        if members ^ value:
            set.clear(value)
            set.update(value, members)

    return back


def _cell(cell: types.CellType) -> Callable[[], None]:
    try:
        content = cell.cell_contents
    except ValueError:
        content = _ABSENT

    def back() -> None:
        if content is not _ABSENT:
            cell.cell_contents = content
        else:
            del cell.cell_contents

    return back


def _tensor(tensor: torch.Tensor) -> Callable[[], None] | None:
    if isinstance(tensor, FakeTensor) or tensor.is_meta:
        return None
    with _disable_current_modes():  # a rehearsal among them, which takes every operator for the model's
        data, content = tensor.data, tensor.detach().clone()

    def back() -> None:
        with _disable_current_modes():
            if not torch.equal(data, content):  # a trace runs what it writes into constants
                data.copy_(content)

    return back


def _array(array: np.ndarray[Any, Any]) -> Callable[[], None]:
    content = array.copy()

    def back() -> None:
        if array.flags.writeable:
            array[...] = content

    return back


def _cached(function: Any) -> Callable[[], None]:
    size = function.cache_info().currsize

    def back() -> None:
        if function.cache_info().currsize != size:
            function.cache_clear()  # of values of the trace, which are no tensors outside of it

    return back


def _native(row: Native, value: Any) -> Callable[[], None]:
    content = row.read(value)

    def back() -> None:
        if row.read(value) != content:
            row.write(value, content)

    return back


def _variable(variable: contextvars.ContextVar[Any]) -> Callable[[], None]:
    content = value_of(variable)

    def back() -> None:
        if content is not UNSET and value_of(variable) is not content:
            variable.set(content)

    return back


def _entry(entries: dict[str, Any], name: str) -> Callable[[], None]:
    value = entries.get(name, _ABSENT)

    def back() -> None:
        if value is _ABSENT:
            entries.pop(name, None)
        elif entries.get(name, _ABSENT) is not value:
            entries[name] = value

    return back


def _attribute(owner: Any, name: str) -> Callable[[], None]:
    value = owner.__dict__.get(name, _ABSENT) if isinstance(owner, type) else getattr(owner, name, _ABSENT)

    def back() -> None:
        now = owner.__dict__.get(name, _ABSENT) if isinstance(owner, type) else getattr(owner, name, _ABSENT)
        if now is not value:
            delattr(owner, name) if value is _ABSENT else setattr(owner, name, value)

    return back


def _identical(some: list[Any], others: list[Any]) -> bool:
    return len(some) == len(others) and all(map(operator.is_, some, others))


_KINDS: tuple[tuple[Any, Callable[[Any], Callable[[], None] | None]], ...] = (
    (dict, _dict),
    ((list, collections.deque), _sequence),
    (set, _set),
    (types.CellType, _cell),
    (torch.Tensor, _tensor),
    (np.ndarray, _array),
    (_CACHED, _cached),
    (contextvars.ContextVar, _variable),
    *((row.kinds, functools.partial(_native, row)) for row in ROWS),
)
