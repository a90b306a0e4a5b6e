"""Workspace of convolutions on the CPU, measured as described in `workspace_cpu.py`.

X, W and Y stand for the bytes of the input, the weight and the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch

from sicompiler.facts import workspace_onednn as onednn
from sicompiler.facts.storages import TensorFact
from sicompiler.facts.workspace_layout import KernelCall, channels_last, row_major_copy
from sicompiler.facts.workspace_onednn import HALF, round_up


@cache
def _onednn_block() -> int:
    """Channels per block in the layouts of oneDNN: 8 with AVX2, 16 with AVX512."""
    return 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8


def _goes_to_onednn(x: TensorFact, weight: TensorFact, result: TensorFact) -> bool:
    """The choice of `ConvParams::use_mkldnn` in aten/src/ATen/native/Convolution.cpp, confirmed by measurement.

    Small convolutions, and convolutions whose last two kernel sizes are 1 (also conv3d (3, 1, 1)) on one thread, go to
    the kernels that unfold their input.
    """
    if not onednn.takes(x.dtype):
        return False
    if x.dtype in HALF:
        return True
    sizes = x.shape if len(x.shape) != 3 else (x.shape[0], x.shape[1], 1, x.shape[2])
    kernel = weight.shape[-2:] if len(weight.shape) > 3 else (1, weight.shape[-1])
    strided = any(out < size for out, size in zip(result.shape[-2:], x.shape[-2:], strict=True))
    if kernel == (1, 1) and not strided and x.shape[0] < 16 and torch.get_num_threads() == 1:
        return False
    grouped = weight.shape[1] != x.shape[1]
    return grouped or min(kernel) > 3 or x.shape[0] > 1 or math.prod(sizes[:4]) > 20480


def convolution(call: KernelCall) -> int:
    """conv1d, conv2d, conv3d: `_half`, `_onednn`, `_unfolding`; and X for an input the kernel can't take as it lies."""
    x, weight, y = call.operands[0], call.operands[1], call.results[0]
    if len(x.shape) < len(weight.shape):  # no batch dim
        x, y = (TensorFact((1, *t.shape), (t.nbytes, *t.stride), t.dtype, t.storage) for t in (x, y))
    groups = x.shape[1] // weight.shape[1] if weight.shape[1] else 1
    if onednn.works_channels_last(x.dtype):
        return _half(x, weight, y, groups)
    if _goes_to_onednn(x, weight, y):
        return _onednn(x, weight, y, groups)
    return _unfolding(x, weight, y, groups)


def _half(x: TensorFact, weight: TensorFact, y: TensorFact, groups: int) -> int:
    """Half dtypes, where oneDNN's kernels work channels-last: copies of X, W and Y, and a scratchpad.

    - Row-major: X, W in blocks, Y; then two more of Y, as it is brought back to row-major in two steps.
    - Channels-last input or weight: W in blocks, and W unless it is channels-last; X unless it is.
    - Groups of one channel: blocks of 16 channels; an upper bound, as for other groups.
    """
    scratchpad, filled = onednn.convolution_scratchpad(x, weight, y), onednn.filled_weight(weight)
    if channels_last(x) or channels_last(weight):
        copied = 0 if channels_last(x) else x.nbytes
        return copied + filled + (0 if channels_last(weight) else weight.nbytes) + scratchpad
    if groups == 1:
        return row_major_copy(x) + max(x.nbytes + filled + scratchpad, 2 * y.nbytes)
    x_filled = x.nbytes * round_up(x.shape[1], 16) // x.shape[1]
    y_filled = y.nbytes * round_up(y.shape[1], 16) // y.shape[1]
    filled = 16 * weight.nbytes + y_filled - y.nbytes
    return row_major_copy(x) + max(x_filled + filled + scratchpad, 2 * y_filled)


