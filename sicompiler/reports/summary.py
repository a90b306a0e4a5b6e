"""A plan told to people and to machines: totals first, then one row a region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sicompiler.device import device_kind
from sicompiler.plan import Plan
from sicompiler.reports.regions import region_rows
from sicompiler.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from rich.console import RenderableType

TEXT_WIDTH = 150


@dataclass(frozen=True)
class FrontierRow:
    """What one budget buys.

    Attributes:
        budget_bytes: the budget.
        predicted_peak_bytes: of the fastest plan within it.
        time_ratio: predicted time over that of the unsliced graph.
        regions: how many sliced loops it takes.
    """

    budget_bytes: int
    predicted_peak_bytes: int
    time_ratio: float
    regions: int


def summary(plan: Plan, untouched_bytes: int | None = None) -> dict[str, Any]:
    """What `sicompiler plan --json` prints. All peaks include weights; see docs/plan-format.md.

    Args:
        plan: what to tell.
        untouched_bytes: what the model peaks at as it is, if that was looked at.
    """
    outer = plan.outer
    return {
        "model": plan.model,
        "phase": plan.phase,
        "device": plan.device,
        "dtype": plan.dtype,
        "budget_bytes": plan.budget_bytes,
        "fits": plan.fits,
        "weights_bytes": plan.weights_bytes,
        "untouched_peak_bytes": untouched_bytes,
        "unsliced_peak_bytes": plan.unsliced_peak_bytes,
        "predicted_peak_bytes": plan.predicted_peak_bytes,
        "predicted_allocated_bytes": plan.predicted_allocated_bytes,
        "predicted_reserved_bytes": plan.predicted_reserved_bytes,
        "predicted_seconds": plan.seconds,
        "floor_bytes": plan.floor_bytes,
        "floor_operator": plan.floor_operator,
        "offload": {
            "spilled_values": len(plan.spilled),
            "streamed_weights": len(plan.streamed),
            "streamed_bytes": plan.streamed_bytes,
            "host_bytes": plan.host_bytes,
            "moved_bytes": plan.moved_bytes,
        },
        "outer": None if outer is None else {"axis": outer.axis, "size": outer.size, "slices": outer.slices},
        "regions": [
            {
                "axis": region.axis,
                "size": region.size,
                "slices": region.slices,
                "operators": region.operators,
                "first": region.first,
                "last": region.last,
                "module": region.module,
                "peak_bytes": plan.region_peak_bytes(region),
                "predicted_seconds": region.seconds,
            }
            for region in plan.regions
        ],
        "seconds": dict(plan.timings),
    }


def floor_text(plan: Plan) -> str:
    """The floor, for people."""
    if plan.floor_bytes is None:
        return "not looked for: this budget did not ask for it"
    where = " with offloading" if plan.uses_offload else ""
    return f"{format_bytes(plan.floor_bytes)}{where}, set by {plan.floor_operator}"


def reserved_rows(plan: Plan) -> list[tuple[str, str]]:
    """What the device's allocator takes for a plan, where it keeps segments."""
    if plan.predicted_reserved_bytes is None:
        return []
    return [("predicted reserved", f"{format_bytes(plan.predicted_reserved_bytes)}, with what the allocator keeps")]


def totals(plan: Plan, untouched_bytes: int | None = None) -> list[tuple[str, str]]:
    """The totals of a plan, label and text."""
    rows = [("weights", f"{format_bytes(plan.weights_bytes)} resident")]
    if untouched_bytes is not None:
        rows.append(
            ("untouched peak", f"{format_bytes(untouched_bytes)}, of the model as it is, by Python's own lifetimes")
        )
    rows += [
        ("unsliced peak", format_bytes(plan.unsliced_peak_bytes)),
        ("predicted peak", format_bytes(plan.predicted_peak_bytes)),
        *reserved_rows(plan),
        ("floor", floor_text(plan)),
        ("budget", format_bytes(plan.budget_bytes)),
        ("fits", "yes" if plan.fits else "NO: this is the plan at the floor"),
    ]
    if attention := device_kind(plan.device).attention:
        rows.append(("attention", attention))
    if plan.uses_offload:
        rows.append(
            (
                "offload memory",
                f"{len(plan.spilled)} values spilled, {len(plan.streamed)} weights streamed "
                f"({format_bytes(plan.streamed_bytes)}); {format_bytes(plan.moved_bytes)} carried in a run",
            )
        )
        where = device_kind(plan.device).host_memory
        rows.append(("host memory", f"{format_bytes(plan.host_bytes)} at most, {where}"))
    if plan.outer is not None:
        rows.append(("outer loop", f"{plan.outer.axis} of {plan.outer.size} in {plan.outer.slices} passes"))
    if plan.timings:
        stages = ", ".join(f"{stage} {format_seconds(seconds)}" for stage, seconds in plan.timings.items())
        rows.append(("made in", stages))
    rows.append(("timed by", plan.timed_by))
    return rows


def plan_tables(plan: Plan, untouched_bytes: int | None = None) -> list[RenderableType]:
    """A plan as rich tables: totals, then one row for all regions that are the same."""
    from rich.text import Text

    head = pairs(f"{plan.model}, {plan.dtype}, {plan.device}", totals(plan, untouched_bytes))
    if not plan.regions:
        return [head, Text(" no sliced loops inside: every operator runs whole", style="dim")]
    rows = [
        (
            row.first.axis,
            str(row.first.size),
            str(row.first.slices),
            str(row.first.operators),
            f"{row.first.first} .. {row.first.last}",
            row.module,
            row.times,
            format_bytes(row.peak_bytes),
        )
        for row in region_rows(plan)
    ]
    columns = ("axis", "size>", "slices>", "operators>", "first .. last", "module", "times>", "peak>")
    return [head, table("", columns, rows)]


def frontier_table(rows: Sequence[FrontierRow], title: str = "budget against time") -> RenderableType:
    """Budgets against predicted time."""
    return table(
        title,
        ("budget>", "predicted peak>", "time, unsliced = 1>", "regions>"),
        [
            (format_bytes(r.budget_bytes), format_bytes(r.predicted_peak_bytes), f"{r.time_ratio:.2f}", str(r.regions))
            for r in rows
        ],
    )


def pairs(title: str, rows: Sequence[tuple[str, str]]) -> RenderableType:
    """Labels and values, one a line."""
    from rich.table import Table
    from rich.text import Text

    found = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, padding=(0, 1))
    found.add_column(style="dim", no_wrap=True)
    found.add_column(overflow="fold")
    for label, value in rows:
        found.add_row(label, Text(value))
    return found


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> RenderableType:
    """A table of text; a column whose name ends in `>` holds numbers, flush right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    found = Table(title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        number = column.endswith(">")
        found.add_column(
            column.removesuffix(">"), justify="right" if number else "left", no_wrap=number, overflow="fold"
        )
    for row in rows:
        found.add_row(*(Text(cell) for cell in row))
    return found


def plain(renderables: Sequence[RenderableType], width: int = TEXT_WIDTH) -> str:
    """Tables as plain text, without colours."""
    from io import StringIO

    from rich.console import Console

    out = StringIO()
    console = Console(file=out, width=width, color_system=None, force_terminal=False)
    for renderable in renderables:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
