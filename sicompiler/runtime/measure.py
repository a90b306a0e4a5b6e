"""Measures the peak of the memory a piece of code takes from torch's allocator.

    with measure_peak() as peak:
        model(*inputs)
    peak.bytes

CPU: torch's profiler reports every allocation and release, those inside kernels too (im2col buffers of convolutions,
buffers of attention): 1 us per event while the code runs, 50 bytes of its own (unmeasured) memory, and on leaving the
context 8 us and briefly 1.9 KB per event. Accelerators: the caching allocator counts by itself.

Measurements of one thread may lie within one another, as one recorder writes for all of them. Those of several threads
don't see one another's allocations on the CPU.
"""

from __future__ import annotations

import bisect
import itertools
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from sicompiler.device import default_device, device_kind
from sicompiler.errors import BadInput
from sicompiler.ops import is_offloaded
from sicompiler.runtime.allocations import Allocation, AllocationRecorder, profiler_running, recorder

MAX_POINTS = 5000


@dataclass
class Peak:
    """What `measure_peak` found; the numbers stand once the context has been left, also by an exception.

    Attributes:
        device: what was measured.
        method: how, in words.
        bytes: the most that was allocated at any time beyond what was allocated at entry.
        allocated_at_entry: bytes allocated at entry; None on the CPU, whose allocator doesn't count.
        reserved_bytes: the most the caching allocator held, in total; None on the CPU, which has none.
        not_measured: why nothing was measured; empty where it was.
    """

    device: torch.device
    method: str
    bytes: int = 0
    allocated_at_entry: int | None = None
    reserved_bytes: int | None = None
    not_measured: str = ""
    _points: Sequence[tuple[int, int]] = field(default=(), repr=False)

    def timeline(self) -> list[tuple[float, int]]:
        """Live bytes beyond those at entry, over time.

        Returns:
            (seconds since entry, bytes), a step function: each value holds until the next point. At most 5000 points;
            where there were more, the highest and lowest of each stretch are kept.
        """
        return [(nanoseconds / 1e9, level) for nanoseconds, level in thin(self._points, MAX_POINTS)]


@contextmanager
def measure_peak(device: torch.device | str | None = None, *, older: Iterable[torch.Tensor] = ()) -> Iterator[Peak]:
    """Measure the peak of allocated memory in a `with` block.

    On an accelerator, `bytes` is the rise above the level at entry; releasing what is older lowers the level. On the
    CPU, what was allocated before entry is not followed, neither up nor down: `bytes` is the most that blocks allocated
    since entry held together. That is the rise above the level at entry, or more if the block releases something older.
    Not seen on the CPU: threads that Python starts in the block (torch's own worker threads are seen), and memory that
    doesn't come from torch's allocator (packed operands within MKL and oneDNN, NumPy).

    Args:
        device: what to measure; None takes the current accelerator if there is one, else the CPU.
        older: tensors from before entry whose release is followed on the CPU too: weights that the block casts.

    Yields:
        A `Peak`, filled when the block is left.

    Raises:
        BadInput: a device that is not known, or whose allocator counts no peak.
        SicompilerError: a profiler is running in this thread.
    """
    with _measured(_device(device), older, exact=True) as peak:
        yield peak


@contextmanager
def observe_peak(
    device: torch.device | str, *, older: Iterable[torch.Tensor] = (), exact: bool = False
) -> Iterator[Peak]:
    """Measure a block of a user's call where that is possible; never an error.

    Where a profiler runs in this thread, or the device counts no peak, nothing is measured: `not_measured` says so.

    Args:
        device: what to measure.
        older: as of `measure_peak`.
        exact: as `measure_peak` does it. Otherwise nothing of the process is touched that a user may be reading or
            start meanwhile: torch.profiler in other threads, the peak counters of the device (which there is no way
            around where torch's profiler of one thread does not see its allocations).

    Yields:
        A `Peak`, filled when the block is left.
    """
    chosen = torch.device(device)
    if why := _unmeasurable(chosen):
        yield Peak(chosen, "none", not_measured=why)
        return
    if not _thread.windows and profiler_running():
        yield Peak(chosen, "none", not_measured="a profiler of yours was running")
        return
    with _measured(chosen, older, exact=exact) as peak:
        yield peak


