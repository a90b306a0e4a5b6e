"""Guards of objects that keep what they hold out of their attributes: buffers, streams, random numbers, iterators."""

from __future__ import annotations

import array
import contextvars
import ctypes
import io
import mmap
import queue
import random
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sicompiler.guards.base import Guard, Visitor
from sicompiler.guards.containers import short_digest

_C_DATA = (ctypes.Array, ctypes.Structure, ctypes.Union, ctypes.c_int.__mro__[1])  # the last: all single numbers
UNSET = object()


@dataclass(frozen=True)
class Native:
    """Objects of some kinds, and how to look at what they hold.

    Attributes:
        name: of the fact.
        kinds: their classes.
        read: what they hold, as something that prints in full.
        write: puts back what was read.
        moves: whether whoever reads it changes it, so that a trace sees it. What others do with it between two calls
            does not matter then.
    """

    name: str
    kinds: tuple[type, ...]
    read: Callable[[Any], Any]
    write: Callable[[Any, Any], None]
    moves: bool = False


def _write_buffer(value: Any, content: bytes) -> None:
    memory = memoryview(value)
    if memory.c_contiguous and not memory.readonly:
        memory.cast("B")[:] = content


def _read_stream(value: Any) -> Any:
    return None if value.closed else (value.getvalue(), value.tell())


def _write_stream(value: Any, content: Any) -> None:
    if content is not None and not value.closed:
        text, place = content
        value.seek(0)
        value.truncate()
        value.write(text)
        value.seek(place)


def _read_random(value: Any) -> Any:
    try:
        return value.getstate()
    except NotImplementedError:  # of the operating system: there is no state
        return None


def _write_random(value: Any, content: Any) -> None:
    if content is not None:
        value.setstate(content)


def _bits(value: Any) -> Any:
    return value.bit_generator if isinstance(value, np.random.Generator) else value


def _read_numpy(value: Any) -> Any:
    own = _bits(value)
    state = own.get_state(legacy=False) if isinstance(own, np.random.RandomState) else own.state
    return _printable(state)


def _printable(state: Any) -> Any:
    """The state of a generator of NumPy with arrays as lists, which print in full."""
    if isinstance(state, dict):
        return {key: _printable(entry) for key, entry in state.items()}
    return state.tolist() if isinstance(state, np.ndarray) else state


def _write_numpy(value: Any, content: Any) -> None:
    own = _bits(value)
    if isinstance(own, np.random.RandomState):
        own.set_state(content)
    else:
        own.state = content


ROWS = (
    Native(
        "buffer",
        (bytearray, array.array, memoryview, mmap.mmap, *_C_DATA),
        lambda value: bytes(memoryview(value)),
        _write_buffer,
    ),
    Native("stream", (io.BytesIO, io.StringIO), _read_stream, _write_stream),
    Native("random", (random.Random,), _read_random, _write_random, moves=True),
    Native(
        "random",
        (np.random.Generator, np.random.BitGenerator, np.random.RandomState),
        _read_numpy,
        _write_numpy,
        moves=True,
    ),
)


def row_of(value: Any) -> Native | None:
    """The row of an object; None where it has none."""
    return next((row for row in ROWS if isinstance(value, row.kinds)), None)


class NativeGuard(Guard):
    """An object whose content no attribute shows: by its content, where it is read without being changed."""

    __slots__ = ("address", "content", "row")

    def __init__(self, value: Any, path: str, walk: Visitor, row: Native) -> None:
        self.address, self.row = id(value), row
        self.content = None if row.moves and walk.looks_inside else short_digest([repr(row.read(value))])
        walk.note(path, (row.name, type(value), self.content))
        walk.keep(value)

    def holds(self, value: Any) -> bool:
        """Whether it is the same object with the same content."""
        if id(value) != self.address:
            return False
        return self.content is None or short_digest([repr(self.row.read(value))]) == self.content


def is_moved_by_reading(value: Any) -> bool:
    """Whether an object is an iterator of Python's own, a generator or a queue: whoever reads it moves it on."""
    kind = type(value)
    is_iterator = isinstance(value, types.GeneratorType) or (
        hasattr(kind, "__next__") and not hasattr(value, "__dict__")
    )
    return isinstance(value, queue.SimpleQueue) or (is_iterator and not isinstance(value, io.IOBase))


def value_of(variable: contextvars.ContextVar[Any]) -> Any:
    """The value of a context variable in this context; `UNSET` where it has none, and no default."""
    try:
        return variable.get()
    except LookupError:
        return UNSET


class VariableGuard(Guard):
    """A context variable: its value in this context, deep."""

    __slots__ = ("address", "guard")

    def __init__(self, value: contextvars.ContextVar[Any], path: str, walk: Visitor) -> None:
        self.address = id(value)
        walk.keep(value)
        self.guard = walk.visit(value_of(value), f"{path} value")

    def holds(self, value: Any) -> bool:
        """Whether the same variable has the same value."""
        return id(value) == self.address and self.guard.holds(value_of(value))


class WeakGuard(Guard):
    """A weak reference: what it refers to, deep."""

    __slots__ = ("address", "guard")

    def __init__(self, value: Any, path: str, walk: Visitor) -> None:
        self.address = id(value)
        self.guard = walk.visit(value(), f"{path} target")

    def holds(self, value: Any) -> bool:
        """Whether the same reference leads to the same thing."""
        return id(value) == self.address and self.guard.holds(value())
