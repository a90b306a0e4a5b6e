"""What smaller budgets cost in time: of one model, and of a pipeline, phase by phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sicompiler.compiler.planner import Offload, Planner
from sicompiler.compiler.search import Progress
from sicompiler.planners.registry import DP, ChosenPlanner
from sicompiler.reports.summary import FrontierRow, frontier_table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sicompiler.cli.pipelines import PhaseCall, PipelinePhases, PlannedPart

SHARES = (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)  # of the way from the floor to the unsliced peak
OFFLOAD_SHARES = (0.0, 1 / 4, 1 / 2)  # of the way from the floor with offloading to that without
ENCODE, DENOISE = "encode", "denoise"
STEPS = 25  # the whole pipeline counts so many calls of its denoiser, and one of the others


@dataclass(frozen=True)
class Frontiers:
    """Budgets against time.

    Attributes:
        phases: of each phase alone, in order; the budget is that of the pipeline.
        whole: of all of them.
    """

    phases: tuple[tuple[FrontierRow, ...], ...]
    whole: tuple[FrontierRow, ...]

    def tables(self, labels: Sequence[str]) -> list[RenderableType]:
        """For people: the whole pipeline first."""
        from rich.text import Text

        titles = [f"the whole pipeline ({STEPS} denoising steps)", *labels]
        found: list[RenderableType] = []
        for title, rows in zip(titles, (self.whole, *self.phases), strict=True):
            found += [Text(f"budget against time, {title}", "bold"), frontier_table(rows, "")]
        return found


def unsliced_seconds(planner: Planner) -> float:
    """Predicted time of the unsliced graph."""
    return planner.source.unsliced.problem.unsliced_seconds


def budgets_between(floor_bytes: int, unsliced_bytes: int, offload_floor_bytes: int | None = None) -> list[int]:
    """A handful of budgets from the floor to the unsliced peak, and below it down to the floor with offloading."""
    on_device = [floor_bytes + int(share * max(unsliced_bytes - floor_bytes, 0)) for share in SHARES]
    lowest = floor_bytes if offload_floor_bytes is None else min(offload_floor_bytes, floor_bytes)
    return list(
        dict.fromkeys([*(lowest + int(share * (floor_bytes - lowest)) for share in OFFLOAD_SHARES), *on_device])
    )


def frontier(
    planner: Planner, progress: Progress, offload: Offload = "none", chooser: ChosenPlanner = DP
) -> list[FrontierRow]:
    """What a handful of budgets between the floor and the unsliced peak cost in time.

    Args:
        planner: of the model.
        progress: told about long work.
        offload: whether values may be spilled and weights streamed.
        chooser: what chooses the regions; budgets that it finds no plan for are left out.
    """
    whole_seconds = unsliced_seconds(planner)
    rows = []
    budgets = budgets_between(planner.floor()[0], planner.unsliced_bytes, planner.floor(offload)[0])
    for number, budget in enumerate(budgets):
        progress("frontier", number, len(budgets))
        plan = planner.plan_within(budget, planner=chooser, offload=offload)
        if plan is None:
            continue
        rows.append(
            FrontierRow(budget, plan.predicted_peak_bytes, _ratio(plan.seconds, whole_seconds), len(plan.regions))
        )
    return rows


def pipeline_frontiers(pipeline: PipelinePhases, progress: Progress) -> Frontiers:
    """Budgets against times for every phase of a pipeline and for all of them together."""
    parts = pipeline.parts
    lowest = [pipeline.floor(part, pipeline.offload)[0] for part in parts]
    on_device = [pipeline.floor(part, "none")[0] for part in parts]
    tops = [pipeline.unsliced_bytes(part) for part in parts]
    phases = []
    for number, part in enumerate(parts):
        progress("frontier", number, len(parts) + 1)
        phases.append(_rows(pipeline, [part], budgets_between(on_device[number], tops[number], lowest[number])))
    whole = _rows(pipeline, parts, budgets_between(max(on_device), max(tops), max(lowest)))
    return Frontiers(tuple(phases), whole)


def time_ratio(parts: Sequence[PhaseCall], planned: Sequence[PlannedPart]) -> float:
    """Predicted time of a pipeline over that without slicing."""
    calls = [STEPS if part.call.phase == DENOISE else 1 for part in parts]
    return _ratio(
        sum(count * found.plan.seconds for count, found in zip(calls, planned, strict=True)),
        sum(count * unsliced_seconds(part.planner) for count, part in zip(calls, parts, strict=True)),
    )


def _rows(pipeline: PipelinePhases, parts: Sequence[PhaseCall], budgets: Sequence[int]) -> tuple[FrontierRow, ...]:
    rows = []
    for budget in budgets:
        planned = [pipeline.plan(part, budget) for part in parts]
        peak = max(found.row.predicted_peak_bytes or 0 for found in planned)
        regions = sum(len(found.plan.regions) for found in planned)
        rows.append(FrontierRow(budget, peak, time_ratio(parts, planned), regions))
    return tuple(rows)


def _ratio(seconds: float, whole_seconds: float) -> float:
    return seconds / whole_seconds if whole_seconds else 1.0
