"""Products of a batch with a weight that requires a gradient: the batch is made one matrix, by a copy if need be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sicompiler.facts.workspace.onednn import uses_small_products
from sicompiler.testing.checks import run_budgets
from tests.kernel_calls import Allocated, allocated

aten = torch.ops.aten
SLACK_BYTES = 2**10  # blocks of oneDNN

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "row-major": lambda x: x,
    "narrowed": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "transposed": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
}


def _is_close(done: Allocated, dtype: torch.dtype) -> bool:
    """Whether a prediction is close to what was measured, where products were measured to be close.

    On a CPU that multiplies bfloat16 without AMX they are a bound: of what oneDNN copies for it, no rule was found.
    """
    return uses_small_products(dtype) or done.predicted <= done.measured + 0.05 * done.total + SLACK_BYTES


@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_times_a_weight(layout: str, dtype: torch.dtype, requires_grad: bool) -> None:
    x = LAYOUTS[layout](torch.randn(10, 300, 32).to(dtype))
    weight = torch.randn(48, 32).to(dtype).requires_grad_(requires_grad)
    with torch.no_grad():
        calls = {
            "linear": allocated(aten.linear.default, [x, weight, weight[:, 0]], {}),
            "linear without bias": allocated(aten.linear.default, [x, weight], {}),
            "x @ w": allocated(aten.matmul.default, [x, weight.t()], {}),
        }
        if requires_grad:
            calls["w @ x"] = allocated(aten.matmul.default, [weight, x.transpose(1, 2)], {})
    for name, done in calls.items():
        assert done.measured <= done.predicted + SLACK_BYTES, (name, done)
        assert _is_close(done, dtype), (name, done)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("space", [(1200,), (31, 33), (9, 11, 13)], ids=str)
def test_a_linear_layer_over_the_channels_of_a_video(space: tuple[int, ...], dtype: torch.dtype, bias: bool) -> None:
    x = torch.randn(1, 24, *space).to(dtype).movedim(1, -1)
    weight = torch.randn(48, 24).to(dtype)
    done = allocated(aten.linear.default, [x, weight, weight[:, 0] if bias else None], {})
    assert done.measured <= done.predicted, done
    assert _is_close(done, dtype), done


@pytest.mark.parametrize(("rows", "columns"), [(17, 24), (24, 19), (33, 24)])
def test_an_einsum_of_a_transposed_factor(rows: int, columns: int) -> None:
    x, y = torch.randn(1, 12, rows).bfloat16().transpose(1, 2), torch.randn(1, columns, 12).bfloat16()
    done = allocated(aten.einsum.default, ["bnc,bmc->bnm", [x, y]], {})
    assert done.measured <= done.predicted, done
    assert _is_close(done, torch.bfloat16), done


# Shapes and strides of two factors: rows or columns of one entry, whose stride is not that of a row.
MATRICES = [
    (((9, 6, 1), (6, 1, 6)), ((2, 1), (1, 1))),
    (((1, 20), (2, 2)), ((20, 30), (1, 20))),
    (((3, 20, 1), (40, 1, 1)), ((3, 1, 20), (40, 40, 2))),
    (((3, 20, 1), (20, 1, 20)), ((3, 1, 20), (20, 20, 1))),
]


@pytest.mark.parametrize(("first", "second"), MATRICES, ids=str)
def test_rows_and_columns_of_one_entry(
    first: tuple[tuple[int, ...], tuple[int, ...]], second: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    x, y = (torch.ones(1000, dtype=torch.float64).as_strided(*factor) for factor in (first, second))
    if x.dim() == 3 and y.dim() == 2:
        done = allocated(aten.linear.default, [x, y, torch.ones(len(y), dtype=torch.float64)], {})
    else:
        done = allocated(aten.matmul.default, [x, y], {})
    assert done.measured <= done.predicted <= done.measured + 0.05 * done.total, done


class Turned(torch.nn.Module):
    """A linear layer over the channels of [n, c, l], as attention over images has it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(32, 48)

    def forward(self, x: Tensor) -> Tensor:
        """To [n, l, 48]."""
        y: Tensor = self.linear(x.transpose(1, 2))
        return y * 2


@pytest.mark.parametrize("requires_grad", [True, False])
def test_plans_of_a_module_whose_weights_require_gradients(requires_grad: bool) -> None:
    module = Turned().double().eval().requires_grad_(requires_grad)
    outcomes = run_budgets(module, (torch.randn(12, 32, 50, dtype=torch.float64),), {})
    assert [line for outcome in outcomes for line in outcome.problems()] == []
