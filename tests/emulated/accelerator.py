"""The emulated accelerator in the hands of tests: its device is called "emu" and is there once `start` was called.

One device, with the memory API, streams and events of `torch.accelerator`; `torch.emu` has what `torch.cuda` has under
the same names. What a card would not tell is here: `configure` sets how large it is and how it behaves, the other
functions say what it saw.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils import backend_registration

NAME = "emu"
DEFAULT_CAPACITY = 2 << 30

Order = Literal["sync", "random", "side-last", "side-first"]
ORDERS: tuple[Order, ...] = ("sync", "random", "side-last", "side-first")
_UNLIMITED = sys.maxsize
_native: Any = None


def start(library: Path) -> None:
    """Load the extension and name the device: once a process, as torch allows only one name.

    Args:
        library: as `tests.emulated.build.extension` gives it.
    """
    global _native
    loader = importlib.machinery.ExtensionFileLoader("_emulated", str(library))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    _native = importlib.util.module_from_spec(spec)
    loader.exec_module(_native)
    backend_registration.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _device_module())
    backend_registration.generate_methods_for_privateuse1_backend(for_storage=False)


def configure(
    *,
    capacity: int = DEFAULT_CAPACITY,
    pin_limit: int = _UNLIMITED,
    order: Order = "sync",
    seed: int = 0,
    races: Literal["raise", "collect", "ignore"] = "raise",
    poison: bool = False,
    expandable: bool = False,
) -> None:
    """Set how the device behaves from now on: what isn't named goes back to its default.

    Args:
        capacity: bytes of memory; segments that are cached count.
        pin_limit: bytes of host memory that can be pinned, cached blocks and registered memory counted.
        order: "sync" runs every kernel when it is enqueued. The others run them when the host waits, and of the streams
            that could go on take one at random, the oldest ("side-last": the default stream first) or the newest.
        seed: of the random order.
        races: raise at the call that makes one, collect them for `races`, or don't look.
        poison: memory is filled with 0xFF when it is allocated, in the order of the stream it is allocated on.
        expandable: segments grow, as under `expandable_segments:True`.
    """
    _native.set_order(ORDERS.index(order), seed)
    _native.set_races(races != "ignore", races == "raise")
    _native.set_poison(poison)
    _native.set_expandable(expandable)
    _native.set_capacity(capacity)
    _native.set_pin_limit(pin_limit)


def races() -> list[str]:
    """Accesses that no wait orders, since `configure`: each names both kernels and both streams."""
    return list(_native.races())


def launches() -> int:
    """Kernels and copies enqueued since the process began."""
    return int(_native.launches())


def queued() -> int:
    """Kernels, copies, records and waits that have not run yet."""
    return int(_native.queued())


def host_waits() -> dict[str, int]:
    """Operators that made the host wait, beside `item()`, and how often."""
    return dict(_native.host_waits())


def host_reads(tensor: torch.Tensor) -> None:
    """Say that the host reads a pinned tensor now: a race unless it has waited for the copies that write it."""
    _native.host_access(tensor.data_ptr(), tensor.untyped_storage().nbytes(), False)


@dataclass(frozen=True)
class TraceEntry:
    """One thing that the allocator did.

    Attributes:
        action: "alloc", "free_requested", "free_completed", "segment_alloc", "segment_free", "segment_map" or
            "segment_unmap", as in PyTorch's memory snapshots.
        address: of the device.
        nbytes: as asked for, or of the segment.
        stream: whose memory it is.
    """

    action: str
    address: int
    nbytes: int
    stream: int


@contextlib.contextmanager
def allocator_trace() -> Iterator[list[TraceEntry]]:
    """What the allocator does in this block; the list is filled at its end."""
    entries: list[TraceEntry] = []
    _native.set_trace(True)
    try:
        yield entries
    finally:
        entries.extend(TraceEntry(*entry) for entry in _native.trace())
        _native.set_trace(False)


@dataclass(frozen=True)
class PinnedMemory:
    """Pinned host memory, in bytes.

    Attributes:
        in_use: of blocks that tensors hold, as rounded.
        reserved: cached blocks and registered memory too.
        most_reserved: the highest `reserved` so far.
    """

    in_use: int
    reserved: int
    most_reserved: int


def pinned_memory() -> PinnedMemory:
    """How much host memory is pinned now."""
    return PinnedMemory(*_native.pinned_bytes())


def empty_host_cache() -> None:
    """Give pinned blocks back that nobody holds: `torch.accelerator.empty_host_cache`, which not every torch has."""
    _native.empty_host_cache()


def register_host_memory(address: int, nbytes: int) -> None:
    """Pin pages that the caller has, as `cudaHostRegister` does."""
    _native.register_host_memory(address, nbytes)


def unregister_host_memory(address: int) -> None:
    """Let go of registered pages: a race unless the host has waited for the copies that use them."""
    _native.unregister_host_memory(address)


class _Device:
    """`with torch.emu.device(0):`, of which there is no other."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __enter__(self) -> _Device:
        return self

    def __exit__(self, *_: object) -> None:
        return None


@contextlib.contextmanager
def _stream(stream: torch.Stream) -> Iterator[None]:
    with stream:
        yield


def _device_module() -> types.ModuleType:
    """What torch and libraries look for under `torch.emu`."""
    from_accelerator = {
        name: getattr(torch.accelerator, name)
        for name in (
            "current_stream",
            "empty_cache",
            "max_memory_allocated",
            "max_memory_reserved",
            "memory_allocated",
            "memory_reserved",
            "memory_stats",
            "reset_peak_memory_stats",
            "set_stream",
            "synchronize",
        )
    }
    module = types.ModuleType(f"torch.{NAME}")
    vars(module).update(
        from_accelerator,
        Event=lambda **options: torch.Event(NAME, **options),
        Stream=lambda device=NAME, **options: torch.Stream(device, **options),
        _is_in_bad_fork=lambda: False,
        _lazy_init=lambda: None,
        current_device=lambda: 0,
        device=_Device,
        device_count=lambda: 1,
        get_amp_supported_dtype=lambda: [torch.float16, torch.bfloat16],
        get_rng_state=lambda device=NAME: torch.get_rng_state(),
        get_rng_state_all=lambda: [torch.get_rng_state()],
        host_register=register_host_memory,
        host_unregister=unregister_host_memory,
        is_available=lambda: True,
        is_initialized=lambda: True,
        manual_seed=torch.default_generator.manual_seed,
        manual_seed_all=lambda seed: None,
        mem_get_info=lambda device=None: torch.accelerator.get_memory_info(),
        set_device=lambda index: None,
        set_rng_state=lambda state, device=NAME: torch.set_rng_state(state),
        set_rng_state_all=lambda states: torch.set_rng_state(states[0]),
        stream=_stream,
    )
    return module
