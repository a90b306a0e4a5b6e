"""State that no attribute shows: what calls leave there is refused and put back, what they read is followed."""

from __future__ import annotations

import array
import contextvars
import ctypes
import io
import itertools
import mmap
import multiprocessing
import os
import queue
import random
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sicompiler

Tick = Callable[[Any], float]
VARIABLE: contextvars.ContextVar[float] = contextvars.ContextVar("variable", default=0.0)


class Ticks(nn.Module):
    """A layer scaled by what an object gives at each call.

    Args:
        held: the object.
        tick: what a call does with it.
    """

    def __init__(self, held: Any, tick: Tick) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 4)
        self.held, self.tick = held, tick

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * self.tick(self.held)  # type: ignore[no-any-return]


class Box:
    """Something that can be referred to weakly."""

    n = 0.0


def _count(held: Any) -> float:
    held.n += 1.0
    return float(held.n)


def _count_entry(held: Any) -> float:
    held[0] += 1
    return float(held[0])


def _variable(held: Any) -> float:
    held.set(held.get() + 1)
    return float(held.get())


def _environment(held: Any) -> float:
    os.environ["SICOMPILER_TEST_TICK"] = held + os.environ.get("SICOMPILER_TEST_TICK", "")
    return float(len(os.environ["SICOMPILER_TEST_TICK"]))


def _stream(held: Any) -> float:
    held.write(b"a" if isinstance(held, io.BytesIO) else "a")
    return float(held.tell())


def _queue(held: Any) -> float:
    held.put(1)
    return float(held.qsize())


def _event(held: Any) -> float:
    was = held.is_set()
    held.set()
    return 2.0 if was else 1.0


def _semaphore(held: Any) -> float:
    held.acquire()
    return float(held._value)


def _weak(held: Any) -> float:
    held[BOX] = held.get(BOX, 0.0) + 1
    return float(held[BOX])


def _local() -> Any:
    local = threading.local()
    local.n = 0.0
    return local


def _module() -> Any:
    module = types.ModuleType("settings")
    module.n = 0.0  # type: ignore[attr-defined]
    return module


def _value(held: Any) -> float:
    held.value += 1
    return float(held.value)


def _settings() -> Any:
    return sys.modules["sicompiler_test_settings"]


