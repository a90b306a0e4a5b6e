"""`sicompiler plan` for whole pipelines: one row a phase, from configuration alone."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sicompiler.cli.frontier import DENOISE, ENCODE, Frontiers, pipeline_frontiers
from sicompiler.cli.options import ModelOptions
from sicompiler.cli.output import Progress, json_rows, note, quiet, show, show_json, show_text
from sicompiler.cli.work import Target, planner_of, prepare, untouched_bytes
from sicompiler.compiler.planner import Offload, Planner
from sicompiler.device import device_kind
from sicompiler.errors import CaptureError, OverBudget
from sicompiler.facts.storages import GraphFacts, Origin
from sicompiler.pipelines.eviction import IdleComponent, eviction_order
from sicompiler.pipelines.roles import Phase
from sicompiler.pipelines.untouched import UntouchedCall, untouched_call
from sicompiler.plan import Plan
from sicompiler.planners.registry import DP, ChosenPlanner
from sicompiler.reports.phases import PhaseRow, PipelineReport
from sicompiler.units import budget_hint, format_bytes, parse_bytes
from sicompiler.zoo.pipelines import PartCall, PartName, build_pipeline, idle_weights, pipeline_named

HELD_SAMPLES = 2  # latents and what they are conditioned on, counted as this many samples of the denoiser


@dataclass(frozen=True)
class PhaseCall:
    """One call of a component, and all that is known about it."""

    call: PartName
    planner: Planner
    untouched_bytes: int | None = None  # what it peaks at as it is


@dataclass(frozen=True)
class PlannedPart:
    """What a phase comes to within a budget of the whole pipeline."""

    row: PhaseRow
    plan: Plan


@dataclass(frozen=True)
class PipelinePhases:
    """Every phase of a pipeline, ready to be planned for any budget.

    Attributes:
        parts: in order.
        weights: bytes of every component.
        held: bytes that the pipeline holds beside the inputs of a call.
        movable: whether there is somewhere to move idle components to.
        offload: whether values may be spilled and weights streamed, once all idle components are moved away.
        planner: what chooses the regions of every phase.
    """

    parts: tuple[PhaseCall, ...]
    weights: Mapping[str, int]
    held: int
    movable: bool
    offload: Offload = "none"
    planner: ChosenPlanner = DP

    @classmethod
    def of(
        cls,
        parts: Sequence[PhaseCall],
        idle: Mapping[str, int],
        device: str,
        offload: Offload = "none",
        planner: ChosenPlanner = DP,
    ) -> PipelinePhases:
        """Add up what the phases share."""
        weights = {**idle, **{part.call.component: part.planner.weights_bytes for part in parts}}
        denoisers = [part.planner.graph.facts for part in parts if part.call.phase == DENOISE]
        held = HELD_SAMPLES * max(map(sample_bytes, denoisers))
        movable = device_kind(device).can_evict(offload=offload == "auto")
        return cls(tuple(parts), weights, held, movable, offload, planner)

    def unsliced_bytes(self, part: PhaseCall) -> int:
        """Peak of a phase without slicing, with everything resident."""
        return part.planner.unsliced_bytes + self._others(part) + self.held

    def untouched_bytes(self, part: PhaseCall) -> int | None:
        """Peak of a phase of the pipeline as it is, with everything resident; None where it is not known."""
        own = part.untouched_bytes
        return None if own is None else own + self._others(part) + self.held

    def floor(self, part: PhaseCall, offload: Offload) -> tuple[int, str]:
        """The smallest budget of a phase, idle components moved away if they can be, and what sets it."""
        floor_bytes, culprit = part.planner.floor(offload)
        return floor_bytes + self._always_beside(part), culprit

    def eviction_order(self, part: PhaseCall) -> tuple[str, ...]:
        """The other components while a part runs, in the order in which a running pipeline would move them away."""
        others = {name: nbytes for name, nbytes in self.weights.items() if name != part.call.component}
        if not others:
            return ()  # a single model has no phases
        phases: dict[str, set[Phase]] = {}
        for each in self.parts:
            phases.setdefault(each.call.component, set()).add(Phase(each.call.phase))
        idle = [IdleComponent(name, frozenset(phases.get(name, ())), nbytes) for name, nbytes in others.items()]
        return eviction_order(idle, Phase(part.call.phase))

    def plan(self, part: PhaseCall, budget: int, *, floors: bool = False) -> PlannedPart:
        """One phase within a budget, as a running pipeline would plan it; at its floor where nothing fits.

        Everything stays resident if that fits; else idle components go, one by one, and only then values and weights
        of the one that runs are offloaded.

        Args:
            part: the phase.
            budget: of the whole pipeline, in bytes.
            floors: whether its floor is looked for even where the plan needed no search for it.
        """
        own = part.call.component
        here = list(self.eviction_order(part))
        plan: Plan | None = None
        while plan is None:
            beside = sum(self.weights[name] for name in here) + self.held
            offload: Offload = "none" if self.movable and here else self.offload
            plan = part.planner.plan_within(budget - beside, planner=self.planner, offload=offload)
            if plan is None and self.movable and here:
                here.pop(0)
            elif plan is None:
                part.planner.refuse_unsolved(budget - beside, self.planner, offload)
                plan = part.planner.plan(part.planner.floor(offload)[0], offload=offload)
        is_above = plan.predicted_peak_bytes + beside > budget
        floor_bytes, culprit = plan.floor_bytes, plan.floor_operator
        if is_above or floors:
            floor_bytes, culprit = part.planner.floor(self.offload if is_above or plan.uses_offload else "none")
        if floor_bytes is not None:
            floor_bytes += self._always_beside(part)
        row = PhaseRow(
            phase=part.call.phase,
            component=part.call.label,
            resident=(own, *here),
            weights_bytes=plan.weights_bytes + beside - self.held,
            held_bytes=self.held,
            activations_bytes=plan.predicted_peak_bytes - plan.weights_bytes,
            unsliced_peak_bytes=self.unsliced_bytes(part),
            untouched_peak_bytes=self.untouched_bytes(part),
            predicted_peak_bytes=plan.predicted_peak_bytes + beside,
            floor_bytes=floor_bytes,
            floor_operator=culprit,
            budget_bytes=budget,
        )
        return PlannedPart(row, plan)

    def _always_beside(self, part: PhaseCall) -> int:
        """What can't be moved away while a part runs."""
        return self.held + (0 if self.movable else self._others(part))

    def _others(self, part: PhaseCall) -> int:
        """Weights of all other components."""
        return sum(nbytes for name, nbytes in self.weights.items() if name != part.call.component)


