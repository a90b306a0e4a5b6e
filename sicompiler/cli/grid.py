"""The table of `sicompiler fit`, filled size by size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from sicompiler.cli.frontier import DENOISE, ENCODE, time_ratio
from sicompiler.cli.output import Progress
from sicompiler.cli.pipelines import HELD_SAMPLES, PhaseCall, PipelinePhases, PlannedPart, sample_bytes
from sicompiler.cli.subjects import ONCE, NamedModel, Sized, Video
from sicompiler.compiler.planner import Planner
from sicompiler.device import device_kind
from sicompiler.errors import CaptureError
from sicompiler.reports.fit import Cell, CellSource, FitReport, PeakForm
from sicompiler.scaling.form import Point
from sicompiler.scaling.peak import closed_peak, lattice
from sicompiler.scaling.sized import FittedModel
from sicompiler.scaling.template import DifferentGraph

BORDERLINE = 1.1  # a lowest peak up to this share of the budget is not believed: the size is planned in full


@dataclass(frozen=True)
class At:
    """One model at one size: bytes at once, a planner when it is asked for."""

    unsliced_bytes: int
    weights_bytes: int
    sample_bytes: int
    planned: bool
    make: Callable[[], Planner]

    @cached_property
    def planner(self) -> Planner:
        """In full where the size was planned, else with known regions."""
        return self.make()


@dataclass
class Grid:
    """The table while it is filled.

    Attributes:
        subject: what the user named.
        videos: the sizes asked for.
        budget: in bytes.
        exact: plan every size in full.
        interrupted: the user stopped it; what was there by then is in the table.
    """

    subject: NamedModel
    videos: Sequence[Video]
    budget: int
    exact: bool
    cells: list[Cell] = field(default_factory=list)
    forms: list[PeakForm] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False

    def fill(self, progress: Progress) -> None:
        """Find the closed forms, then look at every size; stop where the user interrupts."""
        points = [self.subject.scale.point(video) for video in self.videos]
        self._leave_out_what_cannot_be_captured()
        steps = self.subject.scale.steps(self.videos)
        try:
            if not self.exact:
                for sized in (s for s in self.subject.models if s.depends):
                    own, own_steps = list(dict.fromkeys(map(sized.at, points))), sized.steps(steps)
                    reasons = sized.model.cover(own, own_steps)
                    self.notes += [f"{sized.model.name}, no closed form: {why}" for why in reasons]
                    self._form(sized, own, own_steps)
            for number, (video, point) in enumerate(zip(self.videos, points, strict=True)):
                progress("sizes", number, len(points))
                self.cells.append(self.cell(video, point))
        except KeyboardInterrupt:
            if not self.cells:
                raise
            self.interrupted = True
            self.notes.append(f"interrupted: {len(self.cells)} of {len(points)} sizes")

    def _leave_out_what_cannot_be_captured(self) -> None:
        """Count nothing but weights for an encoder that runs untouched, as nothing more is known."""
        for sized in [s for s in self.subject.models if s.name.phase == ENCODE and not s.depends]:
            try:
                sized.model.planned(ONCE)
            except CaptureError as why:
                self.notes.append(
                    f"{sized.model.name} runs untouched, only its weights count: {str(why).splitlines()[0]}"
                )
                idle = {**self.subject.idle, sized.name.component: sized.model.weights_bytes(ONCE)}
                models = tuple(s for s in self.subject.models if s is not sized)
                self.subject = replace(self.subject, models=models, idle=idle)

    def cell(self, video: Video, point: Point) -> Cell:
        """One size."""
        found = [self._at(sized, sized.at(point)) for sized in self.subject.models]
        held = 0
        if self.subject.pipeline:
            pairs = zip(self.subject.models, found, strict=True)
            held = HELD_SAMPLES * max(at.sample_bytes for sized, at in pairs if sized.name.phase == DENOISE)
        components = [sized.name.component for sized in self.subject.models]
        weights = {**self.subject.idle, **dict(zip(components, (at.weights_bytes for at in found), strict=True))}
        peaks = [
            at.unsliced_bytes + held + sum(n for other, n in weights.items() if other != component)
            for component, at in zip(components, found, strict=True)
        ]
        unsliced = max(peaks)
        if unsliced <= self.budget:
            known = CellSource.PLANNED if all(at.planned for at in found) else CellSource.FORM
            phase = self.subject.models[peaks.index(unsliced)].name.label
            return Cell(*video, True, unsliced, unsliced, 1.0, known, phase)
        planned = self._planned(found, weights, held)
        for number, sized in enumerate(self.subject.models):
            peak = planned[number].row.predicted_peak_bytes or 0
            if not found[number].planned and self.budget < peak <= BORDERLINE * self.budget:
                found[number] = self._full(sized, sized.at(point))
                planned = self._planned(found, weights, held)
        worst = max((p.row for p in planned), key=lambda row: row.predicted_peak_bytes or 0)
        known = CellSource.PLANNED if all(at.planned for at in found) else CellSource.REGIONS
        ratio = time_ratio(self._parts(found), planned)
        fits = all(p.row.fits for p in planned)
        return Cell(*video, fits, unsliced, worst.predicted_peak_bytes or 0, ratio, known, worst.component)

    def _parts(self, found: Sequence[At]) -> tuple[PhaseCall, ...]:
        return tuple(PhaseCall(s.name, at.planner) for s, at in zip(self.subject.models, found, strict=True))

    def _planned(self, found: Sequence[At], weights: dict[str, int], held: int) -> list[PlannedPart]:
        parts, movable = self._parts(found), device_kind(self.subject.device).can_evict(offload=False)
        pipeline = PipelinePhases(parts, weights, held, self.subject.pipeline and movable)
        return [pipeline.plan(part, self.budget) for part in parts]

    def _at(self, sized: Sized, point: Point) -> At:
        model = sized.model
        known = None if model.is_planned(point) or self.exact else model.sized(point)
        if known is None:
            return self._full(sized, point)
        learned, graph = known
        weights = learned.weights.at(point)
        assert weights is not None
        unsliced = graph.line.peak_bytes + weights
        return At(unsliced, weights, sample_bytes(graph.facts), False, lambda: learned.planner_at(point, graph))

    def _full(self, sized: Sized, point: Point) -> At:
        planner = sized.model.planned(point)
        sample = sample_bytes(planner.graph.facts)
        return At(planner.unsliced_bytes, planner.weights_bytes, sample, True, lambda: planner)

    def _form(self, sized: Sized, points: Sequence[Point], steps: Point) -> None:
        label = sized.label if self.subject.pipeline else ""
        for learned in sized.model.learned:
            try:
                self.forms.append(peak_form(label, learned, [*points, *lattice(points, steps)], steps))
            except DifferentGraph as why:
                self.notes.append(f"{sized.model.name}, no formula of the peak: {why}")

    def report(self) -> FitReport:
        """What is known by now."""
        named, scale = self.subject, self.subject.scale
        found = (tuple(self.cells), tuple(self.forms), scale.units(), tuple(self.notes))
        return FitReport(named.name, named.device, named.dtype, self.budget, *found)


def peak_form(label: str, learned: FittedModel, points: Sequence[Point], steps: Point) -> PeakForm:
    """The unsliced peak as a formula, for a report.

    Raises:
        DifferentGraph: there is none.
    """
    found = closed_peak(learned, points, steps)
    return PeakForm(label, str(found.expression), found.operators, len(found.checked))
