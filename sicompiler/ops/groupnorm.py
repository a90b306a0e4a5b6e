"""GroupNorm in two passes, so that the axes it normalises over can be sliced.

First pass: `group_stats` of each slice, merged by `merge_stats_`. Second pass: `group_apply`, free on every axis. Statistics are
(count, mean, M2), M2 being the sum of squared deviations from the mean; two sets of entries A and B join exactly by

    count = count_A + count_B,  d = mean_B - mean_A
    mean  = mean_A + d * count_B / count
    M2    = M2_A + M2_B + d**2 * count_A * count_B / count

T. Chan, G. Golub, R. LeVeque: Updating formulae and a pairwise algorithm for computing sample variances (1979), and Algorithms for
computing the sample variance: analysis and recommendations, The American Statistician 37 (1983).

No operator here makes a temporary of the size of its input. Native ones do, or are slow, or lose digits, measured on torch 2.13 (CPU,
[1, 320, 14, 36, 64] permuted from [14, 320, 36, 64], one thread): `aten.native_group_norm` copies a non-contiguous input; `aten.var_mean`
does not, but takes 65 ms in float32 where ours takes 10 ms, and rounds statistics to bfloat16; `aten.batch_norm_update_stats` takes 14 ms in
float32, is good for contiguous half input (3 ms), and makes a float32 copy of a permuted one.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sicompiler.errors import BadInput
from sicompiler.ops.library import operator

PIECE = 2**18
"""Entries on which both passes work at a time on the CPU, to stay in cache: the only temporary of `group_stats`, 1 MiB in float32."""

_HALF = (torch.float16, torch.bfloat16)


def stats_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the statistics of a tensor of `dtype`: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check(x: torch.Tensor, groups: int) -> None:
    if x.dim() < 2 or x.shape[1] % groups:
        raise BadInput(f"GroupNorm needs [n, c, ...] with c a multiple of the {groups} groups, got shape {tuple(x.shape)}")


def _group_stats_fake(x: torch.Tensor, groups: int) -> torch.Tensor:
    _check(x, groups)
    return x.new_empty((x.shape[0], groups, 3), dtype=stats_dtype(x.dtype))


@operator("group_stats(Tensor x, SymInt groups) -> Tensor", _group_stats_fake)
def group_stats(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Statistics of each group of channels, over the channels of the group and all dims behind.

    The channels are joined in float64 (a few thousand numbers), then rounded once.

    Args:
        x: [n, c, ...], any strides, float64, float32, bfloat16 or float16.
        groups: number of groups; divides c.

    Returns:
        [n, groups, 3]: count, mean, M2; float64 for float64 `x`, else float32. To merge many slices, give `merge_stats_` a float64
        accumulator.

    Raises:
        BadInput: `x` has less than two dims, or `groups` does not divide c.
    """
    _check(x, groups)
    n, channels = x.shape[0], x.shape[1]
    rest = 1
    for size in x.shape[2:]:
        rest *= size
    if x.numel() == 0:
        return x.new_zeros((n, groups, 3), dtype=stats_dtype(x.dtype))
    # [n * c, pieces] with the counts of the pieces in [pieces]: means and M2 are joined over channels and pieces together
    count, mean, m2 = _channel_stats(x, rest)
    count = count.expand(channels // groups, -1).reshape(-1)
    mean, m2 = mean.view(n, groups, -1), m2.view(n, groups, -1)
    total = rest * (channels // groups)
    joint = (mean * count).sum(2, keepdim=True) / total
    m2 = (m2 + (mean - joint).square_() * count).sum(2)
    joint = joint.squeeze(2)
    return torch.stack((torch.full_like(joint, total), joint, m2), 2).to(stats_dtype(x.dtype))


def _channel_stats(x: torch.Tensor, rest: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Count [pieces], mean and M2 [n * c, pieces] of each channel, in float64."""
    if x.device.type == "cuda" or (x.device.type == "cpu" and x.dtype in _HALF and x.is_contiguous()):
        return _channel_stats_direct(x, rest)
    n, channels = x.shape[0], x.shape[1]
    pieces = list(_pieces(x.shape[2:], PIECE))
    few = max(1, PIECE // rest)
    scratch = torch.empty(min(few * rest, max(PIECE, few)), dtype=stats_dtype(x.dtype), device=x.device)
    mean = torch.empty((n, channels, len(pieces)), dtype=torch.float64, device=x.device)
    m2 = torch.empty_like(mean)
    count = torch.empty(len(pieces), dtype=torch.float64, device=x.device)
    for column, piece in enumerate(pieces):
        for sample in range(n):
            for low in range(0, channels, few):
                source = x[(slice(sample, sample + 1), slice(low, low + few), *piece)]
                copy = scratch[: source.numel()]
                copy.view(source.shape).copy_(source)
                copy = copy.view(source.shape[1], -1)
                part = copy.mean(1, keepdim=True)
                mean[sample, low : low + few, column : column + 1] = part
                m2[sample, low : low + few, column] = copy.sub_(part).square_().sum(1)
        count[column] = copy.shape[1]
    return count, mean.view(n * channels, -1), m2.view(n * channels, -1)


def _channel_stats_direct(x: torch.Tensor, rest: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `_channel_stats`, by torch's BatchNorm with one channel per sample and channel: no pieces."""
    scratch = None
    found = []
    for sample in [_one_sample(x)] if _mergeable(x) else [sample.unsqueeze(0) for sample in x.unbind(0)]:
        if x.device.type == "cpu":
            # running statistics in float32: without them, the CPU kernel rounds the results to the half dtype of x
            scratch = torch.zeros(sample.shape[1])
        found.append(torch.ops.aten.batch_norm_update_stats.default(sample, scratch, scratch, 0.0))
    mean, var = (torch.cat(parts).double().view(-1, 1) for parts in zip(*found, strict=True))
    return torch.full((1,), rest, dtype=torch.float64, device=x.device), mean, var.mul_(rest)


def _pieces(shape: torch.Size, limit: int) -> Iterator[tuple[slice, ...]]:
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
    """Join the statistics `part` of one more slice into `acc`, in place, in the dtype of `acc` (take float64).

    Args:
        acc: [n, groups, 3]: count, mean, M2 of the slices before; zeros for none.
        part: [n, groups, 3], of the same or a narrower dtype.

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
    x: torch.Tensor, stats: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> torch.Tensor:
    _check(x, stats.shape[1])
    return x.new_empty(x.shape)


@operator(
    "group_apply(Tensor x, Tensor stats, Tensor? weight, Tensor? bias, float eps) -> Tensor",
    _group_apply_fake,
)
def group_apply(
    x: torch.Tensor, stats: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """Normalise each group of channels with given statistics, then scale and shift each channel.

    Computes `(x - mean) / sqrt(M2 / count + eps) * weight + bias` as one multiply-add per entry in float32 (float64 for float64 `x`),
    as aten.native_group_norm does. Slices of any dim may be given, of channels together with the `stats`, `weight` and `bias` of the same
    whole groups.

    Args:
        x: [n, c, ...], any strides.
        stats: [n, groups, 3] of `group_stats`.
        weight: [c] or None.
        bias: [c] or None.
        eps: added to the variance.

    Returns:
        A tensor of the shape and dtype of `x`, always contiguous (as that of aten.native_group_norm).

    Raises:
        BadInput: `x` has less than two dims, or the number of groups does not divide c.
    """
    _check(x, stats.shape[1])
    n, channels, groups = x.shape[0], x.shape[1], stats.shape[1]
    dtype = stats_dtype(x.dtype)
    per_group = (n, groups, channels // groups)
    scale = torch.rsqrt(stats[:, :, 2:] / stats[:, :, :1] + eps)
    if weight is not None:
        scale = scale * weight.view(groups, -1)
    shift = (stats[:, :, 1:2] * scale).neg_()
    if bias is not None:
        shift = shift + bias.view(groups, -1)
    scale = scale.expand(per_group).reshape(n, channels).to(dtype)
    shift = shift.expand(per_group).reshape(n, channels).to(dtype)
    result = torch.empty_like(x, memory_format=torch.contiguous_format)
    if result.numel() == 0:
        return result
    if x.device.type == "cpu" and x.dtype in _HALF:
        _scale_shift_half(x, scale, shift, result)
    else:
        per_channel = (n, channels, *([1] * (x.dim() - 2)))
        torch.addcmul(shift.view(per_channel), x, scale.view(per_channel), out=result)
    return result


def _scale_shift_half(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, result: torch.Tensor) -> None:
    """`result = x * scale + shift` in float32 for half `x` on the CPU, where addcmul would convert all of `x` to float32 first.

    BatchNorm in eval mode takes parameters in float32, but is fast for contiguous tensors only: others are copied, piece by piece, to
    where the result goes, and normalised there in place.
    """
    if x.is_contiguous():
        _batch_norm(_one_sample(x), scale.view(-1), shift.view(-1), _one_sample(result))
        return
    step = max(1, PIECE // x[0, 0].numel())
    for sample in range(x.shape[0]):
        for low in range(0, x.shape[1], step):
            target = result[sample : sample + 1, low : low + step]
            target.copy_(x[sample : sample + 1, low : low + step])
            _batch_norm(target, scale[sample, low : low + step], shift[sample, low : low + step], target)


def _batch_norm(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, out: torch.Tensor) -> None:
    zero, one = torch.zeros_like(scale), torch.ones_like(scale)
    unused = [torch.empty_like(scale[:0]) for _ in range(2)]
    torch.ops.aten.native_batch_norm.out(
        x, scale, shift, zero, one, False, 0.0, 0.0, out=out, save_mean=unused[0], save_invstd=unused[1]
    )
