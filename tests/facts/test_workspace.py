"""The table of kernel workspaces against what kernels allocate on this machine."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._ops import OpOverload

from sicompiler.facts.calls import bind
from sicompiler.facts.storages import TensorFact
from sicompiler.facts.workspace.onednn import HALF, multiplies_bfloat16, takes
from sicompiler.facts.workspace.table import workspace_bytes
from sicompiler.runtime.measure import measure_peak
from sicompiler.units import KIB

aten = torch.ops.aten
ops = torch.ops.sicompiler
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SLACK = 4 * KIB  # statistics, indices, scalars

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def _small(dtype: torch.dtype, closeness: float | None) -> float | None:
    """No closeness for small half tensors where oneDNN takes them: bounds of its scratchpads have a constant term."""
    return None if dtype in HALF and takes(dtype) else closeness


def _fact(tensor: Tensor) -> TensorFact:
    return TensorFact(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, 0)


def _compare(target: OpOverload, *args: Any, closeness: float | None = 0.05, **kwargs: Any) -> int:
    """Run an operator, compare its workspace with the prediction, and return what was measured.

    Args:
        closeness: how far the prediction may exceed the measured workspace, relative to operands, results and
            workspace together; None: any bound will do.
    """
    flat = [t for a in (*args, *kwargs.values()) for t in (a if isinstance(a, (list, tuple)) else [a])]
    operands = [t for t in flat if isinstance(t, Tensor)]
    with torch.no_grad(), measure_peak("cpu") as peak:
        result = target(*args, **kwargs)
    results = [result] if isinstance(result, Tensor) else list(result)
    given_storages = {t.untyped_storage().data_ptr() for t in operands}
    owned = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in results}
    owned = {pointer: nbytes for pointer, nbytes in owned.items() if pointer not in given_storages}
    measured = peak.bytes - sum(owned.values())
    arguments = bind(target, args, kwargs)
    predicted = workspace_bytes(target, [*map(_fact, operands)], [*map(_fact, results)], "cpu", arguments)
    assert measured <= predicted + SLACK, f"{measured} measured, {predicted} predicted"
    if closeness is not None:
        total = peak.bytes + sum(t.numel() * t.element_size() for t in operands)
        assert predicted <= measured + closeness * total + SLACK, f"{measured} measured, {predicted} predicted"
    return measured


def _layout(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of a shape that is row-major, narrowed, or has two dims swapped in memory, or the channels innermost."""
    if name == "narrowed":
        return torch.randn(*shape[:-1], 2 * shape[-1]).to(dtype)[..., : shape[-1]]
    if name == "swapped":
        return torch.randn(shape[1], shape[0], *shape[2:]).to(dtype).transpose(0, 1)
    if name == "channels_last":
        return torch.randn(shape[0], *shape[2:], shape[1]).to(dtype).movedim(-1, 1)
    return torch.randn(shape).to(dtype)


LAYOUTS = st.sampled_from(("row-major", "narrowed", "swapped"))


