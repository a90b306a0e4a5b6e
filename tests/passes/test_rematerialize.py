"""Rematerialize: what waits for its own statistics is made again, and only where a budget asks for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sicompiler import testing
from sicompiler.api import prepare
from sicompiler.compiler.planner import rewrite
from sicompiler.compiler.search import rematerialized_graph
from sicompiler.facts.calls import takes_statistics
from sicompiler.plan import Plan
from sicompiler.planners import cut_positions
from sicompiler.planners.dp import floor
from sicompiler.runtime.measure import measure_peak
from sicompiler.runtime.verify import errors

SLACK_BYTES = 2**12  # numbers and tables of a kernel, which no prediction counts


class Level(nn.Module):
    """The last level of a decoder: upsampled channels that a norm and a shortcut read."""

    def __init__(self) -> None:
        super().__init__()
        # Narrow kernels: on the CPU the unfolded input of a wide one would be all of the peak.
        self.up, self.norm = nn.Conv2d(12, 12, (3, 1), padding=(1, 0)), nn.GroupNorm(3, 12)
        self.first, self.second = nn.Conv2d(12, 8, 1), nn.Conv2d(8, 8, 1)
        self.between, self.shortcut = nn.GroupNorm(2, 8), nn.Conv2d(12, 8, 1)

    def forward(self, x: torch.Tensor) -> Any:
        wide = self.up(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        narrow = self.first(F.silu(self.norm(wide)))
        return self.second(F.silu(self.between(narrow))) + self.shortcut(wide)


def test_a_value_is_made_again_for_its_readers_behind_its_statistics() -> None:
    torch.manual_seed(0)
    graph = testing.legal_graph(Level().double().eval(), (torch.randn(1, 12, 64, 48, dtype=torch.float64),), {})
    again = rematerialized_graph(graph)
    assert again is not None
    names = [str(node.target) for node in again.facts.nodes]
    assert names.count("aten.upsample_nearest2d.vec") == 2, "for its statistics, and for the norm and the shortcut"
    assert rematerialized_graph(testing.legal_graph(nn.GroupNorm(2, 4), (torch.randn(1, 4, 8, 8),), {})) is None


class Norms(nn.Module):
    """A norm that goes over the result of another, in another order: the second chain runs through a copy."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = F.group_norm(F.interpolate(x, scale_factor=2.0, mode="nearest"), 2)
        return F.group_norm(first.permute(0, 2, 1, 3).contiguous(), 2)


def test_a_chain_may_run_through_a_copy() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 16, 12, dtype=torch.float64)
    program, planner = prepare(Norms(), (x,), {})
    plan = planner.plan(planner.floor()[0])
    assert errors(testing.run_program(rewrite(program, plan), Norms(), (x,), {}), Norms()(x))[1] <= 1e-12


def test_what_is_made_again_is_made_in_the_loop_behind_the_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    case = Level().double().eval(), (torch.randn(1, 12, 64, 48, dtype=torch.float64),)
    small = prepare(*case, {})[1]
    monkeypatch.setattr(cut_positions, "SMALL_GRAPH", 0)  # only deep cuts for halos, as in a large graph
    large = prepare(*case, {})[1]
    again = large.searches[-1]
    facts, solution = again.graph.facts, again.lowest
    taken = next(p for p, node in enumerate(facts.nodes) if takes_statistics(node))
    assert taken + 1 in cut_positions.deep_cuts(again.graph.view, again.graph.line)
    assert any(choice.candidate.stop == taken + 1 for choice in solution.choices), (
        "its copy is not made before the loop"
    )
    assert large.floor()[0] <= 1.05 * small.floor()[0]


def test_at_the_floor_the_wide_value_is_made_again() -> None:
    torch.manual_seed(0)
    module, x = Level().double().eval(), torch.randn(1, 12, 64, 48, dtype=torch.float64)
    program, planner = prepare(module, (x,), {})
    assert not planner.plan(planner.unsliced_bytes).rematerialized, "it costs time, which a large budget saves"
    plan = planner.plan(planner.floor()[0])
    assert plan.rematerialized
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.predicted_peak_bytes - plan.weights_bytes < 0.9 * floor(planner.searches[0].problem).peak_bytes
    done = rewrite(program, plan)
    with torch.no_grad():
        theirs = module(x)
    with measure_peak("cpu") as peak:
        ours = testing.run_program(done, module, (x,), {})
    assert errors(ours, theirs)[1] <= 1e-12
    found = peak.bytes + planner.graph.facts.input_bytes + plan.weights_bytes
    assert found <= plan.predicted_peak_bytes + SLACK_BYTES
    assert plan.fits
