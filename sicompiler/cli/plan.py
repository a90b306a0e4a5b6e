"""`sicompiler plan`."""

from __future__ import annotations

import resource
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sicompiler.cards import card_in
from sicompiler.cli import pipelines
from sicompiler.cli.files import check_file, save
from sicompiler.cli.frontier import frontier
from sicompiler.cli.options import ModelOptions
from sicompiler.cli.output import Progress, json_rows, note, quiet, show, show_json
from sicompiler.cli.work import find, planner_of, prepare, untouched_bytes
from sicompiler.compiler.planner import Offload, Planner
from sicompiler.compiler.reserve import lowest_reserving, plan_reserving, with_reserved
from sicompiler.errors import BadInput, OverBudget
from sicompiler.plan import Plan
from sicompiler.planners.registry import ChosenPlanner
from sicompiler.replay.run import traced_run, unsliced_run
from sicompiler.replay.snapshot import write_snapshot
from sicompiler.reports.summary import frontier_table, plan_tables, summary
from sicompiler.units import format_bytes, parse_bytes
from sicompiler.zoo.pipelines import is_pipeline_name


@dataclass(frozen=True)
class Saved:
    """Files to write beside what is printed.

    Attributes:
        plan: as JSON.
        snapshot: of a run, for torch's memory viewer.
    """

    plan: Path | None = None
    snapshot: Path | None = None


def run(
    options: ModelOptions, gb: str | None, saved: Saved, *, memory: bool, as_json: bool, untouched: bool = True
) -> int:
    """Plan and print.

    Raises:
        OverBudget: no plan fits; the plan at the floor has been printed.
    """
    card = None if gb is None else card_in(gb)
    if card is not None and not as_json:
        note(f"the budget is that of a card: {card}")
    if is_pipeline_name(options.model):
        if saved != Saved() or memory:
            raise BadInput(
                f"{options.model} is a pipeline: --output, --snapshot and --memory are for plans of one model; name a "
                "preset or the folder of one of its components"
            )
        return pipelines.run(options, gb, as_json=as_json, untouched=untouched)
    budget, chooser = None if gb is None else parse_bytes(gb), planner_of(options)
    saved = Saved(check_file(saved.plan, "the plan"), check_file(saved.snapshot, "the snapshot"))
    with Progress() as progress:
        target = find(options)
        _, planner = prepare(target, progress)
        rows = frontier(planner, progress, options.offloading, chooser) if budget is None else []
        plan, refused = _planned(planner, budget, options.offloading, chooser)
        eager_bytes: int | None = None
        if untouched:
            eager_bytes, seconds = untouched_bytes(target, planner, progress)
            plan = replace(plan, timings={**plan.timings, "untouched": seconds})
        if saved.snapshot is not None:
            with quiet():
                runs = [traced_run(planner.rewrite(plan), plan), unsliced_run(planner.program, plan)]
            write_snapshot(saved.snapshot, runs)
    if as_json:
        found = summary(plan, eager_bytes)
        if card is not None:
            found["card"] = {**asdict(card), "budget_bytes": card.budget_bytes}
        if budget is None:
            found["frontier"] = json_rows(rows)
        if memory:
            found["host_peak_bytes"] = host_peak_bytes()
        show_json(found)
    else:
        show(*plan_tables(plan, eager_bytes), *([frontier_table(rows)] if rows else []))
        if memory:
            note(f"planning took up to {format_bytes(host_peak_bytes())} of host memory")
    _save(saved, plan, refused=refused is not None, quiet=as_json)
    if refused is not None:
        raise refused
    return 0


def _save(saved: Saved, plan: Plan, *, refused: bool, quiet: bool) -> None:
    """Write a plan that fits, and say which files were written."""
    written = [] if saved.snapshot is None else [f"{saved.snapshot}: device 0 is the plan, device 1 the model unsliced"]
    if saved.plan is not None and not refused:
        save(saved.plan, plan.to_json() + "\n", "the plan")
        written.insert(0, str(saved.plan))
    for what in () if quiet else written:
        note(f"saved {what}")


def _planned(
    planner: Planner, budget: int | None, offload: Offload, chooser: ChosenPlanner
) -> tuple[Plan, OverBudget | None]:
    """The plan for a budget, or for the unsliced peak where none is given; that at the floor, and why, if none fits."""
    refused: OverBudget | None = None
    try:
        if budget is None:
            plan = with_reserved(planner, planner.plan(planner.unsliced_bytes, planner=chooser, offload=offload))
            plan = replace(plan, budget_bytes=plan.needed_bytes)
        else:
            plan = plan_reserving(planner, budget, chooser=chooser, offload=offload)
    except OverBudget as error:
        refused = error
        plan = replace(lowest_reserving(planner, offload), budget_bytes=error.budget_bytes)
    if budget is None:  # the frontier has searched for it
        floor_bytes, culprit = planner.floor("auto" if plan.uses_offload else "none")
        plan = replace(plan, floor_bytes=floor_bytes, floor_operator=culprit)
    return plan, refused


def host_peak_bytes() -> int:
    """The most memory this process has held, as the operating system counts."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
