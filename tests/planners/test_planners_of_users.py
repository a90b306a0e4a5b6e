"""Planners of users: functions or registered names, whose answers are looked at before anything is carried out."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sicompiler
from sicompiler import BadInput, Plan, Problem, Solution
from sicompiler.cache.store import Store
from sicompiler.compiler.prepare import prepare
from sicompiler.planners import dp, registry
from sicompiler.planners.registry import chosen_planner
from tests.command_line import command_line
from tests.source_tree import ROOT

BUDGET = "5 MiB"


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 256), nn.GELU(), nn.Linear(256, 32)).eval()


@pytest.fixture
def inputs() -> torch.Tensor:
    return torch.randn(1, 4096, 32)


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`register_planner`, undone after the test."""
    monkeypatch.setattr(registry, "_REGISTERED", {})
    return sicompiler.register_planner


def fewest_bytes(problem: Problem, budget_bytes: int) -> Solution | None:
    """A planner as a user writes it: the one region with the lowest peak."""
    fitting = [
        problem.solution([(row, index)])
        for row, candidate in enumerate(problem.candidates)
        for index in range(len(candidate.lengths))
    ]
    return min((s for s in fitting if s.peak_bytes <= budget_bytes), key=lambda s: s.peak_bytes, default=None)


def compiled(model: nn.Module, inputs: torch.Tensor, planner: Any) -> Plan:
    sicompiler.compile_for_budget(model, BUDGET, example_inputs=((inputs,), {}), planner=planner, cache=False)
    return sicompiler.report(model).plans[0]


def test_a_function_chooses_the_regions(model: nn.Module, inputs: torch.Tensor) -> None:
    expected = model(inputs)
    plan = compiled(model, inputs, fewest_bytes)
    assert plan.planner == f"{__name__}.fewest_bytes"
    assert len(plan.regions) == 1
    assert torch.allclose(model(inputs), expected, atol=1e-5)
    sicompiler.release(model)
    fastest = compiled(model, inputs, "dp")
    assert plan.predicted_peak_bytes < fastest.predicted_peak_bytes
    assert plan.seconds > fastest.seconds


def test_a_registered_name_is_found_in_python_and_by_the_command_line(
    model: nn.Module, inputs: torch.Tensor, register: Any
) -> None:
    register("fewest-bytes")(fewest_bytes)
    assert compiled(model, inputs, "fewest-bytes").planner == "fewest-bytes"
    with pytest.raises(BadInput, match="known planners: dp, exhaustive, greedy, fewest-bytes"):
        compiled(model, inputs, "fewest_bytes")


@pytest.mark.parametrize("name", ["dp", "two words", "a:b", "", 3])
def test_names_are_single_words_that_are_free(name: Any, register: Any) -> None:
    with pytest.raises(BadInput):
        register(name, fewest_bytes)


def test_what_can_not_be_called_is_no_planner(register: Any) -> None:
    with pytest.raises(BadInput, match="can't be called"):
        register("seven", 7)
    with pytest.raises(BadInput, match=r"planner is a name \(dp, exhaustive, greedy\) or a function"):
        chosen_planner(7)  # type: ignore[arg-type]


def _above(problem: Problem, budget_bytes: int) -> Solution:
    return problem.solution([])


def _beautified(problem: Problem, budget_bytes: int) -> Solution:
    return replace(problem.solution([]), peak_bytes=0)


def _overlapping(problem: Problem, budget_bytes: int) -> Solution:
    return problem.solution([(0, 0), (0, 0)])


def _foreign(problem: Problem, budget_bytes: int) -> Solution:
    first = problem.candidates[0]
    made_up = replace(first, peak_bytes=np.zeros_like(first.peak_bytes))
    return Solution((dp.Choice(made_up, 0),), 0, 0.0, 0)


def _too_far(problem: Problem, budget_bytes: int) -> Solution:
    return Solution((dp.Choice(problem.candidates[0], 99),), 0, 0.0, 0)


def _a_number(problem: Problem, budget_bytes: int) -> Any:
    return 3


REFUSED = {
    _above: r"_above' returned a plan above the budget: its activations peak at 8\.5 MiB",
    _beautified: "above the budget",
    _overlapping: "regions that overlap",
    _foreign: "none of problem.candidates",
    _too_far: "slice length number 99 of the region",
    _a_number: "returned a int; it returns problem.solution",
    lambda problem, budget_bytes: None: r"finds no plan of Sequential within 5 MiB, though there is one: the floor is",
}


