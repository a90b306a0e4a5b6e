"""Allocator events of a thread, recorded by one of torch's two profilers.

torch.profiler (Kineto) tells the address of every block, so releases are paired with what they release. It has one
session for the whole process: a second one, in any thread, cancels the first, and stopping that crashes the process.
The profiler that torch had before it (called legacy) belongs to a thread and gets in nobody's way, but tells no
addresses: a release is paired with a block of its size. So Kineto is taken where nobody else has it, and kept.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.autograd.profiler
from torch._C._profiler import ProfilerConfig, ProfilerState, RecordScope, _EventType, _ExperimentalConfig
from torch.profiler import ProfilerAction, ProfilerActivity
from torch.profiler.profiler import PROFILER_STEP_NAME

from sicompiler.device import Device, accelerator
from sicompiler.errors import SicompilerError

autograd: Any = torch._C._autograd  # its stubs leave out the scopes
kineto: Any = torch.autograd.profiler

_session = threading.Lock()  # whoever holds it may start a session of Kineto


@dataclass(frozen=True)
class Allocation:
    """A block that was allocated, or released.

    Attributes:
        when_ns: since 1970.
        address: None where the profiler does not tell it.
        bytes: negative for a release.
        device_type: the kind of device.
    """

    when_ns: int
    address: int | None
    bytes: int
    device_type: str


class AllocationRecorder(Protocol):
    """Records the allocator events of the thread that starts it."""

    name: str

    def start(self) -> None:
        """Record from here on."""
        ...

    def stop(self) -> list[Allocation]:
        """What happened since the start, in order of time."""
        ...

    def close(self) -> None:
        """Let others have what this recorder needs."""
        ...


def recorder(*, exact: bool) -> AllocationRecorder:
    """A recorder for this thread.

    Args:
        exact: take Kineto if nobody has it; short measurements of ours leave it to users.

    Raises:
        SicompilerError: a profiler runs in this thread.
    """
    if profiler_running():
        raise SicompilerError("measure_peak uses torch's profiler, and one is running: leave its context first")
    if exact and not _foreign_kineto() and _session.acquire(blocking=False):
        return _Kineto()
    return _Legacy()


def profiler_running() -> bool:
    """Whether a profiler of torch runs in this thread."""
    return bool(autograd._profiler_enabled())


def _foreign_kineto() -> bool:
    """Whether somebody profiles with Kineto, in any thread; a schedule's warm-up, which nothing tells, included."""
    if kineto._is_profiler_enabled:
        return True
    if PROFILER_STEP_NAME not in kineto.KinetoStepTracker._step_dict:
        return False  # there is no torch.profiler.profile that was not left
    waiting = (ProfilerAction.WARMUP, ProfilerAction.RECORD, ProfilerAction.RECORD_AND_SAVE)
    profilers = (x for x in gc.get_objects() if isinstance(x, torch.profiler.profile))
    return any(each.current_action in waiting for each in profilers)


class _Kineto:
    """torch.profiler. While it records, nobody else can start it: that would crash the process."""

    name = "allocator events of torch.profiler"

    def __init__(self) -> None:
        self._prepare: Callable[..., Any] = kineto._prepare_profiler
        kineto._prepare_profiler = _refuse

    def start(self) -> None:
        config = kineto.profile(profile_memory=True).config()
        with _quiet_kineto():
            self._prepare(config, {ProfilerActivity.CPU})
            autograd._enable_profiler(config, {ProfilerActivity.CPU}, {RecordScope.USER_SCOPE})

    def stop(self) -> list[Allocation]:
        result = autograd._disable_profiler()
        events = []
        for event in _walk(result.experimental_event_tree()):
            tag, fields = event.typed
            if tag == _EventType.Allocation:
                events.append(Allocation(event.start_time_ns, fields.ptr, fields.alloc_size, fields.device.type))
        if accelerator() is not None:
            events += _on_accelerators(result)
        return sorted(events, key=lambda event: event.when_ns)

    def close(self) -> None:
        kineto._prepare_profiler = self._prepare
        _session.release()


def _on_accelerators(result: Any) -> list[Allocation]:
    """Allocations on accelerators: they lie within no recorded function, so the tree of a profile has none of them."""
    rows = ((e, e.device_type().name.lower()) for e in result.events() if e.name() == "[memory]")
    return [Allocation(e.start_ns(), None, e.nbytes(), kind) for e, kind in rows if kind != Device.CPU]


def _refuse(*args: Any, **kwargs: Any) -> None:
    raise SicompilerError(
        "torch.profiler can't start while sicompiler.measure_peak or sicompiler.verify measures: torch has one session "
        "for the whole process. Start it around them, or after"
    )


def _walk(events: Iterable[Any]) -> Iterator[Any]:
    for event in events:
        yield event
        yield from _walk(event.children)


@contextmanager
def _quiet_kineto() -> Iterator[None]:
    """Keep Kineto, which reads its log level at the first use, from reporting each start and stop on stderr."""
    if "KINETO_LOG_LEVEL" in os.environ:
        yield
        return
    os.environ["KINETO_LOG_LEVEL"] = "6"
    try:
        yield
    finally:
        del os.environ["KINETO_LOG_LEVEL"]


class _Legacy:
    """The profiler of one thread that torch had before torch.profiler."""

    name = "allocator events of torch's profiler of one thread"
    kinds = (Device.CPU.value, Device.CUDA.value)  # what its events tell apart

    def __init__(self) -> None:
        self._began_ns = 0

    def start(self) -> None:
        state = ProfilerConfig(ProfilerState.CPU, False, True, False, False, False, _ExperimentalConfig())
        autograd._enable_profiler_legacy(state)
        self._began_ns = time.time_ns()

    def stop(self) -> list[Allocation]:
        events = [event for thread in autograd._disable_profiler_legacy() for event in thread]
        begin = next(event for event in events if event.kind() == "mark")
        allocations = []
        for event in events:
            if event.kind() == "memory_alloc":
                when_ns = self._began_ns + int(begin.cpu_elapsed_us(event) * 1000)
                told = (event.cpu_memory_usage(), event.cuda_memory_usage())
                for device_type, nbytes in zip(self.kinds, told, strict=True):
                    if nbytes:
                        allocations.append(Allocation(when_ns, None, nbytes, device_type))
        return sorted(allocations, key=lambda event: event.when_ns)

    def close(self) -> None:
        """Nothing was taken from anybody."""
