"""What oneDNN takes on this CPU, and the scratchpads its kernels ask for, in half dtypes.

Measured on torch 2.13 with one and two threads, on a CPU with AVX512, AMX (bfloat16) and 2 MiB of L2 a core, with
oneDNN held to AVX512 without AMX, and on a CPU with AVX512 that doesn't multiply bfloat16. On one that does without
AMX (1 MiB of L2 a core) convolutions were measured too; products are a bound there. oneDNN chooses its blocks
by estimates of cache traffic; what is here are bounds that follow the rules found in src/cpu/x64 of oneDNN 3.12, close
for the shapes of UNets. Each thread has its own buffers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch

from sicompiler.facts.storages import TensorFact

HALF = (torch.float16, torch.bfloat16)
SMALL_PRODUCT = 16**3  # multiplications up to which ATen doesn't ask oneDNN


@cache
def has_amx(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies a dtype in AMX tiles on this machine (float16: not measured, no such CPU)."""
    if not takes(dtype):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.cpu._is_amx_tile_supported())
    return dtype == torch.float16 and bool(torch.cpu._is_amx_fp16_supported())


@cache
def multiplies_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16; AVX512 without those instructions sums all results in float32 buffers."""
    return bool(torch.cpu._is_avx512_bf16_supported()) or bool(torch.cpu._is_amx_tile_supported())


@cache
def uses_small_products(dtype: torch.dtype) -> bool:
    """Whether convolutions are sums of small AVX512 products: in bfloat16, if the CPU multiplies it without AMX."""
    return dtype == torch.bfloat16 and takes(dtype) and multiplies_bfloat16() and not has_amx(dtype)


@cache
def takes(dtype: torch.dtype) -> bool:
    """Whether convolutions of a dtype go to oneDNN on this machine, and products of half dtypes too."""
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype == torch.float32 and torch.backends.mkldnn.is_available()


@cache
def _cached_bytes() -> int:
    """The part of the L2 cache of a core that oneDNN plans with; 2 MiB where torch can't say."""
    return int(torch.cpu.get_capabilities().get("l2_cache_size", 2**21)) * 3 // 4


