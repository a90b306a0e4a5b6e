"""Moving values between a device and its offload memory.

Copies run on two streams, one in each direction, beside the one that computes: copying into the device starts as soon
as what computes has reached that place, and goes on while it computes what comes next. On a device without streams, as
the CPU, a copy is done when the call returns. `wait_loads` and `wait_stores` make what computes wait for one.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch

from sicompiler.device import device_kind
from sicompiler.ops.library import operator
from sicompiler.ops.mapped import offloaded_tensor
from sicompiler.ops.slices import copy_slice_fake, factors, new_slice, slice_view, writes_fake

MAX_BLOCKS = 4096  # of one copy: each takes some microseconds to start


class CopyStream:
    """Copies in one direction."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.Stream(device) if device_kind(device).has_streams else None

    @contextlib.contextmanager
    def carry(self) -> Iterator[None]:
        """Start copies in this block once what is being computed now is done, beside what is computed next."""
        if self.stream is None:
            yield
            return
        self.stream.wait_stream(torch.accelerator.current_stream(self.device))
        with self.stream:
            yield

    def join(self) -> None:
        """Compute on only when everything on this stream is done."""
        if self.stream is not None:
            torch.accelerator.current_stream(self.device).wait_stream(self.stream)


@functools.cache
def _copy_streams(device: torch.device) -> tuple[CopyStream, CopyStream]:
    return CopyStream(device), CopyStream(device)


def _copy_streams_of(device: torch.device) -> tuple[CopyStream, CopyStream]:
    if device.index is None and device_kind(device).has_streams:
        device = torch.device(device.type, torch.accelerator.current_device_index())
    return _copy_streams(device)


def wait_loads(device: torch.device) -> None:
    """Compute on only when everything that was fetched so far has arrived on the device."""
    _copy_streams_of(device)[0].join()


def wait_stores(device: torch.device) -> None:
    """Compute on only when everything that was stored so far has left the device."""
    _copy_streams_of(device)[1].join()


for _function in (wait_loads, wait_stores, offloaded_tensor):
    _function.__module__ = "sicompiler.ops"  # so that they print as `sicompiler.ops.wait_loads` in GraphModule.code
torch.fx.node.has_side_effect(wait_loads)
torch.fx.node.has_side_effect(wait_stores)


def _blocks(target: torch.Tensor, source: torch.Tensor, limit: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Parts of a copy that lie in one piece on both sides; the whole copy where there would be more than `limit`."""
    order = sorted(range(target.dim()), key=lambda d: max(target.stride(d), source.stride(d)), reverse=True)
    pairs = [(target.permute(order), source.permute(order))]
    while not (pairs[0][0].is_contiguous() and pairs[0][1].is_contiguous()):
        if not pairs[0][0].dim() or len(pairs) * pairs[0][0].shape[0] > limit:
            return [(target, source)]
        pairs = [(t[i], s[i]) for t, s in pairs for i in range(t.shape[0])]
    return pairs


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    if target.device == source.device:
        target.copy_(source)
        return
    for part, origin in _blocks(target, source, MAX_BLOCKS):
        part.copy_(origin, non_blocking=True)


def _spill_fake(on_device: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(on_device.shape, on_device.stride(), dtype=on_device.dtype, device=on_device.device)


@operator("spill(Tensor on_device) -> Tensor", _spill_fake)
def spill(on_device: torch.Tensor) -> torch.Tensor:
    """Copy a whole tensor into offload memory, in the order of what is computed.

    Args:
        on_device: any tensor on a device that does not overlap itself.

    Returns:
        The copy, with the same strides.

    Raises:
        OffloadError: there is no room.
    """
    offloaded = offloaded_tensor(on_device.shape, on_device.stride(), on_device.dtype, on_device.device)
    _copy(offloaded, on_device)
    return offloaded


def _fetch_fake(offloaded: torch.Tensor, device: torch.device) -> torch.Tensor:
    return torch.empty_strided(offloaded.shape, offloaded.stride(), dtype=offloaded.dtype, device=offloaded.device)


@operator("fetch(Tensor offloaded, Device device) -> Tensor", _fetch_fake)
def fetch(offloaded: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a whole tensor from offload memory to a device; `wait_loads` before it is read.

    Args:
        offloaded: any tensor that does not overlap itself.
        device: where to.

    Returns:
        The copy, with the same strides.
    """
    on_device = torch.empty_strided(offloaded.shape, offloaded.stride(), dtype=offloaded.dtype, device=device)
    with _copy_streams_of(device)[0].carry():
        _copy(on_device, offloaded)
    return on_device


def _fetch_slice_fake(
    whole: torch.Tensor, dim: int, outer: int, inner: int, start: int, length: int, device: torch.device
) -> torch.Tensor:
    return copy_slice_fake(whole, dim, outer, inner, start, length)


@operator(
    "fetch_slice(Tensor whole, int dim, SymInt outer, SymInt inner, SymInt start, SymInt length, Device device)"
    " -> Tensor",
    _fetch_slice_fake,
)
def fetch_slice(
    whole: torch.Tensor, dim: int, outer: int, inner: int, start: int, length: int, device: torch.device
) -> torch.Tensor:
    """Copy one slice of a whole offloaded value to a device; `wait_loads` before it is read.

    Args and result as of `copy_slice`, and the device to copy to.
    """
    part, target = new_slice(whole, dim, outer, inner, length, device)
    with _copy_streams_of(device)[0].carry():
        _copy(target, slice_view(whole, dim % whole.dim(), outer, inner, start, length))
    return part


@operator(
    "store_slice_(Tensor(a!) whole, Tensor part, int dim, SymInt outer, SymInt inner, SymInt start, SymInt length)"
    " -> ()",
    writes_fake,
)
def store_slice_(
    whole: torch.Tensor, part: torch.Tensor, dim: int, outer: int, inner: int, start: int, length: int
) -> None:
    """Write one slice into a whole offloaded value; `wait_stores` before the part's memory is used again.

    Args as of `write_slice_`; the shapes must agree, which the compiler saw to.
    """
    dim %= whole.dim()
    source = part if outer == 1 else factors(part, dim, outer, length, inner)
    with _copy_streams_of(part.device)[1].carry():
        _copy(slice_view(whole, dim, outer, inner, start, length), source)
