"""Windows: slices with a halo, padded at true borders only, give the whole result; in ragged slices, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch._ops import OpOverload

from sicompiler.axes.factor_map import Slicing, Window
from sicompiler.axes.padding import pads_by_itself, repadded, unpadded, why_not
from sicompiler.axes.span import Span
from sicompiler.ops import missing_before, missing_behind, pad_slice
from sicompiler.regions.halo import own_part, through
from tests.rules.draw import Draw
from tests.rules.samples import Sample, run, same, sample_of, with_tensors

pytestmark = pytest.mark.pure


aten = torch.ops.aten
Choose = Callable[[Sequence[Any]], Any]

CONVOLUTIONS = [
    *(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default),
    *(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding),
]
POOLS = [
    *(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default),
    *(aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default),
]
PADS = [
    *(aten.constant_pad_nd.default, aten.pad.default),
    *(aten.replication_pad1d.default, aten.replication_pad2d.default, aten.replication_pad3d.default),
]
EXAMPLES = max(25, hypothesis.settings().max_examples // 2)


def _count(target: OpOverload) -> int:
    return next((int(mark[0]) for mark in ("1d", "2d", "3d") if mark in str(target)), 2)


def convolution(draw: Draw, target: OpOverload) -> Sample | None:
    """Any kernel, stride, dilation and padding; kernels larger than the dim where the padding makes up for it."""
    count, same_size = _count(target), target._overloadname == "padding"
    kernels = [draw.size(1, 4) for _ in range(count)]
    strides = [1 if same_size else draw.size(1, 3) for _ in range(count)]
    dilations = [draw.size(1, 2) for _ in range(count)]
    pads: Any = draw.pick(["same", "valid"]) if same_size else [draw.size(0, 3) for _ in range(count)]
    shape = [draw.size(1, 7) for _ in range(count)]
    x, w = draw.tensor(2, 2, *shape), draw.tensor(3, 2, *kernels)
    bias = draw.tensor(3) if draw.flag() else None
    return _made(target, x, w, bias, strides, pads, dilations, 1)


def pooling(draw: Draw, target: OpOverload) -> Sample | None:
    count = _count(target)
    kernels = [draw.size(1, 4) for _ in range(count)]
    strides = [draw.size(1, 3) for _ in range(count)]
    pads = [draw.size(0, kernel // 2) for kernel in kernels]
    return _made(target, draw.tensor(2, 2, *(draw.size(1, 7) for _ in range(count))), kernels, strides, pads)


def padding(draw: Draw, target: OpOverload) -> Sample | None:
    count = _count(target)
    pads = [draw.size(0, 3) for _ in range(2 * count)]
    x = draw.tensor(2, 2, *(draw.size(1, 5) for _ in range(count)))
    if target in (aten.constant_pad_nd.default, aten.pad.default):
        return _made(target, x, pads, *(["constant"] if target is aten.pad.default else []), 0.5)
    return _made(target, x, pads)


def _made(target: OpOverload, *args: Any) -> Sample | None:
    """The call, if the operator takes it."""
    try:
        return sample_of(target, *args)
    except RuntimeError:
        return None


@pytest.mark.parametrize("target", [*CONVOLUTIONS, *POOLS, *PADS], ids=str)
@hypothesis.settings(max_examples=EXAMPLES)
@hypothesis.given(data=st.data())
def test_slices_with_a_halo_give_the_whole(target: OpOverload, data: st.DataObject) -> None:
    def choose(options: Sequence[Any]) -> Any:
        return data.draw(st.sampled_from(options))

    sampler = convolution if target in CONVOLUTIONS else pooling if target in POOLS else padding
    found = sampler(Draw(choose), target)
    if found is None or why_not(target, found.args, found.kwargs) is not None:
        return
    for factor, window in found.map.windows.items():
        dim = found.map.results[0].index((factor,))
        size = found.whole[0].shape[dim]
        inner = choose([n for n in range(1, size + 1) if size % n == 0])
        _check(found, dim, window, Slicing(dim, 1, size // inner, inner), choose(range(1, size // inner + 1)))


def _check(found: Sample, dim: int, window: Window, slicing: Slicing, length: int) -> None:
    x, whole = found.tensors[0], found.whole[0]
    core = own_part(slicing, whole.shape[dim])
    read = through(window, core, x.shape[dim])
    if read.shortest(slicing.size, np.array([float(length)]))[0] < 1:
        return  # a slice of nothing but padding: the planner doesn't take this length
    parts = []
    for start in range(0, slicing.size, length):
        stop = min(start + length, slicing.size)
        first, last = read.bounds(start, stop)
        part = _run_slice(found, window, dim, x.narrow(dim, first, last - first), core.bounds(start, stop))
        assert part.shape[dim] == (stop - start) * slicing.inner
        parts.append(part)
    assert same(found, torch.cat(parts, dim), whole), f"{found.map}: {slicing}, {length} at a time"


def _run_slice(found: Sample, window: Window, dim: int, part: Tensor, result: tuple[int, int]) -> Tensor:
    target, rank, size = found.target, found.tensors[0].dim(), found.tensors[0].shape[dim]
    reach = window.dilation * (window.kernel - 1) + 1 - window.stride - window.pad_lo
    before = missing_before(result[0], window.stride, -window.pad_lo)
    behind = missing_behind(result[1], window.stride, reach, size)
    operands = [part, *found.tensors[1:]]
    if pads_by_itself(target):
        args, kwargs = with_tensors(target, found.args, found.kwargs, iter(operands))
        return run(target, repadded(target, args, kwargs, rank, dim, (before, behind)), {})[0]
    call = unpadded(target, found.args, found.kwargs, rank, dim, window)
    operands[0] = pad_slice(part, dim, before, behind, call.value)
    args, kwargs = with_tensors(call.target, call.args, call.kwargs, iter(operands))
    return run(call.target, args, kwargs)[0]


@pytest.mark.parametrize(
    ("target", "args", "reason"),
    [
        (aten.avg_pool1d.default, [torch.ones(1, 1, 4), [3], [1], [1], False, False], "count_include_pad"),
        (aten.conv1d.padding, [torch.ones(1, 1, 4), torch.ones(1, 1, 2), None, [1], "same"], "padding='same'"),
        (aten.add.Tensor, [torch.ones(1), torch.ones(1)], "nothing is known of the padding of aten.add.Tensor"),
    ],
)
def test_what_cannot_be_padded_slice_by_slice_is_refused(target: OpOverload, args: list[Any], reason: str) -> None:
    assert reason in str(why_not(target, tuple(args), {}))


@hypothesis.settings(max_examples=200)
@hypothesis.given(
    inner=st.integers(1, 3),
    lo=st.integers(-2, 9),
    hi=st.integers(-2, 9),
    more=st.integers(-3, 4),
    size=st.integers(1, 12),
)
def test_spans_know_their_longest_and_shortest_slice(inner: int, lo: int, hi: int, more: int, size: int) -> None:
    span = Span(inner, lo, hi, max(size * inner + more, 1))
    lengths = np.arange(1, size + 1, dtype=np.float64)
    for index, length in enumerate(range(1, size + 1)):
        slices = [span.bounds(start, min(start + length, size)) for start in range(0, size, length)]
        held = [stop - start for start, stop in slices]
        assert span.longest(size, lengths)[index] == max(held)
        assert span.shortest(size, lengths)[index] == min(held)
        assert span.total(size, lengths)[index] >= sum(held)
