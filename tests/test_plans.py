"""Plans: carried out on the graph they count, or refused as `StalePlan`; never other regions, never another error."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sicompiler
from sicompiler import Plan, cost, region, study
from sicompiler.api import prepare
from sicompiler.axes import registry
from sicompiler.axes.factor_map import FactorMap
from sicompiler.capture import Program
from sicompiler.compiler import Planner, rewrite
from sicompiler.facts import workspace
from sicompiler.passes import manager
from sicompiler.planners import tally
from sicompiler.search import basis, search
from sicompiler.search.restore import check_prediction, restore
from sicompiler.study import Graph
from tests import test_recompute as recompute
from tests.source_tree import library_modules

Inputs = tuple[torch.Tensor, ...]


class Level(nn.Module):
    """Group norm of an upsampled value: its plans slice, rematerialize, loop over samples, and use far memory."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.up = nn.Conv2d(4, 12, 3, padding=1), nn.Upsample(scale_factor=2)
        self.wide, self.norm = nn.Conv2d(12, 12, 3, padding=1), nn.GroupNorm(4, 12)
        self.out = nn.Conv2d(12, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.out(nn.functional.silu(self.norm(self.wide(self.up(self.inp(x))))))
        return y


class Tower(nn.Module):
    """Linear layers with large weights: its plans stream them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(96, 96) for _ in range(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.sin(layer(x)) + x
        return x


@pytest.fixture(scope="module")
def level() -> tuple[Program, Planner]:
    torch.manual_seed(0)
    return prepare(Level().double().eval(), (torch.randn(2, 4, 24, 20, dtype=torch.float64),), {})


@pytest.fixture(scope="module")
def single() -> tuple[Program, Planner]:
    """One sample: no outer loop, values are rematerialized."""
    torch.manual_seed(0)
    return prepare(recompute.Level().double().eval(), (torch.randn(1, 12, 64, 48, dtype=torch.float64),), {})


@pytest.fixture(scope="module")
def tower() -> tuple[Program, Planner]:
    torch.manual_seed(0)
    return prepare(Tower().double().eval(), (torch.randn(1, 64, 96, dtype=torch.float64),), {})


def plans_of(planner: Planner) -> list[Plan]:
    """Plans for budgets from the floor with far memory to the unsliced peak, without those that repeat."""
    lowest, top = planner.floor("auto")[0], planner.unsliced_bytes
    budgets = [lowest + (top - lowest) * part // 6 for part in range(7)] + [planner.floor()[0]]
    found = {replace(p, budget_bytes=0): p for b in budgets for p in [planner.plan(b, far_memory="auto")]}
    return list(found.values())


@pytest.fixture(scope="module")
def cases(
    level: tuple[Program, Planner], single: tuple[Program, Planner], tower: tuple[Program, Planner]
) -> list[tuple[Program, Plan]]:
    """Plans of every kind, each with the program it is of."""
    found = [(program, plan) for program, planner in (level, single, tower) for plan in plans_of(planner)]
    assert any(plan.outer for _, plan in found)
    assert any(plan.recomputed for _, plan in found)
    assert any(plan.spilled for _, plan in found)
    assert any(plan.streamed and plan.prefetched for _, plan in found)
    assert any(plan.regions for _, plan in found)
    return found


def legal(program: Program, plan: Plan) -> Graph:
    return study.study(manager.run_stage("legal", manager.run_stage("clean", program)), plan.device)


def test_what_a_plan_predicts_is_worked_out_again_to_the_byte(cases: list[tuple[Program, Plan]]) -> None:
    for program, plan in cases:
        read = Plan.from_json(plan.to_json())
        assert read == plan
        restored = restore(legal(program, read), read)
        check_prediction(restored, read)
        assert [(r.start, r.stop) for r, _ in restored.regions] == [(r.start, r.stop) for r in plan.regions]
