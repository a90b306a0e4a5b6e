"""The report as one self-contained HTML page: no scripts, nothing loaded from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from sicompiler.capture import Program
from sicompiler.plan import Plan
from sicompiler.reports.steps import listing, thinned
from sicompiler.reports.summary import summary, totals
from sicompiler.units import format_bytes

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 960, 300, 84, 30, 14
MAX_POINTS = 1500


@dataclass(frozen=True)
class Mark:
    """A horizontal line of the chart: its height, what it says and its style."""

    y: float
    label: str
    style: str


@dataclass(frozen=True)
class Chart:
    """Live bytes over the steps of a run, as SVG coordinates.

    Attributes:
        path: the outline of the filled area.
        marks: budget and weights.
        ticks: heights and labels of the axis.
        steps: how many operators run, each loop body counted once.
    """

    path: str
    marks: tuple[Mark, ...]
    ticks: tuple[Mark, ...]
    steps: int


def chart(plan: Plan, program: Program) -> Chart | None:
    """The predicted live bytes, weights included, while a rewritten program runs; None for an empty one."""
    steps = [s for s in listing(program, device_type=plan.device).steps if s.loop is None]
    if not steps:
        return None
    levels = [s.live_bytes + plan.weights_bytes for s in steps]
    top = 1.08 * max(plan.budget_bytes if plan.budget_bytes < 2 * max(levels) else 0, *levels)

    def x(index: float) -> float:
        return round(LEFT + index / len(levels) * (WIDTH - LEFT), 1)

    def y(nbytes: float) -> float:
        return round(HEIGHT - BOTTOM - nbytes / top * (HEIGHT - BOTTOM - TOP), 1)

    points = list(thinned(levels, MAX_POINTS))
    ends = [index for index, _ in points[1:]] + [len(levels)]
    outline = [f"M{LEFT} {y(0)}"]
    for (index, level), end in zip(points, ends, strict=True):
        outline.append(f"L{x(index)} {y(level)}H{x(end)}")
    marks = [Mark(y(plan.weights_bytes), f"weights {format_bytes(plan.weights_bytes)}", "weights")]
    if plan.budget_bytes <= top:
        marks.append(Mark(y(plan.budget_bytes), f"budget {format_bytes(plan.budget_bytes)}", "budget"))
    ticks = tuple(Mark(y(nbytes), label, "") for nbytes, label in round_ticks(top))
    return Chart(f"{''.join(outline)}V{y(0)}Z", tuple(marks), ticks, len(steps))


def round_ticks(top: float) -> list[tuple[float, str]]:
    """Bytes and labels of 3 to 8 ticks from 0 to `top`, at distances of 1, 2 or 5 times a power of ten of a unit."""
    units = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))
    unit, name = next(((size, name) for size, name in units if top >= size), units[-1])
    power = 10.0 ** math.floor(math.log10(top / unit / 7))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= top / unit / 7)
    return [(i * step * unit, f"{i * step:g} {name}") for i in range(int(top / unit / step) + 1)]


def page(model: str, budget_bytes: int, plans: Sequence[tuple[Plan, int | None]], programs: Sequence[Program]) -> str:
    """The text of the page.

    Args:
        model: its name.
        budget_bytes: what was asked for.
        plans: one per input shape, each with what the model peaks at as it is, if that is known.
        programs: the rewritten program of each plan; may be empty, then there is no chart.
    """
    charts: list[Chart | None] = [None] * len(plans)
    if programs:
        charts = [chart(plan, program) for (plan, _), program in zip(plans, programs, strict=True)]
    parts: list[dict[str, Any]] = [
        {"plan": plan, "totals": totals(plan, untouched_bytes), "regions": summary(plan)["regions"], "chart": drawn}
        for (plan, untouched_bytes), drawn in zip(plans, charts, strict=True)
    ]
    sizes = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "bottom": BOTTOM}
    return rendered("report.html.j2", model=model, budget_bytes=budget_bytes, parts=parts, size=sizes)


def rendered(template: str, **values: Any) -> str:
    """A page from one of the templates beside this file; the filter `bytes` prints sizes."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["bytes"] = format_bytes
    text = resources.files("sicompiler.reports").joinpath(template).read_text(encoding="utf-8")
    return environment.from_string(text).render(**values)
