"""GroupNorm in two passes, so that the axes it normalises over can be sliced.

First pass: `group_stats` of each slice, merged by `merge_stats_`. Second pass: `group_apply`, free on every axis.
Statistics are (count, mean, M2), M2 being the sum of squared deviations from the mean; those of two sets of entries A
and B join exactly:

    count = count_A + count_B,  d = mean_B - mean_A
    mean  = mean_A + d * count_B / count
    M2    = M2_A + M2_B + d**2 * count_A * count_B / count

T. Chan, G. Golub, R. LeVeque: Updating formulae and a pairwise algorithm for computing sample variances (1979), and
Algorithms for computing the sample variance: analysis and recommendations, The American Statistician 37 (1983).

No operator here makes a temporary of the size of its input. Native ones do, or are slow, or lose digits. Measured on
torch 2.13, one CPU thread, [1, 320, 14, 36, 64] permuted from [14, 320, 36, 64]:

- `aten.native_group_norm` copies a non-contiguous input;
- `aten.var_mean` does not, but takes 65 ms in float32 (here: 10 ms), and rounds statistics to the half dtype of its
  input;
- `aten.batch_norm_update_stats` takes 14 ms in float32; it is fast for contiguous half input, if given float32 running
  statistics, but makes a float32 copy of any other; and it adds naively in float32: the variance of 2**24 entries is
  wrong by 1e-3, of 2**15 by 1e-6, so it gets rows of at most 2**15 entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch._prims_common import suggest_memory_format

from sicompiler.device import device_kind, has_float64
from sicompiler.errors import BadInput
from sicompiler.ops.library import operator

PIECE = 2**20
"""Entries on which the CPU works at a time, to stay in cache: the only temporary of `group_stats`, 4 MiB in float32."""

FUSED_ROW = 2**15
"""Longest row given to `aten.batch_norm_update_stats` on the CPU."""

_HALF = (torch.float16, torch.bfloat16)


def _working_dtype(x: torch.Tensor) -> torch.dtype:
    """Dtype in which entries are added and scaled: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _stats_dtype(x: torch.Tensor) -> torch.dtype:
    """Dtype of statistics: float64, so that a thousand merges lose nothing (a few numbers per group cost nothing)."""
    return torch.float64 if has_float64(x.device.type) else torch.float32


def _check(x: torch.Tensor, groups: int) -> None:
    if x.dim() < 2 or x.shape[1] % groups:
        raise BadInput(
            f"GroupNorm needs [n, c, ...] with c a multiple of the {groups} groups, got shape {tuple(x.shape)}"
        )


def _group_stats_fake(x: torch.Tensor, groups: int) -> torch.Tensor:
    _check(x, groups)
    return x.new_empty((x.shape[0], groups, 3), dtype=_stats_dtype(x))


