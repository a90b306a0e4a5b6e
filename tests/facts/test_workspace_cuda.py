"""The estimates of workspace on CUDA: held to be ordered sensibly, no more, until a device has measured them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._ops import OpOverload

from sicompiler.device import device_kind
from sicompiler.facts.storages import TensorFact
from sicompiler.facts.workspace.table import workspace_bytes
from sicompiler.units import KIB

pytestmark = pytest.mark.pure


aten = torch.ops.aten


def _fact(tensor: Tensor) -> TensorFact:
    return TensorFact(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, 0)


def _cuda(target: OpOverload, operands: list[Tensor], result: Tensor) -> int:
    return workspace_bytes(target, [_fact(t) for t in operands], [_fact(result)], "cuda")


def test_cuda_estimates() -> None:
    meta = partial(torch.empty, dtype=torch.float16, device="meta")
    x, weight, y = meta(2, 64, 72, 128), meta(64, 64, 3, 3), meta(2, 64, 72, 128)
    nbytes: Callable[[Tensor], int] = lambda t: t.numel() * t.element_size()  # noqa: E731
    assert _cuda(aten.conv2d.default, [x, weight], y) == nbytes(x) + nbytes(weight) + nbytes(y)
    permuted = x.transpose(0, 1)
    assert _cuda(aten.group_norm.default, [x], x) < 64 * KIB
    assert _cuda(aten.group_norm.default, [permuted], x) >= nbytes(x)
    q = meta(2, 5, 9216, 64)
    assert _cuda(aten.scaled_dot_product_attention.default, [q, q, q], q) == 2 * 5 * 9216 * 4
    scores = 2 * 5 * 9216 * 9216 * 8
    double = q.double()
    assert _cuda(aten.scaled_dot_product_attention.default, [double] * 3, double) >= 2 * scores
    assert _cuda(aten.silu.default, [x], x) == 0
    assert _cuda(aten.linear.default, [q, meta(64, 64)], q) == 0
    assert device_kind("cuda").library_bytes > 0
    assert device_kind("cpu").library_bytes == 0


@pytest.mark.parametrize(("dtype", "fused"), [(torch.float16, True), (torch.float32, True), (torch.bfloat16, False)])
def test_before_ampere_attention_in_bfloat16_holds_all_scores(dtype: torch.dtype, fused: bool) -> None:
    q = torch.empty(2, 5, 1024, 64, dtype=dtype, device="meta")
    target, facts = aten.scaled_dot_product_attention.default, [_fact(q)] * 3
    scores = 2 * 5 * 1024 * 1024 * 4
    found = workspace_bytes(target, facts, [_fact(q)], "cuda-before-ampere")
    assert (found < scores) == fused
    assert workspace_bytes(target, facts, [_fact(q)], "cuda") < scores
    silu = workspace_bytes(aten.silu.default, [_fact(q)], [_fact(q)], "cuda-before-ampere")
    assert silu == 0, "other operators are those of CUDA"
