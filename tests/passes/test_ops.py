"""The operators our passes insert: against plain torch, on any strides, under fake tensors, in fx graphs."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

import sicompiler.ops
from sicompiler.errors import BadInput
from sicompiler.ops import dense_strides, groupnorm, sliced_loop
from sicompiler.runtime.measure import measure_peak

aten = torch.ops.aten
ops = torch.ops.sicompiler
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("contiguous", "permuted", "narrowed", "expanded", "channels_last")
# Relative error (2-norm) against float64: rounding of the result, and a few times that of the entries.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 3e-7, torch.bfloat16: 2.5e-3, torch.float16: 3e-4}


def _tensor(layout: str, n: int, c: int, t: int, h: int, w: int, dtype: torch.dtype) -> Tensor:
    """A tensor [n, c, t, h, w] with the strides in question and a mean away from zero."""
    x = torch.randn(n, c, t, h, w, dtype=torch.float64).mul_(1.5).add_(0.7).to(dtype)
    if layout == "permuted":  # as AnimateDiff and SVD make it: [n, t, c, h, w] seen as [n, c, t, h, w]
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "narrowed":
        return torch.cat([x, x, x], 3).narrow(3, h // 2, h)
    if layout == "expanded":
        return x[:, :, :1].expand(n, c, t, h, w)
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last_3d)
    return x


def _error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.pure
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n", [1, 2])
def test_group_norm_in_two_passes_over_slices(layout: str, n: int, dtype: torch.dtype) -> None:
    x = _tensor(layout, n, 12, 5, 4, 6, dtype)
    weight, bias = torch.randn(12, dtype=dtype), torch.randn(12, dtype=dtype)
    wanted = F.group_norm(x.double(), 3, weight.double(), bias.double(), 1e-5)
    for dim, step in ((2, 2), (3, 3), (4, 4), (2, 5)):
        acc = torch.zeros(n, 3, 3, dtype=torch.float64)
        for part in x.split(step, dim):
            ops.merge_stats_(acc, ops.group_stats(part, 3))
        parts = [ops.group_apply(part, acc, weight, bias, 1e-5) for part in x.split(step, dim)]
        native = [F.group_norm(part, 3, weight, bias, 1e-5) for part in x.split(step, dim)]
        assert [part.stride() for part in parts] == [part.stride() for part in native]
        assert all(part.dtype == dtype for part in parts)
        assert _error(torch.cat(parts, dim), wanted) < TOLERANCE[dtype]


@pytest.mark.pure
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("piece", [1, 7, 64, 500])
def test_pieces_do_not_matter(layout: str, dtype: torch.dtype, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = _tensor(layout, 2, 6, 3, 8, 8, dtype)
    wanted_stats, wanted = ops.group_stats(x.double(), 3), F.group_norm(x.double(), 3)
    monkeypatch.setattr(groupnorm, "PIECE", piece)
    monkeypatch.setattr(groupnorm, "FUSED_ROW", piece)
    stats = ops.group_stats(x, 3)
    assert stats.dtype == torch.float64
    torch.testing.assert_close(stats, wanted_stats, rtol=1e-6, atol=0)
    assert _error(ops.group_apply(x, stats, None, None, 1e-5), wanted) < TOLERANCE[dtype]


@pytest.mark.pure
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_long_rows_keep_their_digits(dtype: torch.dtype) -> None:
    x = torch.rand(1, 2, 3, 2**20, dtype=torch.float32).add_(3).to(dtype)
    torch.testing.assert_close(ops.group_stats(x, 2), ops.group_stats(x.double(), 2), rtol=1e-5, atol=0)


@pytest.mark.pure
def test_group_norm_by_groups_and_by_batch() -> None:
    x, weight, bias = _tensor("permuted", 3, 12, 2, 4, 4, torch.float32), torch.randn(12), torch.randn(12)
    whole = ops.group_apply(x, ops.group_stats(x, 4), weight, bias, 1e-6)
    stats = ops.group_stats(x, 4)
    by_groups = [
        ops.group_apply(
            x[:, 3 * g : 3 * g + 3], stats[:, g : g + 1], weight[3 * g : 3 * g + 3], bias[3 * g : 3 * g + 3], 1e-6
        )
        for g in range(4)
    ]
    assert torch.equal(torch.cat(by_groups, 1), whole)
    assert torch.equal(
        torch.cat([ops.group_apply(s, ops.group_stats(s, 4), weight, bias, 1e-6) for s in x.split(1)]), whole
    )


@pytest.mark.pure
@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 3), (0, 4, 3), (2, 4, 0)])
def test_group_norm_of_few_dims(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    stats = ops.group_stats(x, 2)
    assert stats.shape == (shape[0], 2, 3)
    found = ops.group_apply(x, stats, None, None, 1e-5)
    torch.testing.assert_close(found, F.group_norm(x, 2) if x.numel() else x)


@pytest.mark.pure
def test_merging_with_nothing_changes_nothing() -> None:
    part = ops.group_stats(torch.randn(1, 4, 9), 2)
    acc = torch.zeros_like(part)
    ops.merge_stats_(acc, torch.zeros_like(part))
    assert torch.equal(acc, torch.zeros_like(part))
    ops.merge_stats_(acc, part)
    assert torch.equal(acc, part)
    ops.merge_stats_(acc, torch.zeros_like(part))
    assert torch.equal(acc, part)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("pad", [[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0], [1, 2]])
def test_paddings_of_slices_lie_alike(pad: list[int], channels_last: bool) -> None:
    x = torch.randn(2, 3, 4, 5, 6)
    x = x.contiguous(memory_format=torch.channels_last_3d) if channels_last else x.transpose(2, 3)
    padded = torch.ops.sicompiler.pad_copy.default(x, pad, 1.5, channels_last)
    assert torch.equal(padded, torch.nn.functional.pad(x, pad, value=1.5))
    assert padded.is_contiguous(memory_format=torch.channels_last_3d if channels_last else torch.contiguous_format)
    with FakeTensorMode() as mode:
        fake = torch.ops.sicompiler.pad_copy.default(mode.from_tensor(x), pad, 1.5, channels_last)
    assert (fake.shape, fake.stride()) == (padded.shape, padded.stride())


@pytest.mark.pure
def test_group_norm_refuses() -> None:
    with pytest.raises(BadInput, match="multiple of the 3 groups"):
        ops.group_stats(torch.randn(1, 4, 2), 3)
    with pytest.raises(BadInput, match="GroupNorm needs"):
        ops.group_apply(torch.randn(4), torch.zeros(1, 2, 3), None, None, 1e-5)
    with pytest.raises(BadInput, match="merge_stats_ needs"):
        ops.merge_stats_(torch.zeros(1, 2, 3), torch.zeros(1, 4, 3))


def _peak(call: Callable[[], object]) -> int:
    with measure_peak("cpu") as peak:
        call()
    return peak.bytes


@pytest.mark.pure
def test_no_temporary_of_the_size_of_the_input() -> None:
    for dtype, layout in itertools.product(DTYPES, LAYOUTS):
        x = _tensor(layout, 1, 16, 4, 192, 192, dtype)
        stats = ops.group_stats(x, 4)
        working = 8 if dtype == torch.float64 else 4
        assert _peak(partial(ops.group_stats, x, 4)) <= groupnorm.PIECE * working + 2**16
        nbytes = x.numel() * x.element_size()
        assert nbytes <= _peak(partial(ops.group_apply, x, stats, None, None, 1e-5)) <= nbytes + 2**16


# Slices


def _factored(whole: Tensor, dim: int, outer: int, inner: int, start: int, length: int) -> Tensor:
    n = whole.shape[dim] // (outer * inner)
    whole = whole.view(*whole.shape[:dim], outer, n, inner, *whole.shape[dim + 1 :])
    return whole.narrow(dim + 1, start, length).flatten(dim, dim + 2)


@st.composite
def slicings(draw: st.DrawFn) -> tuple[Tensor, int, int, int, int, int]:
    """A tensor with permuted, possibly padded dims, and a slice of one of its dims."""
    outer, n, inner = (draw(st.integers(1, 4)) for _ in range(3))
    order = draw(st.permutations(range(3)))
    dim = draw(st.integers(0, 2))
    shape = [draw(st.integers(1, 4)) for _ in range(3)]
    shape[dim] = outer * n * inner
    padded = [size + draw(st.integers(0, 1)) for size in shape]
    memory = torch.arange(torch.Size(padded).numel(), dtype=torch.float64).view([padded[d] for d in order])
    whole = memory.permute([order.index(d) for d in range(3)])
    for d, size in enumerate(shape):
        whole = whole.narrow(d, 0, size)
    start = draw(st.integers(0, n - 1))
    return whole, dim - draw(st.sampled_from([0, 3])), outer, inner, start, draw(st.integers(1, n - start))


@pytest.mark.pure
@given(slicings())
@settings(max_examples=200, deadline=None)
def test_slices_read_and_write(case: tuple[Tensor, int, int, int, int, int]) -> None:
    whole, dim, *where = case
    wanted = _factored(whole, dim % 3, *where).clone()
    part = ops.copy_slice(whole, dim, *where)
    assert torch.equal(part, wanted)
    assert part.untyped_storage().nbytes() == part.numel() * 8
    with FakeTensorMode() as mode:
        fake = ops.copy_slice(mode.from_tensor(whole), dim, *where)
    assert (fake.shape, fake.stride()) == (part.shape, part.stride())

    before, pointer = whole.clone(), whole.data_ptr()
    ops.write_slice_(whole, -part, dim, *where)
    assert whole.data_ptr() == pointer
    assert torch.equal(_factored(whole, dim % 3, *where), -wanted)
    ops.write_slice_(whole, part, dim, *where)
    assert torch.equal(whole, before)


@pytest.mark.pure
def test_a_copy_keeps_the_order_of_dims() -> None:
    x = torch.randn(2, 3, 5, 7).contiguous(memory_format=torch.channels_last)
    part = ops.copy_slice(x, 2, 1, 1, 1, 3)
    assert part.is_contiguous(memory_format=torch.channels_last)
    assert part.stride() == torch.empty_like(x[:, :, 1:4]).stride()
    assert dense_strides((4, 2, 0), (10, 1, 30)) == [2, 1, 8]


@pytest.mark.pure
def test_slices_refuse() -> None:
    whole = torch.zeros(4, 6)
    for part in (torch.zeros(4, 1), torch.zeros(4, 3), torch.zeros(2), torch.zeros(4, 2, dtype=torch.float64)):
        with pytest.raises(BadInput, match="write_slice_ expects"):
            ops.write_slice_(whole, part, 1, 1, 1, 0, 2)
    with pytest.raises(BadInput, match="can't be split"):
        ops.copy_slice(whole, 1, 4, 1, 0, 1)
    with pytest.raises((RuntimeError, IndexError)):
        ops.copy_slice(whole, 1, 1, 1, 5, 2)
    with pytest.raises((RuntimeError, IndexError)):
        ops.write_slice_(whole, torch.zeros(4, 4), 1, 2, 1, 2, 2)


# The loop


def _loop_module() -> fx.GraphModule:
    """`y = relu(x)`, in slices of dim 1."""
    body = fx.Graph()
    x, y, start, length = (body.placeholder(name) for name in ("x", "y", "start", "length"))
    part = body.call_function(ops.copy_slice.default, (x, 1, 1, 1, start, length))
    part = body.call_function(aten.relu.default, (part,))
    body.call_function(ops.write_slice_.default, (y, part, 1, 1, 1, start, length))
    body.output(None)
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(aten.new_empty_strided.default, (x, [3, 10], [10, 1]))
    graph.call_function(sliced_loop, (graph.get_attr("body"), 10, 4, x, y))
    graph.output(y)
    root = torch.nn.Module()
    root.add_module("body", fx.GraphModule(torch.nn.Module(), body))
    return fx.GraphModule(root, graph)


def test_a_loop_in_a_graph_runs_and_prints() -> None:
    module = _loop_module()
    x = torch.randn(3, 10)
    assert torch.equal(module(x), F.relu(x))
    for graph_module in (module, module.body):
        assert isinstance(graph_module, fx.GraphModule)
        graph_module.graph.eliminate_dead_code()
        graph_module.recompile()
        graph_module.graph.lint()
    assert torch.equal(module(x), F.relu(x))
    assert "sicompiler_ops_sliced_loop(body, 10, 4, x, new_empty_strided_default)" in module.code
    with FakeTensorMode() as mode:
        fake = module(mode.from_tensor(x))
    assert (fake.shape, fake.stride()) == ((3, 10), (10, 1))


@pytest.mark.pure
@given(size=st.integers(0, 40), slice_length=st.integers(1, 50))
def test_a_loop_covers_the_axis_once(size: int, slice_length: int) -> None:
    seen: list[tuple[int, int]] = []
    sliced_loop(lambda tag, start, length: seen.append((start, length)), size, slice_length, "tag")
    assert [i for start, length in seen for i in range(start, start + length)] == list(range(size))
    assert all(length == slice_length for _, length in seen[:-1])
    assert max((length for _, length in seen), default=min(size, slice_length)) == min(size, slice_length)


@pytest.mark.pure
def test_a_loop_passes_exceptions_on() -> None:
    calls: list[int] = []

    def body(start: int, length: int) -> None:
        calls.append(start)
        if start == 2:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sliced_loop(body, 8, 2)
    assert calls == [0, 2]
    with pytest.raises(BadInput, match="slice_length >= 1"):
        sliced_loop(body, 8, 0)


# Registration


@pytest.mark.pure
def test_importing_again_is_harmless() -> None:
    for name in ("library", "groupnorm", "slices", "loop"):
        importlib.reload(importlib.import_module(f"sicompiler.ops.{name}"))
    importlib.reload(sicompiler.ops)
    assert ops.group_stats(torch.randn(1, 4, 9), 2).shape == (1, 2, 3)


@pytest.mark.pure
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fake_tensors_agree(layout: str) -> None:
    x, weight = _tensor(layout, 2, 6, 3, 4, 4, torch.float16), torch.randn(6)
    stats = ops.group_stats(x, 3)
    real = ops.group_apply(x, stats, weight, None, 1e-5)
    with FakeTensorMode() as mode:
        fake_stats = ops.group_stats(mode.from_tensor(x), 3)
        fake = ops.group_apply(mode.from_tensor(x), fake_stats, mode.from_tensor(weight), None, 1e-5)
        ops.merge_stats_(fake_stats, fake_stats)
    for one, other in ((fake_stats, stats), (fake, real)):
        assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)


@pytest.mark.pure
def test_schemas_tell_what_is_changed() -> None:
    changed = {
        name: [a.name for a in getattr(ops, name).default._schema.arguments if a.alias_info and a.alias_info.is_write]
        for name in ("group_stats", "merge_stats_", "group_apply", "copy_slice", "write_slice_")
    }
    assert changed == {
        "group_stats": [],
        "merge_stats_": ["acc"],
        "group_apply": [],
        "copy_slice": [],
        "write_slice_": ["whole"],
    }


@pytest.mark.pure
def test_opcheck() -> None:
    x, weight = torch.randn(2, 6, 5), torch.randn(6)
    stats = ops.group_stats(x, 3)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(ops.group_stats.default, (x, 3), test_utils=tests)
    torch.library.opcheck(ops.group_apply.default, (x, stats, weight, weight, 1e-5), test_utils=tests)
    torch.library.opcheck(ops.merge_stats_.default, (stats.clone(), stats), test_utils=tests)
    torch.library.opcheck(ops.copy_slice.default, (x, 2, 1, 1, 1, 3), test_utils=tests)
    torch.library.opcheck(ops.write_slice_.default, (x, x[..., :2].clone(), 2, 1, 1, 1, 2), test_utils=tests)


@pytest.mark.pure
def test_parameters_that_require_grad_do_no_harm() -> None:
    weight = torch.nn.Parameter(torch.randn(4))
    x = torch.randn(1, 4, 9)
    found = ops.group_apply(x, ops.group_stats(x, 2), weight, None, 1e-5)
    torch.testing.assert_close(found.detach(), F.group_norm(x, 2, weight).detach())
    whole = torch.zeros(1, 4, 18)
    ops.write_slice_(whole, found, 2, 1, 1, 9, 9)
    assert torch.equal(whole[..., 9:], found)


@pytest.mark.pure
def test_group_apply_of_one_sample_is_row_major_where_the_whole_is() -> None:
    x = torch.randn(7, 6, 8).permute(1, 2, 0)[:, :, None]
    stats = ops.group_stats(x, 2)
    whole, alone = ops.group_apply(x, stats, None, None, 1e-5), (x[:1], stats[:1], None, None, 1e-5)
    assert whole.is_contiguous()
    assert not ops.group_apply(*alone).is_contiguous()
    assert torch.equal(ops.group_apply(*alone, row_major=True), whole[:1])
    assert ops.group_apply(*alone, row_major=True).is_contiguous()
