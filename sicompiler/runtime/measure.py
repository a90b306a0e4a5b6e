"""Measures the peak of the memory a piece of code takes from torch's allocator.

    with measure_peak() as peak:
        model(*inputs)
    peak.bytes

CPU: torch's profiler reports every allocation and release, those inside kernels too (im2col buffers of convolutions,
buffers of attention). With the scope "user" it records nothing else: 1 us per event while the code runs, 50 bytes of
its own (unmeasured) memory, and on leaving the context 8 us and briefly 1.9 KB per event. CUDA: the caching allocator
counts by itself.
"""

from __future__ import annotations

import bisect
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._C._profiler import RecordScope, _EventType
from torch.autograd.profiler import profile
from torch.profiler import ProfilerActivity

from sicompiler.errors import BadInput, SicompilerError
from sicompiler.ops import is_far

autograd: Any = torch._C._autograd  # its stubs leave out the scopes

MAX_POINTS = 5000

_measuring = threading.Lock()


@dataclass
class Peak:
    """What `measure_peak` found; the numbers stand once the context has been left, also by an exception.

    Attributes:
        device: what was measured.
        method: how, in words.
        bytes: the most that was allocated at any time beyond what was allocated at entry.
        allocated_at_entry: bytes allocated at entry; None on the CPU, whose allocator doesn't count.
        reserved_bytes: the most the caching allocator held, in total; None on the CPU, which has none.
    """

    device: torch.device
    method: str
    bytes: int = 0
    allocated_at_entry: int | None = None
    reserved_bytes: int | None = None
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

    On CUDA, `bytes` is the rise above the level at entry; releasing what is older lowers the level. On the CPU, what
    was allocated before entry is not followed, neither up nor down: `bytes` is the most that blocks allocated since
    entry held together. That is the rise above the level at entry, or more if the block releases something older. Not
    seen on the CPU: threads that Python starts in the block (torch's own worker threads are seen), and memory that
    doesn't come from torch's allocator (packed operands within MKL and oneDNN, NumPy).

    Args:
        device: what to measure; None takes the current CUDA device if there is one, else the CPU.
        older: tensors from before entry whose release is followed on the CPU too: weights that the block casts.

    Yields:
        A `Peak`, filled when the block is left.

    Raises:
        BadInput: not a CPU or CUDA device.
        SicompilerError: another measurement or a profiler is running.
    """
    chosen = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    if chosen.type not in ("cpu", "cuda"):
        raise BadInput(f"measure_peak knows cpu and cuda, got {str(chosen)!r}")
    if not _measuring.acquire(blocking=False):
        raise SicompilerError("measure_peak can't run inside another measure_peak: measure one block at a time")
    try:
        with _measure_cpu(chosen, older) if chosen.type == "cpu" else _measure_cuda(chosen) as peak:
            yield peak
    finally:
        _measuring.release()


@contextmanager
def _measure_cpu(device: torch.device, older: Iterable[torch.Tensor]) -> Iterator[Peak]:
    peak = Peak(device, "allocator events of torch.profiler")
    released: list[tuple[int, int]] = []
    watched = _watch(older, released)
    recorder = _Recorder({ProfilerActivity.CPU})
    try:
        yield peak
    finally:
        points = levels(recorder.stop("cpu"), only_new=True)
        del watched
        peak._points = _lowered(points, [(when - recorder.started_ns, nbytes) for when, nbytes in released])
        peak.bytes = max(level for _, level in peak._points)


def _watch(tensors: Iterable[torch.Tensor], released: list[tuple[int, int]]) -> list[weakref.ref[Any]]:
    """Note when a storage dies, and its bytes, for as long as what is returned lives; far memory was never counted."""

    def note(nbytes: int) -> Callable[[object], None]:
        return lambda _: released.append((time.time_ns(), nbytes))

    def near(tensor: torch.Tensor) -> bool:
        return tensor.device.type == "cpu" and not is_far(tensor)

    storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors if near(t)}
    return [weakref.ref(storage, note(storage.nbytes())) for storage in storages.values()]


def _lowered(points: Sequence[tuple[int, int]], released: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Levels less what had been released by then; a level may be below that at entry, where all begins."""
    times = [when for when, _ in released]
    total = list(itertools.accumulate((nbytes for _, nbytes in released), initial=0))
    return [(when, level - total[bisect.bisect(times, when)]) for when, level in points]


@contextmanager
def _measure_cuda(device: torch.device) -> Iterator[Peak]:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    entry = torch.cuda.memory_allocated(device)
    peak = Peak(device, "torch.cuda.max_memory_allocated", allocated_at_entry=entry)
    recorder = _Recorder({ProfilerActivity.CPU})
    try:
        yield peak
    finally:
        torch.cuda.synchronize(device)
        peak.bytes = torch.cuda.max_memory_allocated(device) - entry
        peak.reserved_bytes = torch.cuda.max_memory_reserved(device)
        peak._points = levels(recorder.stop("cuda"), only_new=False)


class _Recorder:
    """The allocator events of this thread, from here on until `stop`."""

    def __init__(self, activities: set[ProfilerActivity]) -> None:
        if autograd._profiler_enabled():
            raise SicompilerError("measure_peak uses torch's profiler, and one is running: leave its context first")
        config = profile(profile_memory=True).config()
        with _quiet_kineto():
            autograd._prepare_profiler(config, activities)
            autograd._enable_profiler(config, activities, {RecordScope.USER_SCOPE})

    def stop(self, device_type: str) -> list[tuple[int, int, int]]:
        """Nanoseconds since the start, address and bytes of each event, releases negative, in order of time."""
        result = autograd._disable_profiler()
        self.started_ns = start = result.trace_start_ns()
        found = []
        for event in _walk(result.experimental_event_tree()):
            tag, fields = event.typed
            if tag == _EventType.Allocation and fields.device.type == device_type:
                found.append((event.start_time_ns - start, fields.ptr, fields.alloc_size))
        found.sort(key=lambda event: event[0])
        return found


@contextmanager
def _quiet_kineto() -> Iterator[None]:
    """Keep kineto, which reads its log level at the first use, from reporting each start and stop on stderr."""
    if "KINETO_LOG_LEVEL" in os.environ:
        yield
        return
    os.environ["KINETO_LOG_LEVEL"] = "6"
    try:
        yield
    finally:
        del os.environ["KINETO_LOG_LEVEL"]


def _walk(events: Iterable[Any]) -> Iterator[Any]:
    for event in events:
        yield event
        yield from _walk(event.children)


def levels(events: Iterable[tuple[int, int, int]], *, only_new: bool) -> list[tuple[int, int]]:
    """Turn allocator events into levels.

    Args:
        events: (nanoseconds, address, bytes) in order of time, bytes negative for a release.
        only_new: leave out the release of blocks whose allocation is not among the events. (The CPU allocator reports
            some of those only, and may report an outdated size.)

    Returns:
        (nanoseconds, live bytes), beginning with (0, 0).
    """
    live: dict[int, int] = {}
    level = 0
    points = [(0, 0)]
    for nanoseconds, address, nbytes in events:
        if only_new:
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
