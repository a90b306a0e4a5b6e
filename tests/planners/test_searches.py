"""Answers are as lazy as budgets allow: what is searched, what is known, and what a second budget finds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sicompiler
from sicompiler import compiled_module
from sicompiler.compiler.planner import rewrite
from sicompiler.compiler.prepare import prepare
from sicompiler.compiler.searches import Searches
from sicompiler.device import device_kinds
from sicompiler.planners.dp import Problem, solve
from sicompiler.planners.gains import most_saved_seconds
from sicompiler.runtime.verify import errors
from sicompiler.testing import run_program


class Feeds(nn.Module):
    """A feed-forward whose hidden value is eight times its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 8 * width), nn.Linear(8 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(nn.functional.gelu(self.up(x)))  # type: ignore[no-any-return]


def feeds(width: int = 16, tokens: int = 512) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return Feeds(width).double().eval(), torch.randn(2, tokens, width, dtype=torch.float64)


def test_what_fits_unsliced_is_not_searched() -> None:
    model, x = feeds()
    _, planner = prepare(model, (x,), {})
    plan = planner.plan(planner.unsliced_bytes, offload="auto")
    assert plan.regions == ()
    assert plan.floor_bytes is None
    assert isinstance(planner.source, Searches)
    assert not {"whole", "on_device", "offloaded"} & planner.source.__dict__.keys()


def test_offloading_is_searched_last() -> None:
    model, x = feeds()
    _, planner = prepare(model, (x,), {})
    floor = planner.floor()[0]
    assert planner.plan(floor, offload="auto").floor_bytes == floor
    assert "offloaded" not in planner.source.__dict__
    with pytest.raises(sicompiler.OverBudget):
        planner.plan(1024, offload="auto")
    assert "offloaded" in planner.source.__dict__


def test_the_floor_beside_a_plan_is_that_of_its_kind() -> None:
    model, x = feeds(width=64)
    _, planner = prepare(model, (x,), {})
    resident = planner.plan(planner.floor()[0], offload="auto")
    offloaded = planner.plan(planner.floor("auto")[0], offload="auto")
    assert offloaded.uses_offload
    assert planner.floor_of(resident)() == planner.floor()
    assert planner.floor_of(offloaded)() == planner.floor("auto")


def test_every_second_is_in_a_stage() -> None:
    model, x = feeds()
    _, planner = prepare(model, (x,), {})
    assert planner.plan(planner.unsliced_bytes).timings.keys() == {"capture", "analyse", "choose"}
    assert planner.plan(planner.floor()[0]).timings.keys() == {"capture", "analyse", "regions", "choose"}


@pytest.mark.parametrize("width", [16, 64])
@pytest.mark.parametrize("device", device_kinds())
def test_the_bound_is_above_what_loops_save(device: str, width: int) -> None:
    """Also where slices pay: large hidden values that stay in the cache piece by piece."""
    model, x = feeds(width, tokens=2**13)
    _, planner = prepare(model, (x,), {}, device_type=device)
    unsliced = planner.source.unsliced
    whole = unsliced.problem.unsliced_seconds
    best = planner.source.whole.problem
    saved = whole - min(whole, seconds_of(best, planner.unsliced_bytes))
    assert most_saved_seconds(unsliced.evaluator) >= saved - 1e-12


def seconds_of(problem: Problem, budget: int) -> float:
    """Of the fastest path."""
    found = solve(problem, budget)
    assert found is not None
    return found.seconds


def test_one_analysis_serves_every_plan() -> None:
    """Carrying a plan out leaves what it was made from as it was."""
    model, x = feeds()
    _, planner = prepare(model, (x,), {})
    budgets = [planner.floor()[0], planner.unsliced_bytes, planner.floor()[0]]
    for budget in budgets:
        done = rewrite(planner.analysis, planner.plan(budget))
        with torch.no_grad():
            assert errors(run_program(done, model, (x,), {}), model(x))[1] <= 1e-12


def test_a_second_budget_captures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = feeds()
    sicompiler.compile_for_budget(model, "1GiB", example_inputs=((x,), {}))
    state = compiled_module.installed_state(model)
    assert state is not None

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("captured again")

    monkeypatch.setattr(compiled_module, "prepare", refuse)
    state.compiled.clear()
    state.budget_bytes = next(iter(state.planners.values())).floor()[0]
    with torch.no_grad():
        ours = model(x)
    assert next(iter(state.compiled.values())).plan.regions
    sicompiler.release(model)
    with torch.no_grad():
        assert errors(ours, model(x))[1] <= 1e-12
