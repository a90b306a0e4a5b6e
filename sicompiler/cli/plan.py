"""`sicompiler plan`."""

from __future__ import annotations

import resource
import sys
from dataclasses import replace
from pathlib import Path

from sicompiler.cli import pipelines
from sicompiler.cli.files import check_file, save
from sicompiler.cli.frontier import frontier
from sicompiler.cli.options import ModelOptions
from sicompiler.cli.output import Progress, json_rows, note, show, show_json
from sicompiler.cli.work import find, planner_of, prepare, untouched_bytes
from sicompiler.compiler.planner import Offload, Planner
from sicompiler.errors import BadInput, OverBudget
from sicompiler.plan import Plan
from sicompiler.planners.registry import ChosenPlanner
from sicompiler.reports.summary import frontier_table, plan_tables, summary
from sicompiler.units import format_bytes, parse_bytes
from sicompiler.zoo.pipelines import is_pipeline_name


def run(
    options: ModelOptions, gb: str | None, output: Path | None, *, memory: bool, as_json: bool, untouched: bool = True
) -> int:
    """Plan and print.

    Raises:
        OverBudget: no plan fits; the plan at the floor has been printed.
    """
    if is_pipeline_name(options.model):
        if output is not None or memory:
            raise BadInput(
                f"{options.model} is a pipeline: --output and --memory are for plans of one model; name a preset or "
                "the folder of one of its components"
            )
        return pipelines.run(options, gb, as_json=as_json, untouched=untouched)
    budget, chooser = None if gb is None else parse_bytes(gb), planner_of(options)
    output = check_file(output, "the plan")
    with Progress() as progress:
        target = find(options)
        _, planner = prepare(target, progress)
        rows = frontier(planner, progress, options.offloading, chooser) if budget is None else []
        plan, refused = _planned(planner, budget, options.offloading, chooser)
        eager_bytes: int | None = None
        if untouched:
            eager_bytes, seconds = untouched_bytes(target, planner, progress)
            plan = replace(plan, timings={**plan.timings, "untouched": seconds})
    if as_json:
        found = summary(plan, eager_bytes)
        if budget is None:
            found["frontier"] = json_rows(rows)
        if memory:
            found["host_peak_bytes"] = host_peak_bytes()
        show_json(found)
    else:
        show(*plan_tables(plan, eager_bytes), *([frontier_table(rows)] if rows else []))
        if memory:
            note(f"planning took up to {format_bytes(host_peak_bytes())} of host memory")
    if output is not None and refused is None:
        save(output, plan.to_json() + "\n", "the plan")
        if not as_json:
            note(f"saved {output}")
    if refused is not None:
        raise refused
    return 0


def _planned(
    planner: Planner, budget: int | None, offload: Offload, chooser: ChosenPlanner
) -> tuple[Plan, OverBudget | None]:
    """The plan for a budget, or for the unsliced peak where none is given; that at the floor, and why, if none fits."""
    refused: OverBudget | None = None
    try:
        wanted = planner.unsliced_bytes if budget is None else budget
        plan = planner.plan(wanted, planner=chooser, offload=offload)
    except OverBudget as error:
        refused = error
        plan = replace(planner.plan(error.floor_bytes, offload=offload), budget_bytes=error.budget_bytes)
    if budget is None:  # the frontier has searched for it
        floor_bytes, culprit = planner.floor("auto" if plan.uses_offload else "none")
        plan = replace(plan, floor_bytes=floor_bytes, floor_operator=culprit)
    return plan, refused


def host_peak_bytes() -> int:
    """The most memory this process has held, as the operating system counts."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
