"""Planners of users in whole pipelines: handed to every component, and the same for those that share one."""

from __future__ import annotations

import pytest

import sicompiler
from sicompiler import BadInput, Problem, Solution
from sicompiler.planners import dp
from tests.mini_pipeline import MiniPipeline, MiniUNet, close, mini, picture

SMALL = "150KiB"


def test_a_pipeline_hands_its_planner_to_all_components() -> None:
    asked: list[int] = []

    def watched(problem: Problem, budget_bytes: int) -> Solution | None:
        asked.append(budget_bytes)
        return dp.solve(problem, budget_bytes)

    pipe = mini()
    expected = pipe(picture())
    sicompiler.compile_for_budget(pipe, SMALL, planner=watched, cache=False)
    assert close(pipe(picture()), expected)
    plans = [plan for part in sicompiler.report(pipe).components.values() for plan in part.plans]
    assert asked
    assert {plan.planner for plan in plans} == {f"{__name__}.{watched.__qualname__}"}


def test_a_planner_that_finds_nothing_is_no_budget_that_is_too_small() -> None:
    pipe = mini()
    sicompiler.compile_for_budget(pipe, SMALL, planner=lambda problem, budget_bytes: None, cache=False)
    with pytest.raises(BadInput, match=r"finds no plan of .* though there is one: the floor is"):
        pipe(picture())


def test_pipelines_that_share_a_component_need_one_planner() -> None:
    one = mini()
    shared = {name: part for name, part in one.components.items() if name != "unet" and part is not None}
    other = MiniPipeline(**shared, unet=MiniUNet(gain=2.0))
    sicompiler.compile_for_budget(one, SMALL, planner="greedy", cache=False)
    with pytest.raises(BadInput, match=r"is shared with a MiniPipeline that was compiled with planner='greedy'"):
        sicompiler.compile_for_budget(other, SMALL, cache=False)
    assert "_call__" not in vars(other)
    sicompiler.compile_for_budget(one, SMALL, planner="dp", cache=False)  # the same pipeline may change its mind
    sicompiler.compile_for_budget(other, SMALL, cache=False)
