"""The loop over slices: one node of a rewritten graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.fx

from sicompiler.errors import BadInput


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


# So that it prints as `sicompiler.ops.sliced_loop` in GraphModule.code, and is not removed as dead: it has no users.
sliced_loop.__module__ = "sicompiler.ops"
torch.fx.node.has_side_effect(sliced_loop)
