"""Workspace of convolutions on the CPU, measured as described in `workspace/cpu.py`.

X, W and Y stand for the bytes of the input, the weight and the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import torch

from sicompiler.facts.storages import TensorFact
from sicompiler.facts.workspace import onednn
from sicompiler.facts.workspace.layout import KernelCall, channels_last, row_major, row_major_copy, suggested
from sicompiler.facts.workspace.onednn import HALF, round_up
from sicompiler.facts.workspace.unfolding import as_image, folding, unfolding


@cache
def _onednn_block() -> int:
    """Channels per block in the layouts of oneDNN: 8 with AVX2, 16 with AVX512."""
    return 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8


def goes_to_onednn(x: TensorFact, weight: TensorFact, steps: Sequence[int], grouped: bool) -> bool:
    """The choice of `ConvParams::use_mkldnn` in aten/src/ATen/native/Convolution.cpp, confirmed by measurement.

    Small convolutions, and convolutions whose last two kernel sizes are 1 (also conv3d (3, 1, 1)) on one thread, go to
    the kernels that unfold their input.

    Args:
        x: its input, with a batch dim.
        weight: its weight.
        steps: its strides and dilations.
        grouped: whether it has more than one group.
    """
    if not onednn.takes(x.dtype):
        return False
    if x.dtype in HALF:
        return True
    sizes = x.shape if len(x.shape) != 3 else (x.shape[0], x.shape[1], 1, x.shape[2])
    kernel = weight.shape[-2:] if len(weight.shape) > 3 else (1, weight.shape[-1])
    if kernel == (1, 1) and max(steps) == 1 and x.shape[0] < 16 and torch.get_num_threads() == 1:
        return False
    return grouped or min(kernel) > 3 or x.shape[0] > 1 or math.prod(sizes[:4]) > 20480


def convolution(call: KernelCall) -> int:
    """conv1d, conv2d, conv3d: `_half`, `_onednn`, `_unfolding`; and X for an input the kernel can't take as it lies."""
    x, weight, y = _batched(call.operands[0], call.operands[1], call.results[0])
    padded, copied = _unevenly_padded(call, x), 0
    if padded is not None:  # the kernel is given a padded copy
        x, copied = padded, padded.nbytes
    groups = x.shape[1] // weight.shape[1] if weight.shape[1] else 1
    if not goes_to_onednn(x, weight, (*call["stride"], *call["dilation"]), groups > 1):
        return copied + unfolding(call, x, weight, y) + 64
    if padded is not None:
        copied += row_major_copy(weight)
    return copied + _by_layout(x, weight, y, lambda *tensors: _convolution(call, groups, *tensors))


def _convolution(call: KernelCall, groups: int, x: TensorFact, weight: TensorFact, y: TensorFact) -> int:
    copied = 0 if channels_last(weight) and len(weight.shape) == 4 else row_major_copy(weight)
    if onednn.works_channels_last(x.dtype):
        return copied + _half(x, weight, y, groups)
    nbytes = _onednn(x, weight, y, groups)
    if onednn.uses_small_products(x.dtype):
        nbytes = _small_products(call, x, weight, y, groups, nbytes + 4 * weight.shape[0])  # a bias in float32
    return copied + nbytes + 512


def _small_products(
    call: KernelCall, x: TensorFact, weight: TensorFact, y: TensorFact, groups: int, direct: int
) -> int:
    """Bfloat16, channels-last: as in `_onednn`, but with other blocks of the weight and scratch memory; the larger.

    What no such kernel takes, the `direct` ones of `_onednn` do, for as many bytes.
    """
    if not suggested(x) and not suggested(weight):
        return max(direct, _not_in_blocks(x, weight, y, groups))
    outputs, inputs, taps = weight.shape[0] // groups, weight.shape[1], math.prod(weight.shape[2:])
    if not onednn.takes_small_products(inputs, outputs, groups, taps):
        return direct
    steps, dilation = _steps(call, "stride"), _steps(call, "dilation")
    nbytes = onednn.small_products_weight(outputs, inputs, groups, taps)
    nbytes += onednn.small_products_scratchpad(x, weight, y, groups, steps, dilation)
    nbytes += (0 if channels_last(x) else x.nbytes) + (0 if channels_last(weight) else weight.nbytes)
    return nbytes if groups > 1 and channels_last(x) else max(direct, nbytes)


