"""`flex_attention`: traced in plain operators, equal to the untouched model, sliced over batch, heads and queries."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import sicompiler
from sicompiler.capture import capture
from sicompiler.runtime.verify import errors
from sicompiler.testing import run_program

FLOAT64 = 1e-12
TOKENS, HEADS = 24, 2


class Attention(nn.Module):
    """Attends with functions of positions, which may read buffers; a block mask from outside, or made on the way."""

    def __init__(self, mask: Callable[..., Any] | None, score: Callable[..., Any] | None, inside: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv = nn.Linear(32, 96)
        self.register_buffer("document", torch.arange(TOKENS) // 8)
        self.register_buffer("slopes", torch.tensor([0.5, 0.25]))
        self.register_buffer("table", torch.rand(HEADS, TOKENS))
        self.register_buffer("strength", torch.tensor(0.5))
        self.double()
        self.mask, self.score, self.inside = mask, score, inside
        self.outside = None if mask is None or inside else self.block_mask()

    def block_mask(self) -> Any:
        assert self.mask is not None
        mask = self.mask
        return create_block_mask(lambda b, h, q, k: mask(self, b, h, q, k), None, None, TOKENS, TOKENS, device="cpu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.qkv(x).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        block_mask = self.block_mask() if self.inside and self.mask is not None else self.outside
        score = self.score
        score_mod = None if score is None else lambda s, b, h, i, j: score(self, s, b, h, i, j)
        out = flex_attention(q, k, v, score_mod=score_mod, block_mask=block_mask)
        assert isinstance(out, torch.Tensor)
        return out.transpose(1, 2).flatten(2)


def causal(m: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
    return q >= k


def document(m: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
    return (m.document[q] == m.document[k]) & (q >= k)


def by_batch_and_head(m: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
    return (q >= k) | ((h == 1) & (b == 0))


def nothing_for_some(m: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
    return (q > 3) & (q >= k)


def slopes(m: Any, s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s + m.slopes[h] * (j - i) * m.strength


def table(m: Any, s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return torch.tanh(s / 2) * 2 + m.table[h, j]


CASES: dict[str, tuple[Any, Any, bool]] = {
    "plain": (None, None, False),
    "causal": (causal, None, False),
    "documents": (document, None, False),
    "made inside": (document, slopes, True),
    "by batch and head": (by_batch_and_head, None, False),
    "rows without anything": (nothing_for_some, table, False),
    "scores": (None, slopes, False),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_equal_to_the_untouched_model_and_follows_its_buffers(case: str) -> None:
    model = Attention(*CASES[case]).eval()
    x = torch.randn(2, TOKENS, 32, dtype=torch.float64)
    program = capture(model, (x,))
    for change in (1.0, 3.0):
        model.get_buffer("slopes").mul_(change)
        with torch.no_grad():
            theirs = model(x)
        ours = run_program(program, model, (x,), {})
        assert ours.stride() == theirs.stride()
        assert errors(ours, theirs)[1] <= FLOAT64


SLOW = [pytest.param(case, marks=pytest.mark.slow) for case in ("plain", "by batch and head")]


@pytest.mark.parametrize("case", ["scores", *SLOW])
def test_it_is_sliced_to_a_floor_far_below_the_unsliced_peak(case: str) -> None:
    model = Attention(*CASES[case]).eval()
    twin = copy.deepcopy(model)
    x = torch.randn(2, TOKENS, 32, dtype=torch.float64)
    with pytest.raises(sicompiler.OverBudget) as caught:
        sicompiler.compile_for_budget(model, "1KiB", example_inputs=((x,), {}), offload="none")
    sicompiler.compile_for_budget(model, f"{caught.value.floor_bytes}B", example_inputs=((x,), {}), offload="none")
    with torch.no_grad():
        assert errors(model(x), twin(x))[1] <= FLOAT64
    plan = sicompiler.report(model).plans[0]
    assert plan.predicted_peak_bytes - plan.weights_bytes < 0.8 * (plan.unsliced_peak_bytes - plan.weights_bytes)


def test_grouped_queries_and_the_statistics_it_may_give() -> None:
    class Grouped(nn.Module):
        def forward(self, q: torch.Tensor, kv: torch.Tensor) -> Any:
            return flex_attention(q, kv, kv * 2, enable_gqa=True, return_lse=True, scale=0.3)

    q, kv = torch.randn(2, 4, 6, 16, dtype=torch.float64), torch.randn(2, 2, 5, 16, dtype=torch.float64)
    program = capture(Grouped().eval(), (q, kv))
    with torch.no_grad():
        theirs = Grouped()(q, kv)
    assert errors(run_program(program, Grouped(), (q, kv), {}), theirs)[1] <= FLOAT64


def mixes_positions(m: Any, s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s + m.table[h].cumsum(0)[j]


def test_a_body_that_mixes_positions_is_refused_with_the_line() -> None:
    model = Attention(None, mixes_positions, False).eval()
    with pytest.raises(sicompiler.CaptureError, match=r"more than one entry.*\n.*test_flex_attention\.py:\d+"):
        capture(model, (torch.randn(2, TOKENS, 32, dtype=torch.float64),))
