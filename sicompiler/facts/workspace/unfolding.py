"""Workspace of ATen's own convolutions on the CPU, those that unfold their input: in float64, and small ones.

Followed from `_convolution` in aten/src/ATen/native/Convolution.cpp and the kernels it calls, then compared with them:
never less for 11,000 random calls. X, W and Y stand for the bytes of the input, the weight and the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from sicompiler.facts.storages import TensorFact
from sicompiler.facts.strides import format_strides, has_format
from sicompiler.facts.workspace.layout import KernelCall, row_major_copy, suggested

Kernel = Callable[[TensorFact, TensorFact, TensorFact], int]
"""Bytes that a kernel takes beside the result, for input, weight and result of one group that lie as it wants them."""


def unfolding(call: KernelCall, x: TensorFact, weight: TensorFact, y: TensorFact) -> int:
    """conv1d, conv2d, conv3d: copies of what doesn't lie as it has to, and the unfolded input.

    The unfolded input has n * (channels * kernel) * (positions of the result) entries; none for a kernel of 1 without
    stride and padding. With a dilation it is that of one sample.

    Args:
        call: its arguments.
        x: [n, c, ...], a batch.
        weight: [outputs, c / groups, ...].
        y: [n, outputs, ...].
    """
    moved = math.prod(weight.shape[2:]) > 1 or any(step > 1 for step in call["stride"]) or x.shape[2:] != y.shape[2:]
    dilated = any(step > 1 for step in call["dilation"])
    groups = x.shape[1] // weight.shape[1] if weight.shape[1] else 1

    def columns(x: TensorFact, weight: TensorFact, y: TensorFact) -> int:
        unfolded = math.prod(weight.shape[1:]) * math.prod(y.shape[2:]) * x.dtype.itemsize
        return unfolded if dilated else x.shape[0] * unfolded if moved else 0

    if len(x.shape) == 5 and not dilated:  # all groups at once, and then a kernel of 1 unfolds too
        moved = moved or groups > 1
        return row_major_copy(x) + row_major_copy(weight) + groups * columns(x, weight, y)
    return _by_groups(x, weight, y, groups, columns)


def folding(call: KernelCall, x: TensorFact, weight: TensorFact, y: TensorFact) -> int:
    """conv_transpose1d, 2d, 3d: the same copies, and columns to be folded.

    They have n * (outputs * kernel) * (positions of the input) entries; in 3-D those of one sample and, for a bias, as
    many ones as there are positions of the result. Its result begins with the size of the input there: as it is made
    longer both are held for a moment, where it is shorter it keeps all.
    """
    ones = call["bias"] is not None

    def columns(x: TensorFact, weight: TensorFact, y: TensorFact) -> int:
        folded = math.prod(weight.shape[1:]) * math.prod(x.shape[2:]) * x.dtype.itemsize
        if len(x.shape) < 5:
            return x.shape[0] * folded
        folded += math.prod(y.shape[2:]) * y.dtype.itemsize if ones else 0
        return max(x.nbytes, folded) if y.nbytes > x.nbytes else folded

    if len(x.shape) < 5:
        return _by_groups(x, weight, y, call["groups"], columns)
    nbytes = _by_groups(x, weight, y, call["groups"], columns, keeps_input=True)
    if call["groups"] > 1 or x.nbytes <= y.nbytes:
        return nbytes
    return x.nbytes - y.nbytes + max(nbytes, y.nbytes)  # in a loop the result is copied, that the rest may go


def _by_groups(
    x: TensorFact, weight: TensorFact, y: TensorFact, groups: int, kernel: Kernel, *, keeps_input: bool = False
) -> int:
    """Bytes of one group after the other; their results are joined at the end.

    In 1-D the input is made row-major before it is seen as an image of one row, and may be copied once more then.
    """
    before = row_major_copy(x) if len(x.shape) == 3 else 0
    if before:
        x = _laid(x, channels=False)
    x, weight, y = (as_image(t) if len(t.shape) == 3 else t for t in (x, weight, y))
    channels = _works_channels_last(x, weight)
    copied = (_copied(x, channels) or before) + _copied(weight, channels)
    at_first = before + copied - y.nbytes
    x, weight = _laid(x, channels=channels), _laid(weight, channels=channels)
    if groups == 1:
        return max(at_first, copied + kernel(x, weight, y))
    part, its_weight, its_result = (_cut(t, dim, groups) for t, dim in ((x, 1), (weight, 0), (y, 1)))
    taken = _copied(part, suggested(x)) + _copied(its_weight, suggested(weight))
    part, its_weight = _laid(part, channels=suggested(x)), _laid(its_weight, channels=suggested(weight))
    channels = _works_channels_last(part, its_weight)
    taken += _copied(part, channels) + _copied(its_weight, channels)
    parts = max(x.nbytes, y.nbytes) if keeps_input else y.nbytes
    own = taken + kernel(_laid(part, channels=channels), _laid(its_weight, channels=channels), its_result)
    return max(at_first, copied + max(own + parts - y.nbytes, parts))


def _works_channels_last(x: TensorFact, weight: TensorFact) -> bool:
    """`thnn_conv_use_channels_last` in aten/src/ATen/native/ConvUtils.h: images only."""
    return len(x.shape) == 4 and (suggested(x) or suggested(weight))


def _copied(tensor: TensorFact, channels: bool) -> int:
    return 0 if has_format((tensor.shape, tensor.stride), channels) else tensor.nbytes


def _laid(tensor: TensorFact, *, channels: bool) -> TensorFact:
    """What `contiguous` gives: the tensor itself where it lies so already, with its strides of dims of one entry."""
    if not _copied(tensor, channels):
        return tensor
    return replace(tensor, stride=format_strides(tensor.shape, channels))


def _cut(tensor: TensorFact, dim: int, groups: int) -> TensorFact:
    return replace(tensor, shape=(*tensor.shape[:dim], tensor.shape[dim] // groups, *tensor.shape[dim + 1 :]))


def as_image(tensor: TensorFact) -> TensorFact:
    """[n, c, w] as [n, c, 1, w], a view."""
    (n, c, w), (outer, middle, inner) = tensor.shape, tensor.stride
    return replace(tensor, shape=(n, c, 1, w), stride=(outer, middle, w * inner, inner))