BOX = Box()
WRITTEN: dict[str, tuple[Callable[[], Any], Tick, Callable[[Any], Any]]] = {  # made by, a call, what it holds
    "thread-local values": (_local, _count, lambda held: held.n),
    "a context variable": (lambda: VARIABLE, _variable, lambda held: held.get()),
    "the environment": (lambda: "x", _environment, lambda held: os.environ.get("SICOMPILER_TEST_TICK")),
    "a bytearray": (lambda: bytearray(b"\0"), _count_entry, bytes),
    "a view of memory": (lambda: memoryview(bytearray(b"\0")), _count_entry, bytes),
    "an array": (lambda: array.array("d", [0.0]), _count_entry, list),
    "an array of C": (lambda: (ctypes.c_double * 1)(), _count_entry, list),
    "a number of processes": (lambda: multiprocessing.Value("d", 0.0), _value, lambda held: held.value),
    "a stream of bytes": (io.BytesIO, _stream, lambda held: held.getvalue()),
    "a stream of text": (io.StringIO, _stream, lambda held: held.getvalue()),
    "a queue": (queue.Queue, _queue, lambda held: list(held.queue)),
    "an event": (threading.Event, _event, lambda held: held.is_set()),
    "a semaphore": (lambda: threading.Semaphore(9), _semaphore, lambda held: held._value),
    "a weak dict": (weakref.WeakKeyDictionary, _weak, dict),
    "a weak reference": (lambda: weakref.ref(BOX), lambda held: _count(held()), lambda held: held().n),
    "a module of Python": (_module, _count, lambda held: held.n),
    "random numbers": (lambda: random.Random(0), lambda held: held.random(), lambda held: held.getstate()),
    "random numbers of the process": (lambda: 0, lambda held: random.random(), lambda held: random.getstate()),
    "random numbers of NumPy": (
        lambda: np.random.default_rng(0),
        lambda held: float(held.random()),
        lambda held: str(held.bit_generator.state),
    ),
    "old random numbers of NumPy": (
        lambda: np.random.RandomState(0),
        lambda held: float(held.random()),
        lambda held: str(held.get_state()),
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_state_that_a_call_leaves_in_it_is_refused_and_put_back(name: str) -> None:
    make, tick, content = WRITTEN[name]
    held = make()
    model, before = Ticks(held, tick), content(held)
    sicompiler.compile_for_budget(model, "1 GiB")
    with pytest.raises(sicompiler.CaptureError, match=r"is changed|changes at every call"):
        model(torch.ones(4))
    assert content(held) == before


def _numbers() -> Iterator[float]:
    yield from itertools.count(1.0)


MOVING: dict[str, Callable[[], Any]] = {
    "generator": _numbers,
    "count": lambda: itertools.count(1.0),
    "cycle": lambda: itertools.cycle([1.0, 2.0]),
    "list_iterator": lambda: iter([1.0, 2.0]),
    "map": lambda: map(float, [1, 2]),
    "chain": lambda: itertools.chain([1.0], [2.0]),
}


@pytest.mark.parametrize("kind", MOVING)
def test_what_nobody_can_put_back_is_refused_before_it_moves(kind: str) -> None:
    held = MOVING[kind]()
    model = Ticks(held, next)
    sicompiler.compile_for_budget(model, "1 GiB")
    with pytest.raises(sicompiler.CaptureError, match=f"`held` is a {kind}, which every call moves on"):
        model(torch.ones(4))
    assert next(held) == 1.0


def _set(held: Any) -> None:
    held.n = 5.0


SCALE = "SICOMPILER_TEST_SCALE"


def _flag(name: str) -> float:
    return float(os.environ.get(name, "1"))


def _mapped() -> Any:
    held = mmap.mmap(-1, 8)
    held[0] = 1
    return held


def _imported(held: Any) -> float:
    import sicompiler_test_settings  # type: ignore[import-not-found]

    return float(sicompiler_test_settings.n)


def _taken(held: Any) -> float:
    from sicompiler_test_settings import n

    return float(n)


class Scaling(type):
    """A class of classes."""

    n = 1.0


class Scaled(metaclass=Scaling):
    """Something scaled."""


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module that code may import while it runs."""
    module = _module()
    monkeypatch.setitem(sys.modules, "sicompiler_test_settings", module)
    return module


READ: dict[str, tuple[Callable[[], Any], Tick, Callable[[Any], Any]]] = {  # made by, read, changed by somebody
    "thread-local values": (_local, lambda held: held.n, _set),
    "a context variable": (lambda: VARIABLE, lambda held: held.get(), lambda held: held.set(5.0)),
    "the environment": (
        lambda: 0,
        lambda held: float(os.environ.get("SICOMPILER_TEST_SCALE", "1")),
        lambda held: os.environ.__setitem__("SICOMPILER_TEST_SCALE", "5"),
    ),
    "the environment by a helper": (
        lambda: "SICOMPILER_TEST_SCALE",
        lambda held: _flag(held),
        lambda held: os.environ.__setitem__("SICOMPILER_TEST_SCALE", "5"),
    ),
    "the environment by a constant": (
        lambda: 0,
        lambda held: _flag(SCALE),
        lambda held: os.environ.__setitem__("SICOMPILER_TEST_SCALE", "5"),
    ),
    "a map of memory": (_mapped, lambda held: float(held[0]), lambda held: held.__setitem__(0, 5)),
    "a record of NumPy": (
        lambda: np.zeros(1, dtype=[("n", "f8")])[0],
        lambda held: float(held["n"]),
        lambda held: held.__setitem__("n", 5.0),
    ),
    "a bytearray": (lambda: bytearray(b"\1"), lambda held: float(held[0]), lambda held: held.__setitem__(0, 5)),
    "an array": (lambda: array.array("d", [1.0]), lambda held: held[0], lambda held: held.__setitem__(0, 5.0)),
    "an array of C": (
        lambda: (ctypes.c_double * 1)(1.0),
        lambda held: float(held[0]),
        lambda held: held.__setitem__(0, 5.0),
    ),
    "a stream": (lambda: io.BytesIO(b"a"), lambda held: float(len(held.getvalue())), lambda held: held.write(b"abc")),
    "an event": (threading.Event, lambda held: 5.0 if held.is_set() else 1.0, lambda held: held.set()),
    "a weak reference": (lambda: weakref.ref(BOX), lambda held: held().n, lambda held: _set(held())),
    "a module of Python": (_module, lambda held: held.n, _set),
    "a class of classes": (lambda: Scaled, lambda held: held.n, lambda held: _set(type(held))),
    "a module imported while it runs": (_settings, _imported, _set),
    "a value imported while it runs": (_settings, _taken, _set),
    "a module by a string": (_settings, lambda held: sys.modules["sicompiler_test_settings"].n, _set),
}


@pytest.mark.parametrize("name", READ)
def test_what_is_read_of_it_is_followed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SICOMPILER_TEST_SCALE", raising=False)
    make, read, change = READ[name]
    held = make()
    model, twin, x = Ticks(held, read), Ticks(held, read), torch.ones(4)
    sicompiler.compile_for_budget(model, "1 GiB")
    first = model(x)
    assert torch.equal(first, twin(x))
    change(held)
    try:
        assert torch.equal(model(x), twin(x))
        assert not torch.equal(model(x), first)
    finally:
        BOX.n, Scaling.n = 0.0, 1.0
        VARIABLE.set(0.0)


def test_random_numbers_that_a_call_does_not_draw_may_be_drawn_between_calls(caplog: pytest.LogCaptureFixture) -> None:
    held = random.Random(0)
    model = Ticks(held, lambda held: 2.0)
    sicompiler.compile_for_budget(model, "1 GiB")
    model(torch.ones(4))
    held.random()
    caplog.clear()
    with caplog.at_level("INFO", logger="sicompiler"):
        model(torch.ones(4))
    assert not caplog.records


def test_a_module_that_somebody_imports_later_is_followed(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(held: Any) -> float:
        return float(sys.modules["sicompiler_test_settings"].n) if "sicompiler_test_settings" in sys.modules else 1.0

    monkeypatch.delitem(sys.modules, "sicompiler_test_settings")
    model, twin, x = Ticks(0, read), Ticks(0, read), torch.ones(4)
    sicompiler.compile_for_budget(model, "1 GiB")
    assert torch.equal(model(x), twin(x))
    settings.n = 3.0
    monkeypatch.setitem(sys.modules, "sicompiler_test_settings", settings)
    assert torch.equal(model(x), twin(x))