def round_up(value: int, multiple: int) -> int:
    """The next multiple."""
    return -(-value // multiple) * multiple


# Products


def product_scratchpad(rows: int, depth: int, columns: int, dtype: torch.dtype, *, batch: int, transposed: bool) -> int:
    """Bytes for [batch, rows, depth] @ [depth, columns], of half dtype.

    Args:
        rows: of one matrix.
        depth: the size summed over.
        columns: of the result.
        dtype: of all three.
        batch: number of matrices.
        transposed: whether the rows of the first factor have stride 1: it is copied then.
    """
    if batch * rows * depth * columns <= SMALL_PRODUCT:
        return 0
    threads = torch.get_num_threads()
    if dtype == torch.bfloat16 and not multiplies_bfloat16():
        return (1 if batch == 1 else threads) * (4 * rows * columns + 1024)  # a batch: one matrix per thread
    if not has_amx(dtype):
        return threads * _avx512_product(rows, depth, columns, dtype, transposed)
    if transposed:
        return threads * (_transposed_amx_product(rows, depth, columns) + 8 * depth + 8192)
    if batch > 1:  # the second factor is not transposed then, and always copied
        return threads * (_by_rows(rows, depth, columns) + 8192)
    # How threads share the work depends on estimates: the costliest of the ways.
    shares = [(rows, columns), (math.ceil(rows / threads), columns), (rows, math.ceil(columns / threads))]
    most = max(_amx_product(m, depth, n, columns) for m, n in shares)
    if threads > 1 and rows >= 32 and depth >= 1024 and 8 * rows * columns < _cached_bytes():
        parts = math.ceil(depth / threads)
        most = max(most, 4 * rows * columns + min(2 * round_up(columns, 32) * parts, _cached_bytes()))
    return threads * (most + 8192)


def _avx512_product(rows: int, depth: int, columns: int, dtype: torch.dtype, transposed: bool) -> int:
    """64 columns of the second factor; the first if it is transposed or float16 (then as float32); sums."""
    widened = dtype == torch.float16
    size = 4 if widened else 2
    copied = widened or transposed
    limit = 512 if transposed or depth <= 1024 else 1024
    whole = depth <= limit
    chunk = min(depth, limit)
    rows = min(rows, 256)
    first = rows * (chunk + (0 if whole else 64 // size)) * size if copied else 0
    summed = min(round_up(columns, 64), 64 if whole or not copied else 1024)
    return first + 64 * round_up(chunk, 32) * size + rows * summed * 4 + 8 * 2**10


def _transposed_amx_product(rows: int, depth: int, columns: int) -> int:
    """Up to 256 rows of the first factor and 64 columns of the second, in chunks of the depth; sums if need be."""
    rows = rows if rows <= 64 else min(round_up(rows, 64), 256)
    copies = min((rows + 64) * (round_up(depth, 32) + 32) * 2, _cached_bytes() * 3 // 5)
    return copies + (rows * 64 * 4 if depth % 32 or depth > 1280 else 0)


def _amx_product(rows: int, depth: int, columns: int, stride: int) -> int:
    """Columns in blocks against all rows, or rows in blocks against all columns where there are fewer of them."""
    if 32 <= rows < columns and _keeps_ways(rows, stride):
        block, chunk, _ = _best_block(rows, depth)
        if chunk >= depth:
            return 64 * round_up(depth, 32) * 2 + min(block, rows) * 32 * 4
    if rows < 32:
        return min(64 * round_up(depth, 32) * 2, _cached_bytes()) + rows * 64 * 4
    return _by_rows(rows, depth, columns)


def _by_rows(rows: int, depth: int, columns: int) -> int:
    """A block of columns that fits the cache; where the depth doesn't fit too: sums of all rows in it, in float32."""
    block, chunk, _ = _best_block(columns, depth)
    second = min(block, round_up(columns, 32)) * min(round_up(chunk, 32), round_up(depth, 32)) * 2
    summed = rows if chunk < depth else 32
    return second + (round_up(summed, 32) * min(block, round_up(columns, 32)) * 4 if depth > 480 else 4096)


def _keeps_ways(rows: int, columns: int) -> bool:
    """Whether the results' lines don't crowd in few sets of the L2 cache (2048 sets of 16 ways and 64 bytes)."""
    step = columns * 2 % 4096 or 4096
    return 2**17 % step != 0 or step * rows < 12 * 2**17


@cache
def _best_block(size: int, depth: int) -> tuple[int, int, float]:
    """The block of rows or columns, and of the depth, with the most multiplications a byte among those that fit.

    Returns:
        Size of the block, of the chunk of depth, and the score.
    """
    tiles, deep = math.ceil(size / 32), math.ceil(depth / 32)
    best = (32, min(depth, 32), 0.0)
    for block in sorted({math.ceil(tiles / parts) * 32 for parts in range(1, tiles + 1)}, reverse=True):
        for chunk in sorted({math.ceil(deep / parts) * 32 for parts in range(1, deep + 1)}, reverse=True):
            held = min(chunk, depth)
            whole = held == depth
            used = 128 * held + 2 * block * held + (8192 if whole else 256 * block) + 128 * block
            moved = 64 * held + 2 * block * held + (0 if whole else 128 * block)
            score = 32 * held * block / moved
            if used <= _cached_bytes() and score > best[2]:
                best = (block, held, score)
    return best


# Convolutions


@cache
def works_channels_last(dtype: torch.dtype) -> bool:
    """Whether oneDNN's convolutions of a half dtype work on channels-last copies (else on blocks of 16 channels)."""
    return takes(dtype) and (dtype == torch.float16 or has_amx(dtype))


def filled_weight(weight: TensorFact) -> int:
    """Bytes of a weight in the blocks of oneDNN's kernels for half dtypes; with AMX the inputs fill blocks too."""
    outputs, inputs = weight.shape[:2]
    if outputs > 64:
        filled = max(round_up(outputs, 64), round_up(outputs, 48))
    else:
        filled = next(block for block in (16, 32, 64) if outputs <= block)
    if has_amx(weight.dtype):
        inputs = filled_inputs(inputs)
    return filled * inputs * math.prod(weight.shape[2:]) * weight.dtype.itemsize


def filled_inputs(inputs: int) -> int:
    """Input channels as AMX tiles want them: even, and from 32 on in 32s."""
    return round_up(inputs, 2) if inputs <= 32 else round_up(inputs, 32)


def convolution_scratchpad(x: TensorFact, weight: TensorFact, y: TensorFact) -> int:
    """Bytes for a convolution [n, c, ...] of half dtype: with AMX mostly padded rows of the input, of some result rows.

    A few KiB without AMX.
    """
    threads = torch.get_num_threads()
    if not has_amx(x.dtype):
        return threads * 2**14
    inputs, kernel = weight.shape[1], weight.shape[2:]
    channels = x.shape[1] // inputs * filled_inputs(inputs)
    steps = [max(1, round(size / out)) for size, out in zip(x.shape[2:], y.shape[2:], strict=True)]
    if math.prod(kernel) == 1:
        copied = inputs % 2 or max(steps) > 1
        return threads * ((math.prod(y.shape[2:]) * channels * 2 if copied else 0) + 2**15)
    padded = _padded_rows(x.shape, kernel, steps, y.shape, channels)
    return threads * (padded + _sums(weight.shape[0], math.prod(y.shape[2:])))


def _sums(outputs: int, positions: int) -> int:
    """Float32 sums of some positions, tiles and lists of blocks."""
    return 5 * 2**15 if outputs > 64 else min(positions, 512) * round_up(outputs, 16) * 4 + 5 * 2**14


def _padded_rows(
    sizes: Sequence[int], kernel: Sequence[int], steps: Sequence[int], outs: Sequence[int], channels: int
) -> int:
    """Rows of the padded input for one block of the result; rounded up by that block, so up to twice as many.

    A stride in the last dim repeats them for each column of the kernel. Blocks have up to 1024 positions (fewer with
    a stride), and their input takes a part of the L2 cache; above 1280 channels it may be more. Kernels that reach over
    frames take a block of one frame, or all frames if those are small or (in 3x3x3) have many channels.
    """
    stretch = sizes[-1] + 2 * (kernel[-1] // 2)
    width = stretch * channels * 2
    height, high, step = (outs[-2], kernel[-2], steps[-2]) if len(kernel) > 1 else (1, 1, 1)
    frames, all_frames = 1, False
    if len(kernel) > 2 and math.prod(kernel) > 1:
        around = 2 * (kernel[0] // 2)
        all_frames = max(steps) > 1 or math.prod(outs[-2:]) <= (128 if high == 1 else 460)
        all_frames = all_frames or channels > (1280 if high == 1 else 512)
        frames = sizes[-3] + 2 * around if all_frames else kernel[0] + around + (4 if high == 1 else 0)
    many = channels > 1280
    strided = 288 if outs[-1] % 4 == 0 else 768
    positions = 1792 if many or all_frames else 1024 if max(steps) == 1 else strided
    block = min(height, max(1, positions // outs[-1]))
    if not many and not all_frames:
        block = min(block, max(1, _cached_bytes() * 8 // 15 // (width * step)))
    rows = (block - 1) * step + high + 2 * (high // 2)
    repeated = kernel[-1] if steps[-1] > 1 else 1
    if all_frames:
        rows = 2 * (rows + high)
    elif many and repeated == 1:
        rows = 2 * rows + high
    elif repeated == 1:
        rows = math.ceil(round_up(rows * stretch, max(block * outs[-1], 1)) / stretch) + high
    return frames * rows * width * repeated


# Convolutions by small products in AVX512 (`uses_small_products`), followed from init_scratchpad in
# src/cpu/x64/jit_brgemm_conv_utils.cpp and jit_brgemm_conv_bwd_utils.cpp


def takes_small_products(inputs: int, outputs: int, groups: int, taps: int) -> bool:
    """Whether a channels-last convolution is a sum of small products: none with a kernel of 1, nor of some groups."""
    return taps > 1 and not (groups > 1 and _has_direct_kernel(inputs, outputs))


def _has_direct_kernel(inputs: int, outputs: int) -> bool:
    """Channels of a group for which there is another kernel: one, or few in fours."""
    return inputs == outputs == 1 or (inputs <= 16 and inputs % 4 == 0 and outputs % 4 == 0)


_PAGE = 4096  # to which buffers are rounded up, in entries, and aligned


def small_products_weight(outputs: int, inputs: int, groups: int, taps: int) -> int:
    """Bytes of a weight whose results are filled up to blocks of 16 or 32, its inputs to pairs, in each group."""
    return 2 * groups * round_up(outputs, 32 if outputs > 16 else 16) * round_up(inputs, 2) * taps


def small_products_scratchpad(
    x: TensorFact, weight: TensorFact, y: TensorFact, groups: int, steps: Sequence[int], dilation: Sequence[int]
) -> int:
    """Bytes for a convolution of channels-last [n, c, h, w] or [n, c, t, h, w]: pointers and float32 sums of one row.

    One input per group, and columns of one entry, are copied first. A bound: how oneDNN divides a row is not known.
    Strides and dilations are given for every dim of space.
    """
    kernel, outputs = weight.shape[2:], weight.shape[0] // groups
    positions = y.shape[-1] if y.shape[-1] > 1 else y.shape[-2]
    nbytes = _pointers(math.prod(kernel)) + 4 * positions * min(round_up(outputs, 16), 64)
    shared = 2 * _PAGE
    if weight.shape[1] == 1 or kernel[-1] == y.shape[-1] == 1:
        nbytes += _copied_rows(x, weight, y, groups, steps, dilation)
        shared += 3 * _PAGE
        missing = round_up(weight.shape[1], 32) - weight.shape[1] if weight.shape[1] > 32 else 0  # inputs in 32s
        shared += small_products_weight(outputs, missing, groups, math.prod(kernel))
    if weight.shape[1] == 1:  # its weight once more, the whole kernel or its rows filled up
        by_row = math.prod(kernel[:-1]) * round_up(kernel[-1], 2 if kernel[-1] <= 32 else 32)
        depth = max(by_row, round_up(math.prod(kernel), 32))
        shared += small_products_weight(outputs, depth, groups, 1) + _PAGE
    return torch.get_num_threads() * nbytes + shared


def _copied_rows(
    x: TensorFact, weight: TensorFact, y: TensorFact, groups: int, steps: Sequence[int], dilation: Sequence[int]
) -> int:
    """Bytes of the padded input of one sample, or, of one input channel, of what one row of the result reads."""
    kernel, step = weight.shape[2:], steps[-1]
    reached = [
        (out - 1) * gap + (size - 1) * apart + 1
        for out, gap, size, apart in zip(y.shape[2:], steps, kernel, dilation, strict=True)
    ]
    padding = [max(0, size - old) + gap for size, old, gap in zip(reached, x.shape[2:], steps, strict=True)]
    outer = [size + more for size, more in zip(reached, padding, strict=True)][:-1]
    high, blocks = kernel[-2], 0
    step *= reached[-1] if y.shape[-1] == 1 else 1
    if kernel[-1] <= steps[-1]:  # several rows at a time, filled up
        outer[-1], blocks = 2 * outer[-1] + high * dilation[-2], high + 2
    copied = 2 * math.prod(outer) * reached[-1] * groups * _filled_depth(weight.shape[1]) * step
    if weight.shape[1] == 1:  # once for each row of the kernel
        rows = high * (high + padding[-2] + blocks) * reached[-1] * groups + y.shape[-2] * steps[-2] + 1
        copied = max(copied, rows * high * step)
    return 2 * round_up(copied, _PAGE) + round_up(2 * math.prod(y.shape[2:-1]) * groups, _PAGE)


def strided_scratchpad(
    x: TensorFact, weight: TensorFact, y: TensorFact, groups: int, steps: Sequence[int], *, bias: bool
) -> int:
    """Bytes for a transposed convolution with a stride: a padded sample, a row of the result and its float32 sums.

    With a bias the whole result, and that row, is in float32 first.
    """
    kernel, outputs, size = weight.shape[2:], weight.shape[1], 4 if bias else 2
    padded = [width + 2 * ((k - 1) // step) + 1 for width, k, step in zip(x.shape[2:], kernel, steps, strict=True)]
    nbytes = _pointers(math.prod(kernel))
    nbytes += 2 * round_up(math.prod(padded) * groups * _filled_depth(x.shape[1] // groups), _PAGE)
    nbytes += round_up(2 * math.prod(y.shape[2:-1]) * groups, _PAGE)  # which rows are there
    if y.shape[-1] % steps[-1]:
        nbytes += size * round_up(y.shape[-1] * steps[-1] * groups * outputs, _PAGE)
    nbytes += 4 * math.ceil(y.shape[-1] / steps[-1]) * min(round_up(outputs, 16), 64)
    return torch.get_num_threads() * nbytes + 6 * _PAGE + (4 * y.numel if bias else 0)


def _pointers(taps: int) -> int:
    """Bytes of the list of products that are summed for one block of a result: 40 each."""
    return round_up(40 * taps, _PAGE) + 40


def _filled_depth(inputs: int) -> int:
    """Inputs as they are copied: in pairs, or blocks of a multiple of 32, with up to half of the last ones empty."""
    return round_up(inputs, 2) if inputs <= 32 else round_up(inputs, 32) * (2 if inputs > 64 else 1)


def unfolded_scratchpad(x: TensorFact, weight: TensorFact, y: TensorFact, groups: int, *, bias: bool) -> int:
    """Bytes for a transposed convolution with a dilation or groups: float32 columns and sums of a sample per thread."""
    columns = 4 * math.prod(weight.shape[1:]) * math.prod(x.shape[2:])
    sums = 4 * y.numel // (y.shape[0] * groups)
    return min(torch.get_num_threads(), x.shape[0] * groups) * (columns + sums) + (4 * y.numel if bias else 0) + 2**10
