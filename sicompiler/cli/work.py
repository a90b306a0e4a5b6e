"""What the commands share: find the model, prepare it, show one of its stages."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sicompiler.api import device_type_of
from sicompiler.api import prepare as prepare_model
from sicompiler.cache.store import default_store
from sicompiler.capture import Program, capture
from sicompiler.cli.options import ModelOptions, Stage
from sicompiler.cli.output import Progress, note, quiet
from sicompiler.compiler.planner import Planner
from sicompiler.compiler.reserve import plan_reserving
from sicompiler.passes.manager import run_stage
from sicompiler.pipelines.eager import eager_peak_bytes
from sicompiler.planners.registry import ChosenPlanner, chosen_planner
from sicompiler.reports.dump import Bracket, brackets
from sicompiler.reports.steps import Listing, listing
from sicompiler.units import format_bytes, parse_bytes
from sicompiler.zoo.folders import denoisers_of, is_pipeline_folder
from sicompiler.zoo.load import function_named, resolve

if TYPE_CHECKING:
    from sicompiler.plan import Plan
    from sicompiler.zoo.build import ModelCall


@dataclass(frozen=True)
class Target:
    """A model, and the kind of device it is planned for."""

    call: ModelCall
    device: str


@dataclass(frozen=True)
class ShownStage:
    """One stage of a program, ready to be written."""

    listing: Listing
    title: str
    brackets: tuple[Bracket, ...] = ()


def find(options: ModelOptions, *, fake: bool = True) -> Target:
    """Build what the user named.

    Args:
        options: what the user said.
        fake: without memory; else with random weights.

    Raises:
        BadInput: it does not exist, or can't take these sizes.
    """
    if fake and is_pipeline_folder(options.model):
        names = denoisers_of(Path(options.model).expanduser())
        note(f"{options.model} is a whole pipeline; this is its {names[0]} alone")
    with quiet(prints=True):
        call = resolve(options.model, dtype=options.dtype, fake=fake, **options.sizes)
    if options.device is None and call.sizes is None:
        return Target(call, device_type_of(call.module))
    return Target(call, options.planned_for)


def planner_of(options: ModelOptions) -> ChosenPlanner:
    """The planner that the user named.

    Raises:
        BadInput: there is none of that name, or no such function.
    """
    named = options.planner
    return chosen_planner(function_named(named) if ":" in named else named)


def prepare(target: Target, progress: Progress, *, label: str | None = None) -> tuple[Program, Planner]:
    """Capture and analyse a model: everything up to choosing a plan.

    Args:
        target: the model.
        progress: told about long work.
        label: what to call it, where it is one of several.
    """
    call = target.call
    prefix = "" if label is None else f"{label}: "
    with quiet():
        return prepare_model(
            call.module,
            call.args,
            call.kwargs,
            name=label or call.name,
            device_type=target.device,
            progress=lambda what, done, total: progress(f"{prefix}{what}", done, total),
            method=call.method,
            store=default_store(),
        )


def legal_program(target: Target, progress: Progress, upto: Stage = Stage.LEGAL) -> Program:
    """Capture a model and run the stages that need no plan."""
    call = target.call
    progress("capture", 0, 1)
    with quiet():
        program = capture(call.module, call.args, call.kwargs, method=call.method)
        for stage in (Stage.CLEAN, Stage.LEGAL):
            if list(Stage).index(stage) <= list(Stage).index(upto):
                program = run_stage(stage.value, program)
    return program


def untouched_bytes(
    target: Target, planner: Planner, progress: Progress, *, label: str | None = None
) -> tuple[int | None, float]:
    """What a model peaks at as it is, and the seconds it took to find out; None where it can't be rehearsed."""
    call, began = target.call, time.perf_counter()
    progress("untouched" if label is None else f"{label}: untouched", 0, 1)

    def simulated() -> int | None:
        method = getattr(call.module, call.method)
        return eager_peak_bytes(call.module, method, call.args, call.kwargs, target.device)

    with quiet():
        found = planner.untouched_bytes(simulated)
    return found, time.perf_counter() - began


def plan_for(planner: Planner, gb: str | None) -> Plan:
    """The plan for a budget, as `sicompiler plan` makes it; for the unsliced peak where none is given.

    Raises:
        OverBudget: no plan fits.
    """
    if gb is None:
        return planner.plan(planner.unsliced_bytes, offload="auto")
    return plan_reserving(planner, parse_bytes(gb), offload="auto")


def show_stage(target: Target, stage: Stage, gb: str | None, progress: Progress) -> ShownStage:
    """Bring a model to a stage.

    Args:
        target: the model.
        stage: how far.
        gb: budget of the planned and rewritten stages.
        progress: told about long work.

    Raises:
        OverBudget: no plan fits.
    """
    name = target.call.name
    if stage in (Stage.CAPTURED, Stage.CLEAN, Stage.LEGAL):
        program = legal_program(target, progress, stage)
        return ShownStage(listing(program, device_type=target.device), f"{name}, {stage.value}, {target.device}")
    _, planner = prepare(target, progress)
    plan = plan_for(planner, gb)
    title = f"{name}, {stage.value} for {format_bytes(plan.budget_bytes)}, {target.device}"
    if stage is Stage.PLANNED:
        graph = planner.analysis.graph_of(plan)
        if plan.outer is not None:
            title += f", run once for each of {plan.outer.slices} slices of {plan.outer.axis}"
        found = brackets(plan, graph.facts.num_placeholders)
        return ShownStage(listing(graph.program, device_type=target.device), title, found)
    with quiet():
        rewritten = planner.rewrite(plan)
    return ShownStage(listing(rewritten, device_type=target.device), title)