@given(data=st.data(), dtype=st.sampled_from(DTYPES), layout=LAYOUTS)
@settings(max_examples=25)
@pytest.mark.parametrize("kernel", [(3,), (1, 1), (3, 3), (3, 1, 1), (1, 1, 1), (3, 3, 3), (2, 2), (1, 2, 2)], ids=str)
def test_convolutions(kernel: tuple[int, ...], data: st.DataObject, dtype: torch.dtype, layout: str) -> None:
    draw = data.draw
    n, channels, features = draw(st.integers(1, 3)), draw(st.integers(1, 40)), draw(st.integers(1, 40))
    groups = draw(st.sampled_from((1, 1, 1, math.gcd(channels, features))))  # groups of few channels: a bound only
    sizes = [draw(st.integers(2, 24)) for _ in kernel]
    stride = draw(st.sampled_from((1, 1, 2)))
    x = _layout(layout, (n, channels, *sizes), dtype)
    weight = torch.randn(features, channels // groups, *kernel).to(dtype)
    target = (aten.conv1d, aten.conv2d, aten.conv3d)[len(kernel) - 1].default
    dims = len(kernel)
    # A kernel of 1 whose stride does not divide the size needs no copy of what it reads on some CPUs: a bound, too.
    close = _small(dtype, 0.05) if groups == 1 and (max(kernel) > 1 or not any(s % stride for s in sizes)) else None
    _compare(target, x, weight, None, [stride] * dims, [k // 2 for k in kernel], [1] * dims, groups, closeness=close)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (3, 1, 1), (1, 1, 1), (3, 3, 3)], ids=str)
def test_convolutions_large_enough_for_onednn(kernel: tuple[int, ...], threads: int) -> None:
    sizes = (24, 40) if len(kernel) == 2 else (26, 24, 40)
    x, weight = torch.randn(1, 36, *sizes), torch.randn(20, 36, *kernel)
    target = aten.conv2d.default if len(kernel) == 2 else aten.conv3d.default
    with _Threads(threads):
        _compare(target, x, weight, torch.randn(20), [1] * len(kernel), [k // 2 for k in kernel])


@dtypes
def test_convolutions_of_single_channels(dtype: torch.dtype) -> None:
    x, weight = torch.randn(2, 32, 40, 40).to(dtype), torch.randn(32, 1, 3, 3).to(dtype)
    _compare(aten.conv2d.default, x, weight, None, [1, 1], [1, 1], [1, 1], 32, closeness=_small(dtype, 0.05))


@dtypes
def test_channels_last_convolutions(dtype: torch.dtype) -> None:
    for channels, features in ((32, 64), (128, 128), (64, 80)):
        x = _layout("channels_last", (2, channels, 32, 32), dtype)
        for size in (1, 3):
            weight = torch.randn(features, channels, size, size).to(dtype)
            _compare(aten.conv2d.default, x, weight, None, [1, 1], [size // 2] * 2, closeness=_small(dtype, 0.2))
            last = weight.contiguous(memory_format=torch.channels_last)
            _compare(aten.conv2d.default, x, last, None, [1, 1], [size // 2] * 2, closeness=_small(dtype, 0.2))


@dtypes
def test_transposed_convolutions(dtype: torch.dtype) -> None:
    x, weight = torch.randn(2, 32, 16, 16).to(dtype), torch.randn(32, 16, 4, 4).to(dtype)
    _compare(aten.conv_transpose2d.input, x, weight, None, [2, 2], [1, 1], closeness=None)


# Shapes of UNets at full width: (n, c, sizes, features, kernel, stride), and how close the bound for half dtypes is.
CONVOLUTIONS = [
    (14, 320, (72, 128), 320, (3, 3), 1, 0.05),
    (28, 320, (36, 64), 640, (3, 3), 1, 0.05),
    (14, 960, (36, 64), 320, (3, 3), 1, 0.05),
    (28, 1280, (9, 16), 1280, (3, 3), 1, 0.05),
    (14, 1920, (18, 32), 640, (3, 3), 1, 0.05),
    (14, 320, (72, 128), 320, (3, 3), 2, 0.05),
    (14, 640, (36, 64), 640, (3, 3), 2, 0.05),
    (14, 8, (72, 128), 320, (3, 3), 1, 0.05),
    (14, 320, (72, 128), 4, (3, 3), 1, 0.05),
    (14, 320, (36, 64), 640, (1, 1), 1, 0.05),
    (1, 320, (14, 36, 64), 320, (3, 1, 1), 1, 0.05),
    (2, 1280, (14, 9, 16), 1280, (3, 1, 1), 1, 0.05),
    (1, 320, (14, 72, 128), 320, (3, 1, 1), 1, 0.05),
    (144, 320, (14,), 320, (3,), 1, 0.05),
]


def _half_cases() -> list[Any]:
    """Every shape in both dtypes; float16, which few processors multiply themselves, by default where it is small."""
    cases = []
    for dtype in HALF:
        for row in CONVOLUTIONS:
            n, c, sizes, features, kernel, stride, _ = row
            products = n * c * math.prod(sizes) * features * math.prod(kernel) / stride ** len(kernel)
            marks = [pytest.mark.slow] if dtype is torch.float16 and products > 2e9 else []
            cases.append(pytest.param(row, dtype, marks=marks, id="-".join(map(str, [*row[:-1], dtype]))))
    return cases


@pytest.mark.parametrize(("row", "dtype"), _half_cases())
def test_half_convolutions_of_unets(row: tuple[Any, ...], dtype: torch.dtype) -> None:
    n, channels, sizes, features, kernel, stride, close = row
    dims = len(kernel)
    if not takes(dtype):
        n = 1  # unfolded for the whole batch, and slow
    elif not multiplies_bfloat16() or (dtype == torch.float16 and dims == 2):
        n = min(n, 2)  # slow
    x = torch.zeros(n, channels, *sizes, dtype=dtype)
    weight = torch.zeros(features, channels, *kernel, dtype=dtype)
    target = (aten.conv1d, aten.conv2d, aten.conv3d)[dims - 1].default
    with _Threads(1):  # with more of them every thread has scratch memory: a bound, not as close
        _compare(target, x, weight, None, [stride] * dims, [k // 2 for k in kernel], closeness=close)


# (rows, depth, columns); feed-forward layers, projections, prompts.
PRODUCTS = [
    (9216, 320, 320),
    (9216, 320, 2560),
    (9216, 1280, 320),
    (32256, 640, 640),
    (9216, 2560, 640),
    (2304, 5120, 1280),
    (2304, 1280, 10240),
    (14 * 77, 1024, 320),
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("sizes", PRODUCTS, ids=str)
def test_half_products_of_unets(sizes: tuple[int, int, int], dtype: torch.dtype, threads: int) -> None:
    rows, depth, columns = sizes
    if not multiplies_bfloat16() or not takes(dtype):
        rows = rows // (16 if takes(dtype) else 128) * 2  # slow, and without oneDNN even more so
    x, weight = torch.zeros(rows, depth, dtype=dtype), torch.zeros(columns, depth, dtype=dtype)
    with _Threads(threads):
        close = 0.12 if threads == 1 else None  # how threads share small products isn't known: a bound
        _compare(aten.linear.default, x, weight, weight[:, 0].contiguous(), closeness=close)
        transposed = torch.zeros(2, depth, rows // 2, dtype=dtype).transpose(1, 2)
        _compare(aten.linear.default, transposed, weight, closeness=close)


class _Threads:
    """Run with a number of threads."""

    def __init__(self, count: int) -> None:
        self.count, self.before = count, torch.get_num_threads()

    def __enter__(self) -> None:
        torch.set_num_threads(self.count)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)


@given(
    shape=st.tuples(*[st.integers(1, 6)] * 2, st.integers(1, 50), st.integers(1, 50)),
    dims=st.integers(2, 4),
    order=st.permutations(range(4)),
    step=st.sampled_from((1, 1, 1, 2)),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=80)
def test_linear_of_any_strides(
    shape: tuple[int, ...], dims: int, order: list[int], step: int, dtype: torch.dtype
) -> None:
    shape, order = shape[4 - dims :], [d for d in order if d < dims]
    memory = [shape[d] for d in order]
    memory[-1] *= step
    x = torch.randn(memory).to(dtype)[..., ::step].permute([order.index(d) for d in range(dims)])
    weight = torch.randn(30, shape[-1]).to(dtype)
    close = _small(dtype, 0.05)
    _compare(aten.linear.default, x, weight, weight[:, 0].contiguous(), closeness=close)
    _compare(aten.linear.default, x, weight, closeness=close)


@dtypes
def test_matrix_products(dtype: torch.dtype) -> None:
    a, b = torch.randn(2, 8, 100, 64).to(dtype), torch.randn(2, 8, 64, 50).to(dtype)
    permuted = a.transpose(1, 2).contiguous().transpose(1, 2)
    row, column = torch.randn(1, 500, 8, 1).to(dtype).permute(0, 2, 3, 1), torch.randn(1, 8, 500, 1).to(dtype)
    calls: list[tuple[OpOverload, tuple[Tensor, ...], int]] = [
        (aten.matmul.default, (a, b), 0),
        (aten.matmul.default, (a, a.transpose(-1, -2)), 0),
        (aten.matmul.default, (permuted, b), a.numel() * a.element_size()),
        (aten.matmul.default, (a, b[:1]), b.numel() * b.element_size()),
        (aten.matmul.default, (a, b[0, 0]), 0),
        (aten.matmul.default, (row, column), 0 if _small(dtype, 0.0) is None else 500 * a.element_size()),
        (aten.bmm.default, (row[0], column[0]), 0),
        (aten.bmm.default, (a[0], b[0]), 0),
        (aten.baddbmm.default, (torch.zeros(8, 100, 50, dtype=dtype), a[0], b[0]), 0),
        (aten.addmm.default, (torch.zeros(50, dtype=dtype), a[0, 0], b[0, 0]), 0),
    ]
    for target, args, copies in calls:
        measured = _compare(target, *args, closeness=_small(dtype, 0.05))
        assert measured >= copies
        if _small(dtype, 0.0) is not None:
            assert measured == copies


@given(
    batch=st.sampled_from((1, 2, 300)),
    queries=st.sampled_from((1, 16, 40, 191, 192, 500, 768, 1000)),
    keys=st.sampled_from((1, 16, 77, 512, 600)),
    width=st.sampled_from((40, 64, 128)),
    mask=st.sampled_from(("none", "float", "bool", "bool per batch", "expanded")),
    swapped=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=40)
@pytest.mark.parametrize("threads", [1, 2])
def test_attention(
    threads: int, batch: int, queries: int, keys: int, width: int, mask: str, swapped: bool, dtype: torch.dtype
) -> None:
    if batch > 2:
        queries, keys = min(queries, 40), min(keys, 77)

    def heads(tokens: int) -> Tensor:
        if swapped:
            return torch.randn(batch, tokens, 2, width).to(dtype).transpose(1, 2)
        return torch.randn(batch, 2, tokens, width).to(dtype)

    masks = {
        "none": None,
        "float": torch.zeros(queries, keys, dtype=dtype),
        "bool": torch.ones(queries, keys, dtype=torch.bool),
        "bool per batch": torch.ones(batch, 1, 1, keys, dtype=torch.bool),
        "expanded": torch.ones(batch, 1, 1, keys, dtype=torch.bool).expand(batch, 1, queries, keys),
    }
    with _Threads(threads):
        _compare(aten.scaled_dot_product_attention.default, heads(queries), heads(keys), heads(keys), masks[mask])


@dtypes
def test_attention_without_flash(dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(2, 4, n, 64).to(dtype) for n in (200, 300, 300))
    target = aten.scaled_dot_product_attention.default
    _compare(target, q, k, v[..., :32].contiguous())
    _compare(target, q[0], k[0], v[0])
    _compare(target, q, k, v.transpose(2, 3).contiguous().transpose(2, 3))
    _compare(target, q, k, v, torch.zeros(1, 200, 300, dtype=dtype))


@dtypes
@pytest.mark.parametrize("layout", ["row-major", "narrowed", "swapped", "channels_last"])
def test_norms(layout: str, dtype: torch.dtype) -> None:
    weight = torch.randn(32).to(dtype)
    for shape in ((2, 32, 40, 40), (3, 32, 6, 16, 16)):
        x = _layout(layout, shape, dtype)
        _compare(aten.group_norm.default, x, 8, weight, weight)
        _compare(aten.group_norm.default, x, 8)
    rows = torch.randn(64).to(dtype)
    for tokens in ((4, 100, 64), (2, 3, 50, 64)):
        x = _layout(layout, tokens, dtype)
        _compare(aten.layer_norm.default, x, [64], rows, rows)
        _compare(aten.layer_norm.default, x, [64])
        _compare(aten.rms_norm.default, x, [64], rows)
        _compare(aten.rms_norm.default, x, [64])
        _compare(aten.softmax.int, x, -1)
        _compare(aten.softmax.int, x, 1, torch.float32)
        _compare(aten.mean.dim, x, [-1], True)
        _compare(aten.var_mean.correction, x, [-1])


@dtypes
@pytest.mark.parametrize("layout", ["row-major", "narrowed", "channels_last"])
@pytest.mark.parametrize("size", [(20, 20), (31, 32), (32, 32), (32, 33), (100, 10)])
def test_upsampling(layout: str, size: tuple[int, int], dtype: torch.dtype) -> None:
    x = _layout(layout, (2, 8, *size), dtype)
    for target in (aten.upsample_nearest2d.vec, aten._upsample_nearest_exact2d.vec):
        _compare(target, x, None, [2.0, 2.0])
    _compare(aten.upsample_bilinear2d.vec, x, None, False, [2.0, 2.0], closeness=0.1)
    video = _layout(layout, (1, 8, 4, *size), dtype)
    _compare(aten.upsample_nearest3d.vec, video, None, [1.0, 2.0, 2.0], closeness=0.1)


@dtypes
@pytest.mark.parametrize("layout", ["row-major", "narrowed", "swapped", "channels_last"])
def test_operators_without_workspace(layout: str, dtype: torch.dtype) -> None:
    x = _layout(layout, (4, 32, 24, 24), dtype)
    weight = torch.rand(32).to(dtype)
    calls: list[tuple[OpOverload, tuple[Any, ...]]] = [
        (aten.gelu.default, (x,)),
        (aten.silu.default, (x,)),
        (aten.add.Tensor, (x, x)),
        (aten.mul.Tensor, (x, x[:, :, :1])),
        (aten.cat.default, ([x, x], 1)),
        (aten.stack.default, ([x, x],)),
        (aten.clone.default, (x,)),
        (aten.reshape.default, (x, [4, -1])),
        (aten.contiguous.default, (x.transpose(2, 3),)),
        (aten.repeat_interleave.self_int, (x, 3, 1)),
        (aten.repeat.default, (x, [1, 2, 1, 1])),
        (aten.constant_pad_nd.default, (x, [1, 1, 1, 1])),
        (aten.sum.dim_IntList, (x, [1])),
        (aten.slice_scatter.default, (x, x[:, :4].clone(), 1, 0, 4)),
    ]
    for target, args in calls:
        assert _compare(target, *args) <= SLACK
    stats = ops.group_stats(x, 8)
    _compare(ops.group_stats.default, x, 8, closeness=0.1)
    _compare(ops.group_apply.default, x, stats, weight, weight, 1e-5, closeness=0.1)
    assert _compare(ops.copy_slice.default, x, 2, 1, 1, 3, 7) == 0


def test_group_stats_of_a_large_tensor() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for layout in ("row-major", "swapped"):
            _compare(ops.group_stats.default, _layout(layout, (2, 32, 160, 160), dtype), 8)


def test_pointwise_operators_of_two_dtypes() -> None:
    half, single, integers = torch.randn(40, 64).bfloat16(), torch.rand(64), torch.arange(64)
    assert _compare(aten.mul.Tensor, half, single) == half.numel() * 4
    assert _compare(aten.mul.Tensor, single, integers) == 64 * 4
    assert _compare(aten.gt.Tensor, half, single.double()) == half.numel() * 8
    assert _compare(aten.exp.default, integers) == 64 * 4
    assert _compare(aten.mul.Tensor, half, torch.tensor(2.0)) <= 4
    assert _compare(aten.where.self, half > 0, half, half) == 0
    assert _compare(aten._to_copy.default, half, dtype=torch.float32) == 0


@dtypes
def test_resampling_of_narrowed_input_copies(dtype: torch.dtype) -> None:
    x = _layout("narrowed", (2, 8, 20, 20), dtype)
    _compare(aten.avg_pool2d.default, x, [2, 2], [2, 2])
    _compare(aten.replication_pad2d.default, x, [1, 1, 1, 1])
    _compare(aten.reflection_pad2d.default, x, [1, 1, 1, 1])


def test_an_operator_without_tensors_needs_nothing() -> None:
    assert workspace_bytes(aten.zeros.default, [], [_fact(torch.zeros(3))], "cpu") == 0


@dtypes
def test_looking_up_along_a_dim(dtype: torch.dtype) -> None:
    x, index = torch.randn(6, 12, 256).to(dtype), torch.randperm(12).view(1, 12, 1)
    _compare(aten.take_along_dim.default, x, index, 1)
    _compare(aten.take_along_dim.default, x, index.expand(6, 12, 256), 1)
    _compare(aten.take_along_dim.default, x, index.flatten())
