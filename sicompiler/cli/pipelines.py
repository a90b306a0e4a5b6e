"""`sicompiler plan` for whole pipelines: one row a phase, from configuration alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.utils._pytree as pytree

from sicompiler.adapters.outputs import register_outputs
from sicompiler.api import prepare
from sicompiler.cli.options import ModelOptions
from sicompiler.cli.output import Progress, note, quiet, show_json, show_text
from sicompiler.compiler import FarMemory, Planner
from sicompiler.errors import OverBudget
from sicompiler.models.pipelines import PIPELINE_PRESETS, PartCall, build_pipeline, idle_weights
from sicompiler.plan import Plan
from sicompiler.reports.phases import PhaseRow, PipelineReport
from sicompiler.units import budget_hint, format_bytes, parse_bytes

HELD_SAMPLES = 2  # latents and what they are conditioned on, counted as this many samples of the denoiser


@dataclass(frozen=True)
class Part:
    """One call of a component, and all that is known about it."""

    call: PartCall
    planner: Planner


def run(options: ModelOptions, gb: str | None, *, as_json: bool) -> int:
    """Plan every phase of a pipeline and print.

    Raises:
        OverBudget: some phase does not fit, whatever is moved away; the rows have been printed.
    """
    budget = None if gb is None else parse_bytes(gb)
    dtype = options.dtype or "float16"
    device = "cuda" if options.device is None else options.device.value
    register_outputs()
    with Progress() as progress, quiet():
        sizes = {"batch": options.batch, "frames": options.frames, "height": options.height, "width": options.width}
        calls = build_pipeline(options.model, **sizes, dtype=dtype)
        idle = idle_weights(options.model, dtype)
        parts = [_prepared(call, device, progress) for call in calls]
    weights = idle | {part.call.component: part.planner.weights_bytes for part in parts}
    held = HELD_SAMPLES * _sample_bytes(calls)
    if budget is None:
        budget = max(part.planner.unsliced_bytes + _others(part, weights) + held for part in parts)
    movable = device != "cpu" or options.far == "auto"
    far = options.far
    rows = tuple(plan_part(part, parts, weights, held, budget, movable=movable, far_memory=far) for part in parts)
    report = PipelineReport(PIPELINE_PRESETS[options.model].pipeline, budget, rows)
    if as_json:
        show_json({"model": options.model, "device": device, "dtype": dtype, **report.to_dict()})
    else:
        show_text(str(report))
        note("held is an estimate; what a pipeline computes between its components is not planned")
    if not report.fits:
        worst = max(rows, key=lambda row: row.floor_bytes or 0)
        floor_bytes = worst.floor_bytes or 0
        raise OverBudget(
            f"{options.model} does not fit {format_bytes(budget)}: {worst.component} needs {format_bytes(floor_bytes)} "
            f"in phase {worst.phase}, set by {worst.floor_operator}. The nearest budget that works is "
            f"{budget_hint(floor_bytes)}",
            budget_bytes=budget,
            floor_bytes=floor_bytes,
            culprit=worst.floor_operator,
        )
    return 0


def plan_part(
    part: Part,
    parts: Sequence[Part],
    weights: Mapping[str, int],
    held: int,
    budget: int,
    *,
    movable: bool,
    far_memory: FarMemory,
) -> PhaseRow:
    """Plan one phase as a running pipeline would: with everything resident, or with idle components moved away.

    Args:
        part: what runs.
        parts: everything that runs, in order.
        weights: of every component.
        held: bytes the pipeline holds beside the inputs of a call.
        budget: of the pipeline.
        movable: whether there is somewhere to move components to.
        far_memory: whether values may be spilled and weights streamed, once all idle components are moved away.
    """
    own = part.call.component
    order = [p.call.component for p in parts]
    now = max(i for i, name in enumerate(order) if name == own)
    here = [name for name in weights if name != own]
    if movable:  # what never runs goes first, then what has run, then what is still to come; big ones first
        later = {name: any(i > now for i, n in enumerate(order) if n == name) for name in here}
        here.sort(key=lambda name: (1 + later[name] if name in order else 0, -weights[name]))
    everything = sum(weights[name] for name in here)
    plan: Plan | None = None
    while plan is None:
        beside = sum(weights[name] for name in here) + held
        try:
            plan = part.planner.plan(budget - beside, far_memory="none" if movable and here else far_memory)
        except OverBudget as error:
            if not movable or not here:
                plan = part.planner.plan(error.floor_bytes, far_memory=far_memory)
            else:
                here.pop(0)
    floor_bytes, culprit = part.planner.floor(far_memory)
    return PhaseRow(
        phase=part.call.phase,
        component=part.call.label,
        resident=(own, *here),
        weights_bytes=plan.weights_bytes + beside - held,
        held_bytes=held,
        activations_bytes=plan.predicted_peak_bytes - plan.weights_bytes,
        unsliced_peak_bytes=plan.unsliced_peak_bytes + everything + held,
        predicted_peak_bytes=plan.predicted_peak_bytes + beside,
        floor_bytes=floor_bytes + held + (0 if movable else everything),
        floor_operator=culprit,
        budget_bytes=budget,
    )


def _prepared(call: PartCall, device: str, progress: Progress) -> Part:
    model = call.call
    _, planner = prepare(
        model.module,
        model.args,
        model.kwargs,
        method=call.method,
        name=call.label,
        device_type=device,
        progress=lambda what, done, total: progress(f"{call.label}: {what}", done, total),
    )
    return Part(call, planner)


def _others(part: Part, weights: Mapping[str, int]) -> int:
    return sum(nbytes for name, nbytes in weights.items() if name != part.call.component)


def _sample_bytes(calls: Sequence[PartCall]) -> int:
    """Bytes of the largest input of the denoiser: its sample."""
    inputs = [pytree.tree_leaves((c.call.args, c.call.kwargs)) for c in calls if c.phase == "denoise"]
    return max(x.nbytes for leaves in inputs for x in leaves if isinstance(x, torch.Tensor))