def _not_in_blocks(x: TensorFact, weight: TensorFact, y: TensorFact, groups: int) -> int:
    """Row-major bfloat16: two results in 3-D with one channel per group; unfolded where a kernel is wider than rows."""
    if groups > 1 and weight.shape[:2] == (groups, 1):
        return row_major_copy(x) + 2 * y.nbytes
    return row_major_copy(x) + (_unfolded_groups(weight, y, groups) if y.shape[-1] < weight.shape[-1] else 0)


def _steps(call: KernelCall, name: str) -> Sequence[int]:
    """Strides or dilations of a call whose operands in 1-D are seen as images of one row."""
    values = each_dim(call[name], len(call.operands[1].shape) - 2)
    return values if len(values) > 1 else [1, *values]


def _by_layout(
    x: TensorFact, weight: TensorFact, y: TensorFact, count: Callable[[TensorFact, TensorFact, TensorFact], int]
) -> int:
    """Bytes of a call; in 1-D an input that is not row-major may be taken as it lies or copied first: the larger."""
    plain = _as_images(x, weight, y)
    if len(weight.shape) != 3 or x.is_contiguous:
        return count(*plain)
    copied = x.nbytes * (1 if weight.is_contiguous else 2)
    either = max(count(*plain), copied + count(*_as_images(row_major(x), row_major(weight), y)))
    if onednn.uses_small_products(x.dtype):  # or only the input is, and then brought back to channels-last
        return max(either, count(*_as_images(row_major(x), weight, y)))
    return either


def _unevenly_padded(call: KernelCall, x: TensorFact) -> TensorFact | None:
    """The copy of the input that is made where padding "same" is not as much on both sides; else None.

    It is row-major, or channels-last where torch suggests that of the input, which may be row-major too (one position).
    """
    if call.arguments.get("padding") != "same":
        return None
    weight = call.operands[1]
    space = len(weight.shape) - 2
    odd = [
        step * (size - 1) % 2 for step, size in zip(each_dim(call["dilation"], space), weight.shape[2:], strict=True)
    ]
    if not any(odd):
        return None
    lead = len(x.shape) - space
    shape = (*x.shape[:lead], *(size + more for size, more in zip(x.shape[lead:], odd, strict=True)))
    padded = row_major(TensorFact(shape, shape, x.dtype, x.storage))
    if not suggested(x):
        return padded
    last = row_major(TensorFact((shape[0], *shape[2:], shape[1]), shape, x.dtype, x.storage)).stride
    return TensorFact(shape, (last[0], last[-1], *last[1:-1]), x.dtype, x.storage)


def each_dim(values: Sequence[int], count: int) -> Sequence[int]:
    """An argument that is given for each dim of space, or once for all of them."""
    return values if len(values) == count else [values[0]] * count


def _batched(*tensors: TensorFact) -> list[TensorFact]:
    """Input, weight and result, with a batch dim where there was none."""
    x, weight, y = tensors
    if len(x.shape) < len(weight.shape):
        x, y = (replace(t, shape=(1, *t.shape), stride=(t.shape[0] * t.stride[0], *t.stride)) for t in (x, y))
    return [x, weight, y]


