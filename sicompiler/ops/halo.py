"""Where a slice with its halo begins and ends, and the padding of a window that lies beyond the true borders.

The integers of a loop's body: the first three are plain functions of integers, targets of `call_function` nodes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from sicompiler.errors import BadInput
from sicompiler.ops.library import operator
from sicompiler.ops.slices import dense_strides


def reach(position: int, scale: int, offset: int, limit: int) -> int:
    """The entry at `position * scale + offset`, or the nearest border of an axis of `limit` entries.

    Example:
        `reach(start, 2, -1, 64)` is the first row that a slice holds, with 2 rows a unit and a halo of 1 row.
    """
    return min(max(position * scale + offset, 0), limit)


def missing_before(position: int, scale: int, offset: int) -> int:
    """How many entries from `position * scale + offset` on lie before the first one."""
    return max(-(position * scale + offset), 0)


def missing_behind(position: int, scale: int, offset: int, limit: int) -> int:
    """How many entries up to `position * scale + offset` lie behind an axis of `limit` entries."""
    return max(position * scale + offset - limit, 0)


def _pad_slice_fake(x: torch.Tensor, dim: int, before: int, behind: int, value: float) -> torch.Tensor:
    if before == behind == 0:
        same: torch.Tensor = torch.ops.aten.alias.default(x)  # `view` would choose the stride of a batch of one itself
        return same
    shape = list(x.shape)
    shape[dim] += before + behind
    return x.new_empty_strided(shape, dense_strides(shape, x.stride()))


@operator(
    "pad_slice(Tensor(a) x, int dim, SymInt before, SymInt behind, float value) -> Tensor(a)",
    _pad_slice_fake,
)
def pad_slice(x: torch.Tensor, dim: int, before: int, behind: int, value: float) -> torch.Tensor:
    """The padding of a window, for slices that touch a true border.

    Args:
        x: one slice, any strides.
        dim: the dim that is padded.
        before: entries to add at the front; between the borders, none.
        behind: the same at the end.
        value: of the padding.

    Returns:
        A dense copy with the padding, its dims in the order of those of `x`; where there is none to add, a view of `x`,
        and nothing is copied.

    Raises:
        BadInput: a negative number of entries.
    """
    if before < 0 or behind < 0:
        raise BadInput(f"pad_slice adds entries, it was asked for {before} before and {behind} behind dim {dim}")
    padded = _pad_slice_fake(x, dim, before, behind, value)
    if before == behind == 0:
        return padded
    padded.narrow(dim, before, x.shape[dim]).copy_(x)
    padded.narrow(dim, 0, before).fill_(value)
    padded.narrow(dim, before + x.shape[dim], behind).fill_(value)
    return padded


def _format(x: torch.Tensor, channels_last: bool) -> torch.memory_format:
    if not channels_last:
        return torch.contiguous_format
    return torch.channels_last if x.dim() == 4 else torch.channels_last_3d


def _pad_copy_fake(x: torch.Tensor, pad: list[int], value: float, channels_last: bool) -> torch.Tensor:
    shape = list(x.shape)
    for index in range(len(pad) // 2):
        shape[x.dim() - 1 - index] += pad[2 * index] + pad[2 * index + 1]
    return x.new_empty(shape).to(memory_format=_format(x, channels_last))


@operator("pad_copy(Tensor x, SymInt[] pad, float value, bool channels_last) -> Tensor", _pad_copy_fake)
def pad_copy(x: torch.Tensor, pad: list[int], value: float, channels_last: bool) -> torch.Tensor:
    """A padding with a number, laid out alike with and without entries to add.

    `aten.constant_pad_nd` copies a tensor as it lies where nothing is to be added, and chooses a memory format
    elsewhere: between the borders its reader would have copied the slice once more.

    Args:
        x: one slice, any strides.
        pad: entries to add before and behind, of the last dim first.
        value: of the padding.
        channels_last: the memory format that `aten.constant_pad_nd` chooses; of four or five dims.

    Returns:
        A dense copy with the padding.
    """
    if any(pad):
        padded: torch.Tensor = torch.ops.aten.constant_pad_nd.default(x, pad, value)
        return padded
    return x.clone(memory_format=_format(x, channels_last))


def _named(function: Callable[..., int]) -> None:
    """So that it prints as `sicompiler.ops.<name>` in the code of a body."""
    function.__module__ = "sicompiler.ops"


for _function in (reach, missing_before, missing_behind):
    _named(_function)
