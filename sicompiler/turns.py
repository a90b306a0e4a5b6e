"""Whose turn it is, where several threads use live models.

Two things can't happen at once. A component that pipelines share runs one call at a time, as its weights are moved
about for each call: it has a `Turn`. And while one thread traces a model, no other thread of ours runs or plans one: a
trace patches `torch.nn.Module` and catches arithmetic of symbolic sizes for the whole process, and holds fake tensors
in the place of weights. `tracing` waits for `executing` to end everywhere else.

No thread waits for another one that waits for it. A thread holds the turn of one component, and of what that one calls;
a thread that waits for a turn does not execute meanwhile; and who waits to move another component away lets its own be
moved away.
"""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch

WAIT_SECONDS = 0.005  # between looks at whether a model is idle by now


class Turn:
    """The right to run one live model and to move its weights."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        self._parking = threading.Lock()
        self._parked = False

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Have the turn in a block, as soon as the thread that has it is done; once more where this one has it."""
        if not self._lock.acquire(blocking=False):
            with _stage.left():
                self._lock.acquire()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            self._lock.release()

    @contextmanager
    def if_idle(self) -> Iterator[bool]:
        """Be free to move the weights in a block, if nobody runs the model; gives whether that is so; does not wait."""
        acquired = self._lock.acquire(blocking=False)
        try:
            if acquired:
                yield self._depth == 0
                return
            with self._parking:
                yield self._parked
        finally:
            if acquired:
                self._lock.release()

    @contextmanager
    def waiting_for(self, others: Sequence[Turn]) -> Iterator[int | None]:
        """Be free to move the weights of one of several models in a block, as soon as one is idle.

        Meanwhile the weights of this model, whose turn is taken, may be moved away, so that two threads that want to
        move the model of each other don't wait for ever. Gives the number of the other; None where there are none, and
        where this model is in the middle of a run that led back to it.
        """
        if self._depth > 1 or not others:
            yield None
            return
        self._park(parked=True)
        try:
            with _stage.left():
                for number in itertools.cycle(range(len(others))):
                    with others[number].if_idle() as is_idle:
                        if is_idle:
                            yield number
                            return
                    time.sleep(WAIT_SECONDS / len(others))
        finally:
            self._park(parked=False)

    def _park(self, *, parked: bool) -> None:
        with self._parking:
            self._parked = parked


_turns: weakref.WeakKeyDictionary[torch.nn.Module, Turn] = weakref.WeakKeyDictionary()
_turns_lock = threading.Lock()


def turn_of(model: torch.nn.Module) -> Turn:
    """The turn of a live model, whoever compiled it."""
    with _turns_lock:
        return _turns.setdefault(model, Turn())


_acting = threading.local()  # for which other thread this one works


def _me() -> int:
    """The thread this one counts as: itself, or the one it works for."""
    return getattr(_acting, "thread", None) or threading.get_ident()


def this_thread() -> int:
    """What `working_for` takes, of the thread that calls this."""
    return _me()


@contextmanager
def working_for(thread: int) -> Iterator[None]:
    """Count as another thread in a block: it waits for this one, in the middle of a trace, say.

    Args:
        thread: of `this_thread`.
    """
    _acting.thread = thread
    try:
        yield
    finally:
        del _acting.thread


class _Stage:
    """The threads that execute models, and the one that traces."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._executing: dict[int, int] = {}  # by thread: how many executions lie within one another
        self._tracing: int | None = None
        self._depth = 0

    @contextmanager
    def executing(self) -> Iterator[None]:
        me = _me()
        with self._changed:
            if me not in self._executing:  # else a trace waits for us already
                self._changed.wait_for(lambda: self._tracing in (None, me))
            self._executing[me] = self._executing.get(me, 0) + 1
        try:
            yield
        finally:
            with self._changed:
                self._executing[me] -= 1
                if not self._executing[me]:
                    del self._executing[me]
                self._changed.notify_all()

    @contextmanager
    def tracing(self) -> Iterator[None]:
        me = _me()
        with self.left():
            with self._changed:
                self._changed.wait_for(lambda: self._tracing == me or (self._tracing is None and not self._executing))
                self._tracing = me
                self._depth += 1
            try:
                yield
            finally:
                with self._changed:
                    self._depth -= 1
                    if not self._depth:
                        self._tracing = None
                    self._changed.notify_all()

    @contextmanager
    def left(self) -> Iterator[None]:
        """Not execute in a block, though this thread is in the middle of an execution."""
        me = _me()
        with self._changed:
            mine = self._executing.pop(me, 0)
            self._changed.notify_all()
        try:
            yield
        finally:
            if mine:
                with self._changed:
                    self._changed.wait_for(lambda: self._tracing in (None, me))
                    self._executing[me] = mine


_stage = _Stage()


def executing() -> AbstractContextManager[None]:
    """A context in which this thread plans or runs a model; it begins when no other thread traces."""
    return _stage.executing()


def tracing() -> AbstractContextManager[None]:
    """A context in which this thread traces a model; it begins when no other thread of ours runs or traces one."""
    return _stage.tracing()