def _as_images(*tensors: TensorFact) -> list[TensorFact]:
    """Input, weight and result; those in 1-D as images of one row."""
    return [as_image(t) if len(t.shape) == 3 else t for t in tensors]


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
    - Channels-last input or weight: W in blocks (`_filled_weight`), and W again unless the weight is channels-last;
      an upper bound for groups (`_filled_by_group`). No copies of input or result.
    - A kernel of 1 in bfloat16: float32 sums of one sample per thread.
    - Groups of some channels that don't fill blocks: the unfolded input of one group and frame, per thread; an upper
      bound. Or copies of X and W, where those are more. (One channel per group: as without groups.)
    """
    if suggested(x) or suggested(weight):
        filled = _filled_weight(weight, y) + torch.get_num_threads() * (40960 if x.shape[2] == 1 else 2**14)
        if groups > 1:
            filled = max(filled, _filled_by_group(weight, y, groups) + torch.get_num_threads() * 2**14)
        if x.dtype in HALF:
            filled += _point_sums(weight, y)
            filled += _positions_read(x, y) if math.prod(weight.shape[2:]) == 1 else 0
        copied = 0 if channels_last(x) else x.nbytes
        copied += y.nbytes if groups > 1 and x.dtype not in HALF else 0
        return copied + filled + (0 if channels_last(weight) else weight.nbytes)
    block = _onednn_block()
    inputs, outputs = weight.shape[1], weight.shape[0] // groups
    if groups > 1 and (inputs % block or outputs % block) and not inputs == outputs == 1:
        return row_major_copy(x) + max(_unfolded_groups(weight, y, groups), y.nbytes, x.nbytes + weight.nbytes)
    strided_point = math.prod(weight.shape[2:]) == 1 and x.shape[2:] != y.shape[2:]
    point = math.prod(weight.shape[2:]) == 1  # with AVX512 its few channels are filled up like more
    few = x.shape[1] < block and not strided_point and not (point and block == 16)
    x_filled = 0 if few and groups == 1 else x.nbytes * round_up(x.shape[1], block) // x.shape[1]
    y_filled = y.nbytes * round_up(y.shape[1], block) // y.shape[1]
    w_filled = weight.nbytes * round_up(weight.shape[0], block) // weight.shape[0]
    if x.dtype in HALF and few:  # pairs of inputs lie side by side
        w_filled = w_filled * round_up(inputs, 2) // inputs
    if groups == 1 and not few:
        w_filled = w_filled * round_up(inputs, block) // inputs
    after = 2 * y.nbytes if groups > 1 and few else y_filled
    if x.dtype in HALF and math.prod(weight.shape[2:]) == 1:
        w_filled += _point_sums(weight, y) + max(_positions_read(x, y), x.nbytes // x.shape[0] if strided_point else 0)
    elif strided_point:  # the positions that are read, of one sample
        w_filled += _positions_read(x, y)
    return row_major_copy(x) + max(x_filled + w_filled + y_filled - y.nbytes, after)


def _unfolded_groups(weight: TensorFact, y: TensorFact, groups: int) -> int:
    positions = math.prod(y.shape[-2:])
    columns = math.prod(weight.shape[1:]) * positions * y.dtype.itemsize
    columns += (4 * (weight.shape[0] // groups) * positions + 256) if y.dtype in HALF else 0  # float32 sums
    return torch.get_num_threads() * columns + 512


def _filled_weight(weight: TensorFact, y: TensorFact) -> int:
    """The weight of a channels-last call with its results filled up to blocks, in bfloat16 its inputs too.

    In float32 with AVX512 more than four blocks of results are taken two, three or four at a time, whichever fills up
    least, and three are filled up to four in images of fewer than 100 positions. In bfloat16 more inputs than a block
    are filled up, fewer to pairs.
    """
    block, (outputs, inputs) = _onednn_block(), weight.shape[:2]
    if weight.dtype in HALF:
        inputs = round_up(inputs, block if inputs > block else 2)
    filled = round_up(outputs, 24) if block == 8 else _filled_outputs(outputs, y)
    return filled * inputs * math.prod(weight.shape[2:]) * weight.dtype.itemsize


def _filled_outputs(outputs: int, y: TensorFact) -> int:
    block = _onednn_block()
    filled = round_up(outputs, block)
    if y.dtype in HALF or block == 8:
        return filled
    if filled > 4 * block:
        return min(round_up(outputs, parts * block) for parts in (2, 3, 4))
    return 4 * block if filled == 3 * block and math.prod(y.shape[2:]) < 100 else filled


def _filled_by_group(weight: TensorFact, y: TensorFact, groups: int) -> int:
    """The weight of a channels-last call with inputs and results of each group filled up to a block.

    Not where a group is one channel; nor half a block or a quarter, whose kernels take it as it is (in 3-D those of
    half dtypes don't). More inputs than a block are not filled up in float32.
    """
    block, inputs, outputs = _onednn_block(), weight.shape[1], weight.shape[0] // groups
    parts = (block // 4, block // 2)
    flat = len(weight.shape) == 4 or weight.dtype not in HALF
    if flat and (inputs == outputs == 1 or (outputs in parts and inputs < block and inputs % parts[0] == 0)):
        return weight.nbytes
    if inputs < block or weight.dtype in HALF:
        inputs = round_up(inputs, block)
    entries = groups * inputs * _filled_outputs(outputs, y) * math.prod(weight.shape[2:])
    return entries * weight.dtype.itemsize


def _positions_read(x: TensorFact, y: TensorFact) -> int:
    """With a stride, the positions that a kernel of 1 reads: of one sample per thread."""
    if x.shape[2:] == y.shape[2:]:
        return 0
    channels = round_up(x.shape[1], _onednn_block())
    return torch.get_num_threads() * (channels * math.prod(y.shape[2:]) * x.dtype.itemsize + 128)


def _point_sums(weight: TensorFact, y: TensorFact) -> int:
    """Float32 sums of a kernel of 1 in half dtypes: of one sample per thread, also where there are fewer samples."""
    if math.prod(weight.shape[2:]) > 1:
        return 0
    return torch.get_num_threads() * (4 * round_up(y.shape[1], _onednn_block()) * (math.prod(y.shape[2:]) + 16) + 1024)


def transposed_convolution(call: KernelCall) -> int:
    """conv_transpose1d, 2d, 3d: as `_transposed_onednn`, or what `folding` takes. On CPUs with AMX a bound."""
    x, weight, y = _batched(call.operands[0], call.operands[1], call.results[0])
    amx = onednn.has_amx(x.dtype) or onednn.works_channels_last(x.dtype)
    if not amx and not goes_to_onednn(x, weight, (*call["stride"], *call["dilation"]), call["groups"] > 1):
        return folding(call, x, weight, y) + 64
    return _by_layout(x, weight, y, lambda *tensors: _transposed(call, *tensors)) + 256


def _transposed(call: KernelCall, x: TensorFact, weight: TensorFact, y: TensorFact) -> int:
    copied = (0 if channels_last(weight) else row_major_copy(weight)) + (0 if channels_last(x) else row_major_copy(x))
    if onednn.has_amx(x.dtype) or onednn.works_channels_last(x.dtype):
        scratchpad = torch.get_num_threads() * (x.nbytes + 2**16)
        return copied + max(2 * (x.nbytes + weight.nbytes) + scratchpad, 2 * y.nbytes)
    nbytes = _transposed_onednn(x, weight, y, call["groups"], call["bias"] is not None)
    if onednn.uses_small_products(x.dtype):
        nbytes = max(nbytes + _point_sums(weight, y), _transposed_small_products(call, x, weight, y))
    return copied + nbytes


def _transposed_small_products(call: KernelCall, x: TensorFact, weight: TensorFact, y: TensorFact) -> int:
    """In bfloat16: the weight in other blocks, a row-major result brought back in two steps; a bound."""
    groups, outputs, bias = call["groups"], weight.shape[1], call["bias"] is not None
    inputs, taps = x.shape[1] // groups, math.prod(weight.shape[2:])
    steps, dilation = _steps(call, "stride"), _steps(call, "dilation")
    filled = onednn.small_products_weight(outputs, inputs if groups == 1 else round_up(inputs, 16), groups, taps)
    if max(steps) == 1:
        turned = replace(weight, shape=(groups * outputs, inputs, *weight.shape[2:]))
        scratchpad = onednn.small_products_scratchpad(x, turned, y, groups, steps, dilation)
    else:
        scratchpad = onednn.strided_scratchpad(x, weight, y, groups, steps, bias=bias)
    if groups > 1 or max(dilation) > 1:
        scratchpad = max(scratchpad, onednn.unfolded_scratchpad(x, weight, y, groups, bias=bias))
    if channels_last(x):
        return filled + scratchpad + (0 if channels_last(weight) else weight.nbytes)
    return max(x.nbytes + filled + scratchpad, 2 * y.nbytes)


def _transposed_onednn(x: TensorFact, weight: TensorFact, y: TensorFact, groups: int, bias: bool) -> int:
    """Copies of input, weight and result in the layouts of oneDNN; the result comes back in one step more in float32.

    Channels are filled up to a block, but for those of input and result with a stride in float32. A stride takes
    scratch memory in float32, which is bounded; a bias float32 sums of the result, but for strides in float32.
    """
    block, half = _onednn_block(), x.dtype in HALF
    inputs, outputs = weight.shape[:2] if groups == 1 else (block, block)

    def filled(channels: int) -> int:
        return round_up(channels, block)

    threads = torch.get_num_threads()
    strided = any(out > size for out, size in zip(y.shape[2:], x.shape[2:], strict=True))
    w_filled = weight.nbytes * filled(inputs) * filled(outputs) // (inputs * outputs)
    x_filled, y_filled = x.nbytes, y.nbytes
    if half or not strided:
        x_filled, y_filled = x_filled * filled(inputs) // inputs, y_filled * filled(outputs) // outputs
    scratchpad = threads * (min(440000, 2**16 + 8 * x.nbytes) if strided and not half else 2**13)
    if bias and (half or not strided):
        scratchpad += 4 * y_filled // x.dtype.itemsize
    if channels_last(x):  # with AVX2 it may be copied all the same
        return 2 * w_filled + scratchpad + (x.nbytes + 2 * y.nbytes if block == 8 else 0)
    after = y_filled if half or groups > 1 or not strided else 2 * y_filled
    return max(scratchpad + x_filled + w_filled + y_filled - y.nbytes, after)