@operator("group_stats(Tensor x, SymInt groups) -> Tensor", _group_stats_fake)
def group_stats(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Statistics of each group of channels, over the channels of the group and all dims behind.

    Args:
        x: [n, c, ...], any strides, float64, float32, bfloat16 or float16.
        groups: number of groups; divides c.

    Returns:
        [n, groups, 3]: count, mean, M2, in float64 whatever the dtype of `x` (float32 on mps, which has no float64): a
        few numbers per group cost nothing, and a thousand merges lose nothing. Entries are added in float32 (float64
        for float64 `x`).

    Raises:
        BadInput: `x` has less than two dims, or `groups` does not divide c.
    """
    _check(x, groups)
    n, channels = x.shape[0], x.shape[1]
    rest = 1
    for size in x.shape[2:]:
        rest *= size
    dtype = _stats_dtype(x)
    total = rest * (channels // groups)
    if x.numel() == 0:
        return x.new_zeros((n, groups, 3), dtype=dtype)
    if x.device.type == "cpu" and channels_innermost(x.shape, x.stride()):
        return torch.stack([_moments_by_rows(sample, groups) for sample in x.unbind(0)])
    if x.numel() <= PIECE:
        copy = torch.empty(x.shape, dtype=_working_dtype(x), device=x.device).copy_(x).view(n, groups, total)
        means = copy.mean(2, keepdim=True)
        squares = copy.sub_(means).square_().sum(2)
        means = means.squeeze(2)
        return torch.stack((torch.full_like(means, total, dtype=dtype), means.to(dtype), squares.to(dtype)), 2)
    found = _fused_moments(x, rest)
    if found is None:
        found = _moments_in_pieces(x, rest)
    return _joined(found, (n, groups), total)


def _joined(found: tuple[torch.Tensor, torch.Tensor, torch.Tensor], shape: tuple[int, ...], total: int) -> torch.Tensor:
    """Statistics [*shape, 3] of groups: counts [parts], means and M2 [channels, parts] of all their channels as one."""
    count, mean, m2 = found[0], found[1].view(*shape, -1), found[2].view(*shape, -1)
    count = count.expand(mean.shape[-1] // count.shape[0], -1).reshape(-1)
    joint = (mean * count).sum(-1, keepdim=True) / total
    m2 = (m2 + (mean - joint).square_() * count).sum(-1)
    joint = joint.squeeze(-1)
    return torch.stack((torch.full_like(joint, total), joint, m2), -1)


def channels_innermost(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether channels lie beside each other, as in channels-last tensors and slices of them.

    Strides of dims of one entry say nothing; slices and views give them what they like.
    """
    apart = any(size > 1 and step != 1 for size, step in zip(shape[2:], stride[2:], strict=True))
    return shape[1] > 1 and stride[1] == 1 and apart


def _moments_by_rows(sample: torch.Tensor, groups: int) -> torch.Tensor:
    """Statistics [groups, 3] of [c, ...] with channels innermost: channels stay beside each other in the pieces."""
    rows, channels = sample.movedim(0, -1), sample.shape[0]
    pieces = list(_pieces(rows.shape[:-1], max(1, PIECE // channels)))
    count = sample.new_empty(len(pieces), dtype=_stats_dtype(sample))
    mean = sample.new_empty((channels, len(pieces)), dtype=_stats_dtype(sample))
    m2 = torch.empty_like(mean)
    scratch = sample.new_empty(min(sample.numel(), max(PIECE, channels)), dtype=_working_dtype(sample))
    for column, piece in enumerate(pieces):
        source = rows[piece]
        copy = scratch[: source.numel()].view(source.shape).copy_(source).view(-1, channels)
        center = copy.mean(0, keepdim=True)
        mean[:, column] = center[0]
        m2[:, column] = copy.sub_(center).square_().sum(0)
        count[column] = copy.shape[0]
    return _joined((count, mean, m2), (groups,), sample.numel() // groups)


def _moments_in_pieces(x: torch.Tensor, rest: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Count [parts], mean and M2 [n * c, parts] of each channel of `x`, by copies of one piece after the other."""
    n, channels = x.shape[0], x.shape[1]
    pieces = list(_pieces(x.shape[2:], PIECE))
    few = min(channels, max(1, PIECE // rest))
    scratch = x.new_empty(min(few * rest, PIECE), dtype=_working_dtype(x))
    count = x.new_empty(len(pieces), dtype=_stats_dtype(x))
    mean = x.new_empty((n, channels, len(pieces)), dtype=_stats_dtype(x))
    m2 = torch.empty_like(mean)
    for column, piece in enumerate(pieces):
        for sample in range(n):
            for low in range(0, channels, few):
                source = x[sample, low : low + few][(slice(None), *piece)]
                copy = scratch[: source.numel()]
                copy.view(source.shape).copy_(source)
                copy = copy.view(source.shape[0], -1)
                center = copy.mean(1, keepdim=True)
                mean[sample, low : low + few, column : column + 1] = center
                m2[sample, low : low + few, column] = copy.sub_(center).square_().sum(1)
                count[column] = copy.shape[1]
    return count, mean.view(n * channels, -1), m2.view(n * channels, -1)


def _fused_moments(x: torch.Tensor, rest: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """As `_moments_in_pieces`, by the kernel of BatchNorm and without a copy; None where that is not good at it."""
    n, channels = x.shape[0], x.shape[1]
    parts, scratch = 1, None
    if x.device.type == "cpu" and x.dtype in _HALF and x.is_contiguous():
        while rest % parts or rest // parts > FUSED_ROW:
            parts += 1
        if rest // parts < FUSED_ROW // 64 and parts > 1:
            return None
        samples = [x.view(1, n * channels * parts, rest // parts)]
        scratch = torch.zeros(n * channels * parts)  # without running statistics in float32 the results are rounded
    elif device_kind(x.device).fuses_batch_norm:
        samples = [_one_sample(x)] if _mergeable(x) else [sample.unsqueeze(0) for sample in x.unbind(0)]
    else:
        return None
    found = [torch.ops.aten.batch_norm_update_stats.default(sample, scratch, scratch, 0.0) for sample in samples]
    mean, var = (torch.cat(each).to(_stats_dtype(x)).view(n * channels, parts) for each in zip(*found, strict=True))
    return torch.full((parts,), rest // parts, dtype=mean.dtype, device=x.device), mean, var.mul_(rest // parts)


def _pieces(shape: Sequence[int], limit: int) -> Iterator[tuple[slice, ...]]:
    """Cut a box of `shape` into boxes of at most `limit` entries each (at least one)."""
    volume = 1
    for size in shape:
        volume *= size
    if volume <= limit or not shape:
        yield tuple(slice(None) for _ in shape)
        return
    step = max(1, limit // (volume // shape[0]))
    for low in range(0, shape[0], step):
        first = slice(low, low + step)
        if step > 1 or volume // shape[0] <= limit:
            yield (first, *(slice(None) for _ in shape[1:]))
        else:
            for tail in _pieces(shape[1:], limit):
                yield (first, *tail)


def _mergeable(x: torch.Tensor) -> bool:
    """Whether [n, c, ...] can be viewed as [1, n * c, ...]."""
    return x.shape[0] == 1 or x.stride(0) == x.shape[1] * x.stride(1)


def _one_sample(x: torch.Tensor) -> torch.Tensor:
    return x.view(1, x.shape[0] * x.shape[1], *x.shape[2:])


def _merge_stats_fake(acc: torch.Tensor, part: torch.Tensor) -> None:
    return None


@operator("merge_stats_(Tensor(a!) acc, Tensor part) -> ()", _merge_stats_fake)
def merge_stats_(acc: torch.Tensor, part: torch.Tensor) -> None:
    """Join the statistics of one more slice into `acc`, in place, in the dtype of `acc`.

    Args:
        acc: [n, groups, 3]: count, mean, M2 of the slices before; zeros for none.
        part: [n, groups, 3].

    Raises:
        BadInput: the shapes differ.
    """
    if acc.shape != part.shape or acc.shape[-1] != 3:
        raise BadInput(f"merge_stats_ needs two tensors [n, groups, 3], got {tuple(acc.shape)} and {tuple(part.shape)}")
    part = part.to(acc.dtype)
    count_a, mean_a, m2_a = acc.select(-1, 0), acc.select(-1, 1), acc.select(-1, 2)
    count_b, mean_b, m2_b = part.select(-1, 0), part.select(-1, 1), part.select(-1, 2)
    delta = mean_b - mean_a
    share = count_b / (count_a + count_b).clamp_min_(1)
    m2_a.add_(m2_b).addcmul_(delta.square().mul_(share), count_a)
    mean_a.addcmul_(delta, share)
    count_a.add_(count_b)


def _group_apply_fake(
    x: torch.Tensor,
    stats: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    row_major: bool = False,
) -> torch.Tensor:
    _check(x, stats.shape[1])
    return torch.empty_like(x, memory_format=_result_format(x, row_major))


def _result_format(x: torch.Tensor, row_major: bool) -> torch.memory_format:
    """The format of what aten.native_group_norm gives: on the CPU channels-last for channels-last `x`, else contiguous.

    The strides of dims of one entry say nothing: one sample of a channels-last batch stays channels-last, whatever is
    told of its first dim (which is where the native kernel gives up).
    """
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if row_major or x.device.type != "cpu" or x.dim() not in formats:
        return torch.contiguous_format
    if x.is_contiguous():
        return suggest_memory_format(x)  # one channel, or one position: it may lie in both formats
    least = 1
    for dim in (1, *reversed(range(2, x.dim())), 0):
        if x.shape[dim] > 1:
            if x.stride(dim) < least:
                return torch.contiguous_format
            least = x.stride(dim) * x.shape[dim]
    return formats[x.dim()]


@operator(
    "group_apply(Tensor x, Tensor stats, Tensor? weight, Tensor? bias, float eps, bool row_major=False) -> Tensor",
    _group_apply_fake,
)
def group_apply(
    x: torch.Tensor,
    stats: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    row_major: bool = False,
) -> torch.Tensor:
    """Normalise each group of channels with given statistics, then scale and shift each channel.

    Computes `(x - mean) / sqrt(M2 / count + eps) * weight + bias` as one multiply-add per entry, in float32 (float64
    for float64 `x`), as aten.native_group_norm does. Slices of any dim may be given; slices of channels along with
    those of `stats`, `weight` and `bias` that belong to the same whole groups.

    Args:
        x: [n, c, ...], any strides.
        stats: [n, groups, 3] of `group_stats`.
        weight: [c] or None.
        bias: [c] or None.
        eps: added to the variance.
        row_major: whether the result is contiguous in any case. One sample of a tensor that is in no memory format may
            pass for channels-last, where the result of the whole tensor is contiguous.

    Returns:
        A tensor of the shape and dtype of `x`, in the memory format of that of aten.native_group_norm: on the CPU
        channels-last where `x` is (or is a slice of such a tensor), else contiguous.

    Raises:
        BadInput: `x` has less than two dims, or the number of groups does not divide c.
    """
    _check(x, stats.shape[1])
    n, channels, groups = x.shape[0], x.shape[1], stats.shape[1]
    dtype = _working_dtype(x)
    per_group = (n, groups, channels // groups)
    scale = torch.rsqrt(stats[:, :, 2:] / stats[:, :, :1] + eps)
    if weight is not None:
        scale = scale * weight.view(groups, -1)
    shift = (stats[:, :, 1:2] * scale).neg_()
    if bias is not None:
        shift = shift + bias.view(groups, -1)
    scale = scale.expand(per_group).reshape(n, channels).to(dtype).contiguous()
    shift = shift.expand(per_group).reshape(n, channels).to(dtype).contiguous()
    result = torch.empty_like(x, memory_format=_result_format(x, row_major))
    if result.numel() == 0:
        return result
    if x.device.type == "cpu" and (x.dtype in _HALF or x.is_contiguous()):
        _scale_shift_fused(x, scale, shift, result)
    else:
        per_channel = (n, channels, *([1] * (x.dim() - 2)))
        torch.addcmul(shift.view(per_channel), x, scale.view(per_channel), out=result)
    return result


def _scale_shift_fused(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, result: torch.Tensor) -> None:
    """`result = x * scale + shift` on the CPU by BatchNorm in eval mode.

    Its kernel takes float32 parameters for half `x`, of which addcmul would make a float32 copy, and is a third faster
    than addcmul for contiguous tensors. It wants `x` and the result in one memory format: `x` of other strides is
    copied, piece by piece, to where the result goes, and normalised there in place.
    """
    if x.is_contiguous():
        _batch_norm(_one_sample(x), scale.view(-1), shift.view(-1), _one_sample(result))
        return
    dense = result.is_contiguous()
    step = max(1, PIECE // x[0, 0].numel()) if dense else x.shape[1]
    for sample in range(x.shape[0]):
        source, target = x[sample : sample + 1], result[sample : sample + 1]
        if source.stride() == target.stride():
            _batch_norm(source, scale[sample], shift[sample], target)
            continue
        for low in range(0, x.shape[1], step):
            piece = target[:, low : low + step]
            piece.copy_(source[:, low : low + step])
            _batch_norm(piece, scale[sample, low : low + step], shift[sample, low : low + step], piece)


def _batch_norm(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, out: torch.Tensor) -> None:
    zero, one = torch.zeros_like(scale), torch.ones_like(scale)
    unused = [torch.empty_like(scale[:0]) for _ in range(2)]
    torch.ops.aten.native_batch_norm.out(
        x, scale, shift, zero, one, False, 0.0, 0.0, out=out, save_mean=unused[0], save_invstd=unused[1]
    )