def _device(device: torch.device | str | None) -> torch.device:
    chosen = default_device() if device is None else torch.device(device)
    if why := _unmeasurable(chosen):
        raise BadInput(f"measure_peak can't measure {str(chosen)!r}: {why}")
    return chosen


def _unmeasurable(device: torch.device) -> str:
    """Why the peaks of a device can't be measured; empty where they can."""
    kind = device_kind(device)
    return "" if kind.has_counters or kind.name == "cpu" else f"the allocator of {kind.name} counts no peak"


@contextmanager
def _measured(device: torch.device, older: Iterable[torch.Tensor], *, exact: bool) -> Iterator[Peak]:
    if device.type == "cpu":
        measuring = _measure_cpu(device, older, exact=exact)
    else:
        by_events = not exact and device_kind(device).in_thread_events
        measuring = _measure_by_events(device) if by_events else _measure_by_counters(device)
    with measuring as peak:
        yield peak


class _Window:
    """What happened in one thread since one of its measurements began.

    Attributes:
        began_ns: since 1970.
        events: complete once the window is closed.
    """

    def __init__(self) -> None:
        self.began_ns = time.time_ns()
        self.events: list[Allocation] = []

    def levels(self, device_type: str, *, only_new: bool) -> list[tuple[int, int]]:
        """Live bytes over the nanoseconds since the beginning."""
        rows = (e for e in self.events if e.device_type == device_type)
        return levels(((e.when_ns - self.began_ns, e.address, e.bytes) for e in rows), only_new=only_new)


class _Thread(threading.local):
    """The open windows of a thread, outer ones first, and what records for them."""

    def __init__(self) -> None:
        self.windows: list[_Window] = []
        self.recorder: AllocationRecorder | None = None

    @contextmanager
    def recording(self, window: _Window, *, exact: bool) -> Iterator[str]:
        """Record in a block. Recording stops and starts again where a window opens or closes within another.

        Args:
            window: gets the events.
            exact: see `recorder`; windows within another are recorded as it is.

        Yields:
            How, in words.
        """
        writer = self.recorder or recorder(exact=exact)
        if self.windows:
            self._write(writer.stop())
        self.windows.append(window)
        self.recorder = writer
        try:
            writer.start()
            try:
                yield writer.name
            finally:
                self._write(writer.stop())
        finally:
            self.windows.remove(window)
            if self.windows:
                writer.start()
            else:
                self.recorder = None
                writer.close()

    def _write(self, events: Iterable[Allocation]) -> None:
        for window in self.windows:
            window.events.extend(events)


_thread = _Thread()


@contextmanager
def _measure_cpu(device: torch.device, older: Iterable[torch.Tensor], *, exact: bool) -> Iterator[Peak]:
    released: list[tuple[int, int]] = []
    watched = _watch(older, released)
    peak = Peak(device, "")
    window = _Window()
    try:
        with _thread.recording(window, exact=exact) as peak.method:
            yield peak
    finally:
        del watched
        points = window.levels("cpu", only_new=True)
        peak._points = _lowered(points, [(when - window.began_ns, nbytes) for when, nbytes in released])
        peak.bytes = max(level for _, level in peak._points)


def _watch(tensors: Iterable[torch.Tensor], released: list[tuple[int, int]]) -> list[weakref.ref[Any]]:
    """Note when a storage dies, and its bytes, for as long as what is returned lives; offloaded ones never counted."""

    def note(nbytes: int) -> Callable[[object], None]:
        return lambda _: released.append((time.time_ns(), nbytes))

    def on_device(tensor: torch.Tensor) -> bool:
        return tensor.device.type == "cpu" and not is_offloaded(tensor)

    storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors if on_device(t)}
    return [weakref.ref(storage, note(storage.nbytes())) for storage in storages.values()]


