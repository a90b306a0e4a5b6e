"""`sicompiler plan` for whole pipelines: one row a phase, from configuration alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sicompiler.adapters.outputs import register_outputs
from sicompiler.capture import weights_bytes
from sicompiler.cli.frontier import DENOISE, ENCODE, Frontiers, pipeline_frontiers
from sicompiler.cli.options import ModelOptions
from sicompiler.cli.output import Progress, json_rows, note, quiet, show, show_json, show_text
from sicompiler.cli.work import Target, prepare
from sicompiler.compiler import FarMemory, Planner
from sicompiler.errors import CaptureError, OverBudget
from sicompiler.facts.storages import GraphFacts, Origin
from sicompiler.models.pipelines import PIPELINE_PRESETS, PartName, build_pipeline, idle_weights
from sicompiler.plan import Plan
from sicompiler.reports.phases import PhaseRow, PipelineReport
from sicompiler.units import budget_hint, format_bytes, parse_bytes

HELD_SAMPLES = 2  # latents and what they are conditioned on, counted as this many samples of the denoiser


@dataclass(frozen=True)
class Part:
    """One call of a component, and all that is known about it."""

    call: PartName
    planner: Planner


@dataclass(frozen=True)
class PlannedPart:
    """What a phase comes to within a budget of the whole pipeline."""

    row: PhaseRow
    plan: Plan


@dataclass(frozen=True)
class Pipeline:
    """Every phase of a pipeline, ready to be planned for any budget.

    Attributes:
        parts: in order.
        weights: bytes of every component.
        held: bytes that the pipeline holds beside the inputs of a call.
        movable: whether there is somewhere to move idle components to.
        far_memory: whether values may be spilled and weights streamed, once all idle components are moved away.
    """

    parts: tuple[Part, ...]
    weights: Mapping[str, int]
    held: int
    movable: bool
    far_memory: FarMemory = "none"

    @classmethod
    def of(
        cls, parts: Sequence[Part], idle: Mapping[str, int], device: str, far_memory: FarMemory = "none"
    ) -> Pipeline:
        """Add up what the phases share."""
        weights = {**idle, **{part.call.component: part.planner.weights_bytes for part in parts}}
        denoisers = [part.planner.graph.facts for part in parts if part.call.phase == DENOISE]
        held = HELD_SAMPLES * max(map(sample_bytes, denoisers))
        movable = device != "cpu" or far_memory == "auto"
        return cls(tuple(parts), weights, held, movable, far_memory)

    def unsliced_bytes(self, part: Part) -> int:
        """Peak of a phase without slicing, with everything resident."""
        others = sum(nbytes for name, nbytes in self.weights.items() if name != part.call.component)
        return part.planner.unsliced_bytes + others + self.held

    def plan(self, part: Part, budget: int) -> PlannedPart:
        """One phase within a budget; at its floor where nothing fits."""
        return plan_part(
            part, self.parts, self.weights, self.held, budget, movable=self.movable, far_memory=self.far_memory
        )


def run(options: ModelOptions, gb: str | None, *, as_json: bool) -> int:
    """Plan every phase of a pipeline and print. Without a budget also what smaller ones cost.

    Raises:
        OverBudget: some phase does not fit, whatever is moved away; the rows have been printed.
    """
    budget = None if gb is None else parse_bytes(gb)
    dtype = options.dtype or "float16"
    device = "cuda" if options.device is None else options.device.value
    register_outputs()
    frontiers: Frontiers | None = None
    with Progress() as progress, quiet():
        calls = build_pipeline(options.model, dtype=dtype, **options.sizes)
        idle = idle_weights(options.model, dtype)
        parts: list[Part] = []
        untouched: dict[str, str] = {}
        for call in calls:
            try:
                parts.append(Part(call, prepare(Target(call.call, device), progress, label=call.label)[1]))
            except CaptureError as error:
                if call.phase != ENCODE:
                    raise
                untouched[call.component] = str(error).splitlines()[0]
                idle[call.component] = weights_bytes(call.call.module)
        pipeline = Pipeline.of(parts, idle, device, options.far)
        if budget is None:
            budget = max(pipeline.unsliced_bytes(part) for part in parts)
            frontiers = pipeline_frontiers(pipeline, progress)
    planned = [pipeline.plan(part, budget).row for part in parts]
    rows = (*(_untouched(name, why, pipeline, budget) for name, why in untouched.items()), *planned)
    report = PipelineReport(PIPELINE_PRESETS[options.model].pipeline, budget, rows)
    if as_json:
        found = {"model": options.model, "device": device, "dtype": dtype, **report.to_dict()}
        if frontiers is not None:
            found["frontier"] = json_rows(frontiers.whole)
            costs = [()] * len(untouched) + list(frontiers.phases)
            found["phases"] = [
                row | {"frontier": json_rows(cost)} for row, cost in zip(found["phases"], costs, strict=True)
            ]
        show_json(found)
    else:
        show_text(str(report))
        if frontiers is not None:
            show(*frontiers.tables([row.component for row in planned]))
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


def _untouched(component: str, why: str, pipeline: Pipeline, budget: int) -> PhaseRow:
    """The row of an encoder that can't be captured: only its weights are known."""
    held, own = pipeline.held, pipeline.weights[component]
    return PhaseRow(ENCODE, component, (component,), own, held, None, None, None, None, "", budget, note=why)


def plan_part(
    part: Part,
    parts: Sequence[Part],
    weights: Mapping[str, int],
    held: int,
    budget: int,
    *,
    movable: bool,
    far_memory: FarMemory = "none",
) -> PlannedPart:
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
    row = PhaseRow(
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
    return PlannedPart(row, plan)


def sample_bytes(facts: GraphFacts) -> int:
    """Bytes of the largest input of a graph: the sample of a denoiser."""
    storages = [facts.storages[t.storage] for tensors in facts.tensors[: facts.num_placeholders] for t in tensors]
    return max(s.nbytes for s in storages if s.origin is Origin.INPUT)
