"""`sliced_loop` and `streamed_loop`: the nodes of a rewritten graph that run a body once for each slice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.fx

from sicompiler.errors import BadInput
from sicompiler.ops.offloaded import wait_loads, wait_stores


def sliced_loop(body: Callable[..., object], size: int, slice_length: int, *operands: Any) -> None:
    """Call `body(*operands, start, length)` for each slice of an axis.

    All slices have `slice_length` entries but the last, which has what is left: memory is planned with `slice_length`,
    and the operators of the body see at most two shapes. (For slices of nearly equal length pass `ceil(size / k)`.) The
    body returns nothing that is kept: it writes its results into operands that were allocated before, by `write_slice_`
    and `merge_stats_`. The slices run in order; an exception ends the loop and goes to the caller.

    Args:
        body: the operators of the region for one slice, usually an `fx.GraphModule`, an attribute of the outer one.
        size: length of the axis, in entries.
        slice_length: entries of a slice, at least 1.
        *operands: what the body reads and writes, whole.

    Raises:
        BadInput: `slice_length` is less than 1 or `size` is negative.
    """
    if slice_length < 1 or size < 0:
        raise BadInput(f"sliced_loop needs size >= 0 and slice_length >= 1, got {size} and {slice_length}")
    for start in range(0, size, slice_length):
        body(*operands, start, min(slice_length, size - start))


def streamed_loop(  # noqa: PLR0913  # the arguments of a node of a graph
    body: Callable[..., tuple[torch.Tensor, ...]],
    fetch: Callable[..., tuple[torch.Tensor, ...]],
    store: Callable[..., None],
    size: int,
    slice_length: int,
    device: torch.device,
    sources: Sequence[torch.Tensor],
    targets: Sequence[torch.Tensor],
    operands: Sequence[Any],
) -> None:
    """Run a body over slices of an axis, some of them of offloaded values, loaded and stored while others are computed.

    Two slices of each such value are on the device: of what is read, the one computed with and the next, which arrives
    meanwhile; of what is written, the one being made and the one before, which leaves.

    Args:
        body: called as `body(*fetched, *operands, start, length)`; returns the slices to be stored.
        fetch: called as `fetch(*sources, start, length)`; returns their slices on the device.
        store: called as `store(*slices, *targets, start, length)`.
        size: length of the axis, in entries.
        slice_length: entries of a slice, at least 1.
        device: what computes.
        sources: whole offloaded values that are read.
        targets: whole offloaded values that are written.
        operands: what the body reads and writes on the device, whole.

    Raises:
        BadInput: `slice_length` is less than 1 or `size` is negative.
    """
    if slice_length < 1 or size < 0:
        raise BadInput(f"streamed_loop needs size >= 0 and slice_length >= 1, got {size} and {slice_length}")
    starts = range(0, size, slice_length)
    prefetched = fetch(*sources, 0, min(slice_length, size)) if starts else ()
    in_flight: tuple[torch.Tensor, ...] = ()
    for start in starts:
        wait_loads(device)
        here, after = prefetched, start + slice_length
        prefetched = fetch(*sources, after, min(slice_length, size - after)) if after < size else ()
        made = body(*here, *operands, start, min(slice_length, size - start))
        del here
        wait_stores(device)
        in_flight = made  # lets go of the slice before, which has left by now
        store(*in_flight, *targets, start, min(slice_length, size - start))
        del made
    wait_stores(device)


# So that they print as `sicompiler.ops.sliced_loop` in GraphModule.code, and are not removed as dead: no users.
for _loop in (sliced_loop, streamed_loop):
    _loop.__module__ = "sicompiler.ops"
    torch.fx.node.has_side_effect(_loop)
