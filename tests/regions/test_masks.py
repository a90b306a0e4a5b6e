"""Masks over tokens are made slice by slice, wherever in a graph they begin."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sicompiler.api import prepare
from sicompiler.capture import Program
from sicompiler.compiler.planner import Planner, rewrite
from sicompiler.planners.cut_positions import SMALL_GRAPH, births
from sicompiler.runtime.measure import measure_peak
from sicompiler.runtime.verify import errors
from sicompiler.testing import run_program

FRAMES, TOKENS, CHANNELS = 5, 160, 4
SLACK_BYTES = 2**12  # numbers and tables of a kernel, which no prediction counts


class CausalFrames(nn.Module):
    """Attention of tokens to those of their own frame and of earlier ones, amid more operators than a small graph has.

    Args:
        queries_first: whether a row of the mask belongs to a query when it is made; else it is transposed first.
    """

    def __init__(self, *, queries_first: bool = True) -> None:
        super().__init__()
        self.queries_first = queries_first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend.

        Args:
            x: [1, tokens, channels].
        """
        shift = x[:, :1]
        for _ in range(SMALL_GRAPH):
            shift = torch.sin(shift)
        x = x + shift
        frames = torch.arange(1, FRAMES + 1).repeat_interleave(TOKENS)
        keys, queries = torch.meshgrid(frames, frames, indexing="xy" if self.queries_first else "ij")
        mask = torch.where(keys <= queries, 0, -float("inf")).to(x.dtype)
        if not self.queries_first:
            mask = mask.transpose(0, 1)
        attended: torch.Tensor = F.scaled_dot_product_attention(x, x, x, attn_mask=mask[None])
        return attended + x


@lru_cache(maxsize=2)
def case(*, queries_first: bool) -> tuple[nn.Module, torch.Tensor, Program, Planner]:
    torch.manual_seed(0)
    module = CausalFrames(queries_first=queries_first).double()
    x = torch.randn(1, FRAMES * TOKENS, CHANNELS, dtype=torch.float64)
    return module, x, *prepare(module, (x,), {})


@pytest.mark.parametrize("queries_first", [True, False])
def test_no_mask_is_whole_at_the_floor(queries_first: bool) -> None:
    module, x, program, planner = case(queries_first=queries_first)
    mask_bytes = (FRAMES * TOKENS) ** 2 * x.dtype.itemsize
    plan = planner.plan(planner.floor()[0])
    assert planner.unsliced_bytes > mask_bytes > 20 * plan.predicted_peak_bytes
    with torch.no_grad():
        theirs = module(x)
    done = rewrite(program, plan)
    with measure_peak("cpu") as peak:
        ours = run_program(done, module, (x,), {})
    assert errors(ours, theirs)[1] <= 1e-12
    assert peak.bytes + planner.graph.facts.input_bytes <= plan.predicted_peak_bytes + SLACK_BYTES


def test_a_region_starts_where_the_mask_begins() -> None:
    graph = case(queries_first=True)[3].graph
    names = [str(graph.facts.nodes[p].target) for p in births(graph.view, int(graph.line.peak_bytes / 100))]
    assert names == ["aten.le.Tensor"], "the vectors are too small, and what follows is made of something big"