def _onednn(x: TensorFact, weight: TensorFact, y: TensorFact, groups: int) -> int:
    """Copies of input, weight and result in the layouts of oneDNN.

    - Row-major input: X + W, then Y, each with its channels filled up to a block of 8 (the input's not if it has less).
    - Channels-last input or weight: W, and W again unless the weight is channels-last; an upper bound, as W is not
      always filled up. No copies of input or result.
    - A kernel of 1 in bfloat16: Y once or twice more, as a scratchpad.
    - Groups of some channels that don't fill blocks: the unfolded input of one group and frame, per thread; an upper
      bound. (One channel per group: as without groups.)
    """
    if channels_last(x) or channels_last(weight):
        filled = weight.nbytes * round_up(weight.shape[0], 24) // weight.shape[0] + 2**14
        copied = 0 if channels_last(x) else x.nbytes
        return copied + filled + (0 if channels_last(weight) else weight.nbytes)
    block = _onednn_block()
    inputs, outputs = weight.shape[1], weight.shape[0] // groups
    if groups > 1 and (inputs % block or outputs % block) and not inputs == outputs == 1:
        columns = math.prod(weight.shape[1:]) * math.prod(y.shape[-2:]) * x.dtype.itemsize
        return row_major_copy(x) + max(torch.get_num_threads() * columns + 128, y.nbytes)
    strided_point = math.prod(weight.shape[2:]) == 1 and x.shape[2:] != y.shape[2:]
    point = math.prod(weight.shape[2:]) == 1  # with AVX512 its few channels are filled up like more
    few = x.shape[1] < block and not strided_point and not (point and block == 16)
    x_filled = 0 if few and groups == 1 else x.nbytes * round_up(x.shape[1], 1 if few else block) // x.shape[1]
    y_filled = y.nbytes * round_up(y.shape[1], block) // y.shape[1]
    w_filled = weight.nbytes * round_up(weight.shape[0], block) // weight.shape[0]
    if groups == 1 and not few:
        w_filled = w_filled * round_up(inputs, block) // inputs
    after = 2 * y.nbytes if groups > 1 and few else y_filled
    if x.dtype in HALF and math.prod(weight.shape[2:]) == 1:
        w_filled += 2 * y_filled + (x.nbytes // x.shape[0] if x.shape[2:] != y.shape[2:] else 0)
    elif strided_point:  # the positions that are read, of one sample
        read = round_up(x.shape[1], block) * math.prod(y.shape[2:]) * x.dtype.itemsize
        w_filled += torch.get_num_threads() * (read + 128)
    return row_major_copy(x) + max(x_filled + w_filled + y_filled - y.nbytes, after)


def _unfolding(x: TensorFact, weight: TensorFact, y: TensorFact, groups: int) -> int:
    """The unfolded input, of the whole batch at once: n * (channels * kernel) * (positions of the result).

    Nothing for a kernel of 1 without stride and groups. With groups in 1-D and 2-D: one group after the other, then Y,
    as the parts are joined. A channels-last input in 2-D is taken as it lies; then W is copied.
    """
    positions = math.prod(y.shape[2:])
    unfolded = x.shape[0] * math.prod(weight.shape[1:]) * positions * x.dtype.itemsize
    pointwise = math.prod(weight.shape[2:]) == 1 and x.shape[2:] == y.shape[2:]
    if len(x.shape) == 5:
        return row_major_copy(x) + (0 if pointwise and groups == 1 else groups * unfolded)
    last = channels_last(x) and len(x.shape) == 4
    unfolded = 0 if pointwise else unfolded + (weight.nbytes if last else 0)
    if groups > 1:
        unfolded = max(unfolded + (x.nbytes // groups if x.shape[0] > 1 else 0), y.nbytes)
    return unfolded if last else unfolded + row_major_copy(x)


def transposed_convolution(call: KernelCall) -> int:
    """The columns to fold: (output channels * kernel) * (positions of the input); with oneDNN an upper bound."""
    x, weight, y = call.operands[0], call.operands[1], call.results[0]
    if x.dtype in HALF and onednn.takes(x.dtype):
        scratchpad = torch.get_num_threads() * (x.nbytes + 2**16)
        return row_major_copy(x) + max(2 * (x.nbytes + weight.nbytes) + scratchpad, 2 * y.nbytes)
    columns = x.shape[0] * math.prod(weight.shape[1:]) * math.prod(x.shape[2:]) * x.dtype.itemsize
    return row_major_copy(x) + max(columns, x.nbytes + 2 * weight.nbytes + y.nbytes)