def run(options: ModelOptions, gb: str | None, *, as_json: bool, untouched: bool = True) -> int:
    """Plan every phase of a pipeline and print. Without a budget also what smaller ones cost.

    Raises:
        OverBudget: some phase does not fit, whatever is moved away; the rows have been printed.
    """
    budget, chooser = None if gb is None else parse_bytes(gb), planner_of(options)
    dtype = options.dtype or "float16"
    device = options.planned_for
    frontiers: Frontiers | None = None
    began, untouched_seconds = time.perf_counter(), 0.0
    with Progress() as progress, quiet():
        calls = build_pipeline(options.model, dtype=dtype, **options.sizes)
        idle = idle_weights(options.model, dtype, device)
        build_seconds = time.perf_counter() - began
        parts: list[PhaseCall] = []
        unplanned: dict[str, UntouchedCall] = {}
        for call in calls:
            try:
                target = Target(call.call, device)
                planner = prepare(target, progress, label=call.label)[1]
                eager_bytes: int | None = None
                if untouched:
                    eager_bytes, seconds = untouched_bytes(target, planner, progress, label=call.label)
                    untouched_seconds += seconds
                parts.append(PhaseCall(call, planner, eager_bytes))
            except CaptureError as error:
                if call.phase != ENCODE:
                    raise
                known = _untouched_call(call, str(error).splitlines()[0], device)
                unplanned[call.component], idle[call.component] = known, known.weights_bytes
        pipeline = PipelinePhases.of(parts, idle, device, options.offloading, chooser)
        if budget is None:
            whole = [_untouched(name, known, pipeline, 0).floor_bytes or 0 for name, known in unplanned.items()]
            budget = max([*whole, *(pipeline.unsliced_bytes(part) for part in parts)])
            frontiers = pipeline_frontiers(pipeline, progress)
    planned = [pipeline.plan(part, budget, floors=frontiers is not None) for part in parts]
    rows = (
        *(_untouched(name, why, pipeline, budget) for name, why in unplanned.items()),
        *(part.row for part in planned),
    )
    preset = pipeline_named(options.model)
    report = PipelineReport(preset.pipeline, budget, rows)
    if as_json:
        found = {"model": options.model, "device": device, "dtype": dtype, **report.to_dict()}
        if frontiers is not None:
            found["frontier"] = json_rows(frontiers.whole)
            costs = [()] * len(unplanned) + list(frontiers.phases)
            found["phases"] = [
                row | {"frontier": json_rows(cost)} for row, cost in zip(found["phases"], costs, strict=True)
            ]
        found["seconds"] = {"build": build_seconds, **_seconds(planned), "untouched": untouched_seconds}
        found["unplanned"] = [{"component": name, "why": why} for name, why in preset.unplanned]
        show_json(found)
    else:
        show_text(str(report))
        if frontiers is not None:
            show(*frontiers.tables([part.row.component for part in planned]))
        for name, why in preset.unplanned:
            note(f"{name} is not planned: {why}")
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


def _seconds(planned: Sequence[PlannedPart]) -> dict[str, float]:
    """Seconds spent on all phases, by stage."""
    spent: Counter[str] = Counter()  # which adds seconds up as it does counts
    for part in planned:
        spent.update(part.plan.timings)
    return dict(spent)


def _untouched_call(part: PartCall, why: str, device: str) -> UntouchedCall:
    """What is known of a call that can't be captured, by rehearsing it."""
    module, call = part.call.module, part.call
    method = getattr(module, part.method)
    return untouched_call(module, method, call.args, call.kwargs, reason=why, room_bytes=0, device_type=device)


def _untouched(component: str, known: UntouchedCall, pipeline: PipelinePhases, budget: int) -> PhaseRow:
    """The row of an encoder that can't be captured: its weights, all on the device, and what a rehearsal held."""
    others = 0 if pipeline.movable else sum(pipeline.weights.values()) - pipeline.weights[component]
    return PhaseRow(
        phase=ENCODE,
        component=component,
        resident=(component,),
        weights_bytes=known.weights_bytes,
        held_bytes=pipeline.held,
        activations_bytes=None,
        unsliced_peak_bytes=None,
        predicted_peak_bytes=None,
        floor_bytes=known.floor_bytes + pipeline.held + others,
        floor_operator=known.culprit,
        budget_bytes=budget,
        note=known.reason,
    )


def sample_bytes(facts: GraphFacts) -> int:
    """Bytes of the largest input of a graph: the sample of a denoiser."""
    storages = [facts.storages[t.storage] for tensors in facts.tensors[: facts.num_placeholders] for t in tensors]
    return max(s.nbytes for s in storages if s.origin is Origin.INPUT)