def _lowered(points: Sequence[tuple[int, int]], released: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Levels less what had been released by then; a level may be below that at entry, where all begins."""
    times = [when for when, _ in released]
    total = list(itertools.accumulate((nbytes for _, nbytes in released), initial=0))
    return [(when, level - total[bisect.bisect(times, when)]) for when, level in points]


class _Counters:
    """The peak counters of allocators, which a measurement sets back, though another one may be at work."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._highest: dict[torch.device, list[list[int]]] = {}  # of every measurement at work: one number

    @contextmanager
    def counting(self, device: torch.device) -> Iterator[Callable[[], int]]:
        """Count in a block.

        Yields:
            Gives the most bytes that were allocated since the block was entered.
        """
        highest = [0]
        with self._lock:
            self._read(device)
            self._highest.setdefault(device, []).append(highest)
            torch.accelerator.reset_peak_memory_stats(device)
        try:
            yield lambda: max(highest[0], torch.accelerator.max_memory_allocated(device))
        finally:
            with self._lock:
                self._highest[device] = [each for each in self._highest[device] if each is not highest]

    def _read(self, device: torch.device) -> None:
        for highest in self._highest.get(device, ()):
            highest[0] = max(highest[0], torch.accelerator.max_memory_allocated(device))


_counters = _Counters()


@contextmanager
def _measure_by_counters(device: torch.device) -> Iterator[Peak]:
    torch.accelerator.synchronize(device)
    entry = torch.accelerator.memory_allocated(device)
    peak = Peak(device, "torch.accelerator.max_memory_allocated", allocated_at_entry=entry)
    window = _Window()
    with _counters.counting(device) as highest:
        try:
            with _thread.recording(window, exact=True):
                yield peak
        finally:
            torch.accelerator.synchronize(device)
            peak.bytes = highest() - entry
            peak.reserved_bytes = torch.accelerator.max_memory_reserved(device)
            peak._points = window.levels(device.type, only_new=False)


@contextmanager
def _measure_by_events(device: torch.device) -> Iterator[Peak]:
    """Leave the counters alone, which the user may be reading; what other threads allocate is not seen."""
    peak = Peak(device, "", allocated_at_entry=torch.accelerator.memory_allocated(device))
    window = _Window()
    try:
        with _thread.recording(window, exact=False) as peak.method:
            yield peak
    finally:
        peak._points = window.levels(device.type, only_new=False)
        peak.bytes = max(level for _, level in peak._points)


def levels(events: Iterable[tuple[int, int | None, int]], *, only_new: bool) -> list[tuple[int, int]]:
    """Turn allocator events into levels.

    Args:
        events: (nanoseconds, address, bytes) in order of time, bytes negative for a release. Where the address is not
            known, a release is taken for that of a block of its size.
        only_new: leave out the release of blocks whose allocation is not among the events. (The CPU allocator reports
            some of those only, and may report an outdated size.)

    Returns:
        (nanoseconds, live bytes), beginning with (0, 0).
    """
    live: dict[int, int] = {}
    sizes: Counter[int] = Counter()  # of live blocks whose address is not known
    level = 0
    points = [(0, 0)]
    for nanoseconds, address, nbytes in events:
        if only_new and address is None:
            if nbytes < 0 and not sizes[-nbytes]:
                continue
            sizes[abs(nbytes)] += 1 if nbytes > 0 else -1
        elif only_new and address is not None:
            nbytes = nbytes if nbytes >= 0 else -live.pop(address, 0)
            if nbytes > 0:
                level -= live.pop(address, 0)  # its release was not seen: another thread's
                live[address] = nbytes
        if nbytes:
            level += nbytes
            points.append((nanoseconds, level))
    return points


def thin(points: Sequence[tuple[int, int]], limit: int) -> list[tuple[int, int]]:
    """Keep at most `limit` points: the highest and the lowest of each of `limit // 2` stretches, in order."""
    if len(points) <= limit:
        return list(points)
    stretches = limit // 2
    kept: list[tuple[int, int]] = []
    for number in range(stretches):
        low, high = number * len(points) // stretches, (number + 1) * len(points) // stretches
        ends = {
            max(range(low, high), key=lambda i: points[i][1]),
            min(range(low, high), key=lambda i: points[i][1]),
        }
        kept.extend(points[i] for i in sorted(ends))
    return kept
