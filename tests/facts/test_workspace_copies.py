"""Row-major copies, norms of short rows: what is small beside a large tensor, and isn't beside a narrow one."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch._ops import OpOverload

from sicompiler import ops
from tests.kernel_calls import LAYOUTS, allocated

pytestmark = pytest.mark.pure


aten = torch.ops.aten
SLACK_BYTES = 256

dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)


@dtypes
@pytest.mark.parametrize("layout", ["dense", "narrowed", "permuted"])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_norms_of_few_columns(width: int, layout: str, dtype: torch.dtype) -> None:
    x = LAYOUTS[layout](torch.randn(4, 1000, width).to(dtype))
    for normalized in ([width], [1000, width]):
        weights = (None, torch.ones(normalized).to(dtype), torch.ones(normalized))
        calls = [*((aten.rms_norm.default, [x, normalized, weight]) for weight in weights)]
        for target, args in (*calls, (aten.layer_norm.default, [x, normalized])):
            done = allocated(target, args, {})
            assert done.measured <= done.predicted <= done.measured + 0.05 * done.total + SLACK_BYTES, done


@dtypes
@pytest.mark.parametrize("layout", ["dense", "narrowed", "channels_last"])
@pytest.mark.parametrize("positions", [1, 5, 400])
def test_group_apply_of_short_rows(positions: int, layout: str, dtype: torch.dtype) -> None:
    x = LAYOUTS[layout](torch.randn(100, 16, positions, 1).to(dtype))
    stats, weight = ops.group_stats(x, 8), torch.rand(16).to(dtype)
    for scale, shift in itertools.product((None, weight), repeat=2):
        done = allocated(torch.ops.sicompiler.group_apply.default, [x, stats, scale, shift, 1e-5], {})
        assert done.measured <= done.predicted <= done.measured + 0.15 * done.total + SLACK_BYTES, done


@dtypes
def test_row_major_copies_of_a_transposed_matrix(dtype: torch.dtype) -> None:
    x, y = torch.randn(70, 90).to(dtype).t(), torch.randn(90, 70).to(dtype)
    calls: list[tuple[OpOverload, tuple[Any, ...]]] = [
        *((aten.contiguous.default, (x,)), (aten.reshape.default, (x, [900, 7])), (aten.ravel.default, (x,))),
        *((aten.flatten.using_ints, (x,)), (aten.copy.default, (y, x)), (aten.masked_fill.Scalar, (x, y > 0, 1.0))),
        *((aten.constant_pad_nd.default, (x, [0, 0, 1, 1])), (aten.softmax.int, (x, -1))),
        *((aten.slice_scatter.default, (torch.cat([y, y]), x, 0, 0, 90)), (aten.clone.default, (x,))),
    ]
    for target, args in calls:
        done = allocated(target, args, {})
        assert done.measured <= done.predicted, f"{target}: {done}"
    assert allocated(aten.contiguous.default, (x[:, :10],), {}).predicted == 0


@dtypes
@pytest.mark.parametrize("layout", ["dense", "narrowed", "permuted"])
@pytest.mark.parametrize("target", [aten.cummax.default, aten.cummin.default], ids=str)
def test_running_extremes_copy_nothing(target: OpOverload, layout: str, dtype: torch.dtype) -> None:
    x = LAYOUTS[layout](torch.randn(4, 30, 8).to(dtype))
    for dim in range(3):
        done = allocated(target, [x, dim], {})
        assert done.measured == done.predicted == 0, done
