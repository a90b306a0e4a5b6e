"""Reading and writing one slice of a whole value.

The sliced dim of a value may be a merged one: `size == outer * n * inner`, where the axis is the factor of length `n`,
as the frames in `(batch frames)` or the height in `(height width)`. A slice takes `length` of the `n` entries from
`start` on, within each of the `outer` repetitions, so its dim has the size `outer * length * inner`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sicompiler.errors import BadInput
from sicompiler.ops.library import operator


def dense_strides(shape: Sequence[int], like: Sequence[int]) -> list[int]:
    """Strides of a dense tensor of `shape` whose dims lie in memory in the order of the strides `like`.

    Equal strides (expanded dims, which have the stride 0) keep the order of the dims. For a tensor without expanded
    dims this is what `torch.empty_like(..., memory_format=torch.preserve_format)` infers.
    """
    strides = [1] * len(shape)
    step = 1
    for dim in sorted(range(len(shape)), key=lambda d: (like[d], -d)):
        strides[dim] = step
        step *= max(shape[dim], 1)
    return strides


def factors(tensor: torch.Tensor, dim: int, outer: int, middle: int, inner: int) -> torch.Tensor:
    """View with `dim` split in (outer, middle, inner): always a view, whatever the strides."""
    shape = tensor.shape
    return tensor.view(*shape[:dim], outer, middle, inner, *shape[dim + 1 :])


def slice_view(whole: torch.Tensor, dim: int, outer: int, inner: int, start: int, length: int) -> torch.Tensor:
    """One slice of a whole value, seen in place; with `outer` factors its dim is split in three."""
    if outer == 1:
        return whole.narrow(dim, start * inner, length * inner)
    size = whole.shape[dim]
    if size % (outer * inner):
        raise BadInput(f"dim {dim} of a tensor of shape {tuple(whole.shape)} can't be split in ({outer}, n, {inner})")
    return factors(whole, dim, outer, size // (outer * inner), inner).narrow(dim + 1, start, length)


def slice_shape(whole: torch.Tensor, dim: int, outer: int, inner: int, length: int) -> list[int]:
    """The shape of one slice."""
    shape = list(whole.shape)
    shape[dim] = outer * length * inner
    return shape


def new_slice(
    whole: torch.Tensor, dim: int, outer: int, inner: int, length: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """New memory for one slice, dense, with the dims in the order of `whole`; and a view of it as `slice_view` has."""
    dim %= whole.dim()
    shape = slice_shape(whole, dim, outer, inner, length)
    strides = dense_strides(shape, whole.stride())
    part = torch.empty_strided(shape, strides, dtype=whole.dtype, device=device)
    return part, part if outer == 1 else factors(part, dim, outer, length, inner)


def copy_slice_fake(whole: torch.Tensor, dim: int, outer: int, inner: int, start: int, length: int) -> torch.Tensor:
    """What `copy_slice` gives of a tensor without memory."""
    dim %= whole.dim()
    shape = slice_shape(whole, dim, outer, inner, length)
    return whole.new_empty_strided(shape, dense_strides(shape, whole.stride()))


@operator(
    "copy_slice(Tensor whole, int dim, SymInt outer, SymInt inner, SymInt start, SymInt length) -> Tensor",
    copy_slice_fake,
)
def copy_slice(whole: torch.Tensor, dim: int, outer: int, inner: int, start: int, length: int) -> torch.Tensor:
    """Copy one slice out of a whole value.

    Args:
        whole: [..., outer * n * inner, ...], with any strides.
        dim: the dim that holds the axis.
        outer: product of the factors of `dim` that are major to the axis.
        inner: product of the factors of `dim` that are minor to the axis.
        start: first entry of the axis.
        length: number of entries.

    Returns:
        [..., outer * length * inner, ...]: new memory, dense, with the dims in the order of `whole` (see
        `dense_strides`).

    Raises:
        BadInput: `dim` can't be split in (outer, n, inner).
        RuntimeError: the slice reaches beyond the end of the axis.
    """
    part, target = new_slice(whole, dim, outer, inner, length, whole.device)
    target.copy_(slice_view(whole, dim % whole.dim(), outer, inner, start, length))
    return part


def writes_fake(
    whole: torch.Tensor, part: torch.Tensor, dim: int, outer: int, inner: int, start: int, length: int
) -> None:
    """What writing a slice into a whole value comes to for fake tensors: nothing."""
    return None


@operator(
    "write_slice_(Tensor(a!) whole, Tensor part, int dim, SymInt outer, SymInt inner, SymInt start, SymInt length)"
    " -> ()",
    writes_fake,
)
def write_slice_(
    whole: torch.Tensor, part: torch.Tensor, dim: int, outer: int, inner: int, start: int, length: int
) -> None:
    """Write one slice into a whole value, in place.

    Args:
        whole: [..., outer * n * inner, ...], with any strides; changed.
        part: [..., outer * length * inner, ...], with any strides, of the same dtype.
        dim: the dim that holds the axis.
        outer: product of the factors of `dim` that are major to the axis.
        inner: product of the factors of `dim` that are minor to the axis.
        start: first entry of the axis.
        length: number of entries.

    Raises:
        BadInput: `part` has another shape or dtype than the slice (a plain copy would broadcast or round it), or `dim`
            can't be split in (outer, n, inner).
        RuntimeError: the slice reaches beyond the end of the axis.
    """
    dim %= whole.dim()
    if list(part.shape) != slice_shape(whole, dim, outer, inner, length) or part.dtype != whole.dtype:
        raise BadInput(
            f"write_slice_ expects {whole.dtype} of shape {slice_shape(whole, dim, outer, inner, length)}, "
            f"got {part.dtype} of shape {list(part.shape)}"
        )
    source = part if outer == 1 else factors(part, dim, outer, length, inner)
    slice_view(whole, dim, outer, inner, start, length).copy_(source)


def _take_over_fake(
    source: torch.Tensor, planned: Sequence[int], size: Sequence[int], stride: Sequence[int]
) -> torch.Tensor:
    return source.as_strided(size, stride)


@operator("take_over(Tensor(a) source, int[] planned, int[] size, int[] stride) -> Tensor(a)", _take_over_fake)
def take_over(source: torch.Tensor, planned: Sequence[int], size: Sequence[int], stride: Sequence[int]) -> torch.Tensor:
    """The memory of a value that dies in a loop, seen as the value that the loop writes over it, slice by slice.

    A slice of the one lies where the same slice of the other does only if `source` lies as it was planned. Kernels may
    choose other strides than their fake ones (convolutions of permuted inputs do): then the result is new memory, which
    costs what was to be saved and is right.

    Args:
        source: dense.
        planned: strides of `source` in the plan.
        size: of the result, with as many elements.
        stride: of the result.

    Returns:
        A view of the memory of `source`, or a new tensor.
    """
    lies = zip(source.shape, source.stride(), planned, strict=True)
    if any(length > 1 and real != expected for length, real, expected in lies):
        return source.new_empty_strided(size, stride)
    return source.as_strided(size, stride)


def in_order_fake(part: torch.Tensor, like: Sequence[int], in_format: bool = True) -> torch.Tensor:
    """What `in_order` gives of a tensor without memory: the same."""
    strides, reach = list(part.stride()), 1
    for dim in sorted(range(part.dim()), key=lambda d: (like[d], -d)):
        if part.shape[dim] == 1:
            strides[dim] = reach if in_format else 1
        reach = max(reach, strides[dim] * part.shape[dim])
    return part.as_strided(part.shape, strides)


@operator("in_order(Tensor(a) part, int[] like, bool in_format=True) -> Tensor(a)", in_order_fake)
def in_order(part: torch.Tensor, like: Sequence[int], in_format: bool = True) -> torch.Tensor:
    """A slice whose dims of one entry have the strides that the order of the whole gives them.

    These strides say nothing of where entries lie, but kernels take them for a memory format: one frame of a
    channels-last video, seen through a reshape, would pass for a tensor in no format at all.

    Args:
        part: with any strides.
        like: strides of the whole value in the plan.
        in_format: whether the whole value is in a memory format; if not, strides of 1 keep the slice from passing for
            one that is.

    Returns:
        A view of `part`.
    """
    return in_order_fake(part, like, in_format)