@pytest.mark.parametrize("planner", REFUSED)
def test_what_is_no_plan_within_the_budget_is_refused_and_the_model_is_as_it_was(
    planner: Any, model: nn.Module, inputs: torch.Tensor
) -> None:
    before = dict(model.__dict__)
    with pytest.raises(BadInput, match=REFUSED[planner]):
        compiled(model, inputs, planner)
    assert model.__dict__ == before


def test_a_problem_can_not_be_changed(model: nn.Module, inputs: torch.Tensor) -> None:
    def careless(problem: Problem, budget_bytes: int) -> Solution | None:
        problem.peaks.sort()
        return None

    with pytest.raises(ValueError, match="read-only"):
        compiled(model, inputs, careless)


def test_a_plan_says_its_planner_and_one_of_ours_is_written_as_before(model: nn.Module, inputs: torch.Tensor) -> None:
    plan = compiled(model, inputs, fewest_bytes)
    assert Plan.from_json(plan.to_json()) == plan
    ours = replace(plan, planner="dp")
    assert '"planner"' not in ours.to_json()
    assert Plan.from_json(ours.to_json()) == ours


def test_answers_on_disk_are_told_apart_by_what_a_planner_does(
    model: nn.Module, inputs: torch.Tensor, tmp_path: Path
) -> None:
    """A function of the same name that reads another number is another planner; one that can't be told is not kept."""
    store = Store(tmp_path)
    asked: list[int] = []

    def make(calls: list[int], take: int) -> Any:
        def planner(problem: Problem, budget_bytes: int) -> Solution | None:
            if take < 0:
                calls.append(take)
            return dp.solve(problem, budget_bytes)

        return planner

    _, planner = prepare(model, (inputs,), {}, store=store)

    def entries(chooser: Any) -> int:
        before = set(tmp_path.rglob("*.entry"))
        planner.plan(5 * 2**20, planner=chooser)
        return len(set(tmp_path.rglob("*.entry")) - before)

    assert entries("dp") > 0  # what the graph peaks at, too
    assert entries("dp") == 0
    assert entries(make(asked, 1)) == 1
    assert entries(make(asked, 1)) == 0
    assert entries(make(asked, 2)) == 1
    assert entries(functools.partial(fewest_bytes)) == 1
    assert entries(lambda p, b: dp.solve(p, b) if np.random.default_rng is not None else asked) == 1


@pytest.mark.slow
def test_the_next_process_finds_the_plan_of_the_same_planner_only(tmp_path: Path) -> None:
    """Two processes with one source share the plan; when the source of the planner is edited, it is asked again."""
    script = """
        import sys, torch, sicompiler
        from sicompiler.planners import dp

        def planner(problem, budget_bytes):
            print("asked", end=" ")
            return dp.solve(problem, budget_bytes)

        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(32, 256), torch.nn.GELU(), torch.nn.Linear(256, 32)).eval()
        x = torch.randn(1, 4096, 32)
        sicompiler.compile_for_budget(model, "5 MiB", example_inputs=((x,), {}), planner=planner)
        print("planned", end=" ")
    """
    file = tmp_path / "script.py"

    def run(text: str) -> str:
        file.write_text(textwrap.dedent(text), encoding="utf-8")
        os.utime(file, (1e9, 1e9))  # what was written since a process began is not kept
        environment = os.environ | {"SICOMPILER_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, str(file)], env=environment, capture_output=True, text=True, check=True)
        return done.stdout.split("planned")[0].strip()

    assert run(script)
    assert run(script) == ""
    assert run(script.replace("asked", "asked again")) != ""


def test_the_command_line_takes_names_and_functions(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan = command_line(capsys, monkeypatch, "plan", "tests.cli_models:mlp", "--no-untouched")
    fast, slow = tmp_path / "fast.json", tmp_path / "slow.json"
    assert plan("--gb", "100 KiB", "-o", fast).status == 0
    assert plan("--gb", "100 KiB", "-o", slow, "--planner", f"{__name__}:fewest_bytes").status == 0
    assert Plan.load(slow).planner == f"{__name__}.fewest_bytes"
    assert Plan.load(slow).predicted_peak_bytes < Plan.load(fast).predicted_peak_bytes
    unknown = plan("--gb", "100 KiB", "--planner", "ilp")
    assert (unknown.status, "known planners: dp, exhaustive, greedy" in unknown.err) == (2, True)
    assert "has no 'gone'" in plan("--gb", "100 KiB", "--planner", f"{__name__}:gone").err
