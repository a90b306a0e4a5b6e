"""Random models: rewritten in any legal way they compute the same, within the memory that was predicted."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from sicompiler import testing
from sicompiler.api import prepare
from sicompiler.capture import Program
from sicompiler.compiler.analyzed_graph import AnalyzedGraph, make_outer, outer_loops
from sicompiler.compiler.planner import Planner, rewrite
from sicompiler.passes.outer import wrap_outer
from sicompiler.plan import Plan
from sicompiler.runtime.measure import measure_peak
from sicompiler.runtime.verify import errors
from tests.random_choices import Choose, for_choices, seeded

TOLERANCE = 1e-12  # of float64
SLACK_BYTES = 2**12  # numbers and tables of a kernel, which no prediction counts


def check_same(program: Program, module: torch.fx.GraphModule, args: Any, kwargs: Any) -> None:
    with torch.no_grad():
        theirs = module(*args, **kwargs)
    ours = testing.run_program(program, module, args, kwargs)
    assert torch.utils._pytree.tree_structure(ours) == torch.utils._pytree.tree_structure(theirs)
    absolute, relative, _ = errors(ours, theirs)
    # A random model may give nothing but rounding (the mean of one number taken away from it): values are of order one.
    assert min(absolute, relative) <= TOLERANCE, f"absolute error {absolute}, relative {relative}"


def check_text(module: torch.nn.Module) -> None:
    """The rewritten graph prints as Python that compiles, loops included."""
    for child in module.modules():
        if isinstance(child, torch.fx.GraphModule):
            compile(child.code, "rewritten", "exec")
            child.graph.lint()


def measured(program: Program, graph: AnalyzedGraph, module: torch.nn.Module, args: Any, kwargs: Any) -> int:
    """Measured peak of a run, inputs included."""
    with measure_peak("cpu") as peak:
        testing.run_program(program, module, args, kwargs)
    return peak.bytes + graph.facts.input_bytes


def test_any_legal_regions_keep_the_output() -> None:
    def check(choose: Choose) -> None:
        module, args, kwargs = testing.draw_module(choose, seeded(choose))
        graph = testing.legal_graph(module, args, kwargs)
        for _ in range(2):
            program = testing.rewritten(graph, testing.draw_regions(graph, choose))
            check_same(program, module, args, kwargs)
        check_text(program.graph_module)

    for_choices(check, seeds=60, deep=720)


def test_any_outer_loop_keeps_the_output() -> None:
    def check(choose: Choose) -> None:
        module, args, kwargs = testing.draw_module(choose, seeded(choose, 1, 4))
        graph = testing.legal_graph(module, args, kwargs)
        for loop, region in outer_loops(graph):
            outer = make_outer(graph, loop, region)
            inner = testing.rewritten(outer.graph, testing.draw_regions(outer.graph, choose))
            program = wrap_outer(graph.program, graph.view, region, outer.inner, inner)
            check_same(program, module, args, kwargs)
            check_text(program.graph_module)

    for_choices(check, seeds=30, deep=180)


@pytest.mark.parametrize("scale", [testing.SMALL, testing.LARGE], ids=["small", "large"])
def test_any_regions_stay_below_the_predicted_peak(scale: testing.Scale) -> None:
    def check(choose: Choose) -> None:
        module, args, kwargs = testing.draw_module(choose, seeded(choose, 1, 6), scale=scale)
        graph = testing.legal_graph(module, args, kwargs)
        for _ in range(2):
            regions = testing.draw_regions(graph, choose, hoisted_bytes=(2**20,))
            program = testing.rewritten(graph, regions)
            predicted = testing.predicted_peak(graph, regions)
            found = measured(program, graph, module, args, kwargs)
            assert found <= predicted + SLACK_BYTES, f"measured {found}, predicted {predicted}"

    for_choices(check, seeds=13, deep=150)


def budgets(planner: Planner) -> list[int]:
    """Unsliced, the floor, and between."""
    low, high = planner.floor()[0], planner.unsliced_bytes
    return [high, low, (low + high) // 2]


def test_plans_keep_the_output_within_any_budget() -> None:
    def check(choose: Choose) -> None:
        scale = choose((testing.SMALL, testing.LARGE))
        module, args, kwargs = testing.draw_module(choose, seeded(choose, 1, 6), scale=scale)
        program, planner = prepare(module, args, kwargs)
        inputs = planner.graph.facts.input_bytes
        for budget in budgets(planner):
            plan = planner.plan(budget)
            assert Plan.from_json(plan.to_json()) == plan
            assert plan.predicted_peak_bytes <= budget
            done = rewrite(program, plan)
            check_same(done, module, args, kwargs)
            check_text(done.graph_module)
            with measure_peak("cpu") as peak:
                testing.run_program(done, module, args, kwargs)
            found = peak.bytes + inputs + plan.weights_bytes
            assert found <= plan.predicted_peak_bytes + SLACK_BYTES, (
                f"measured {found}, predicted {plan.predicted_peak_bytes}"
            )
            if found - plan.weights_bytes > 2**20:
                assert found >= 0.7 * plan.predicted_peak_bytes, (
                    f"measured {found}, predicted {plan.predicted_peak_bytes}"
                )

    for_choices(check, seeds=20, deep=240)


@pytest.mark.parametrize("seed", [1489, 2005])
def test_a_seed_where_a_slice_shows_in_another_order_than_the_whole(seed: int) -> None:
    """A reshape that copies the whole may be a view of a slice; a batch of one is channels-last only by its strides."""
    generator = random.Random(seed)
    module, args, kwargs = testing.draw_module(generator.choice, seeded(generator.choice, 1, 1), scale=testing.LARGE)
    program, planner = prepare(module, args, kwargs)
    plan = planner.plan(planner.floor()[0])
    found = measured(rewrite(program, plan), planner.graph, module, args, kwargs) + plan.weights_bytes
    assert found <= plan.predicted_peak_bytes + SLACK_BYTES, f"measured {found}, predicted {plan.predicted_peak_bytes}"
