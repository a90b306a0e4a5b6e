"""The picture of error against speed-up: the planned frontier, other ways to choose steps, and what was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sicompiler.errors import BadInput
from sicompiler.rehash.book import CalibrationFile
from sicompiler.rehash.choose import RULES, by_rule, planned
from sicompiler.rehash.lessons import CutStats
from sicompiler.rehash.plan import RehashPlan
from sicompiler.units import format_bytes

FORMATS = (".pdf", ".png", ".svg")

# Each method keeps its colour and its mark, whoever else is drawn. Others take what is left.
COLOURS = {
    "planned": "#2f7fc1",
    "uniform": "#c2410c",
    "taylor": "#7c3aed",
    "similarity": "#0f766e",
    "deepcache": "#be185d",
}
MARKS = {"planned": "o", "uniform": "s", "taylor": "^", "similarity": "D", "deepcache": "v"}
NAMES = {
    "planned": "planned",
    "uniform": "uniform reuse",
    "taylor": "uniform, Taylor order 1",
    "similarity": "similarity threshold (Streamlined Inference)",
    "deepcache": "every n-th in full (DeepCache)",
}
OTHER_COLOURS = ("#4d7c0f", "#475569", "#0891b2", "#a16207")
OTHER_MARKS = ("P", "X", "*", "<")
RINGS = ("deepcache",)  # drawn around the points of another method, with which it shares most of its schedules
FRONTIER, THIS = "best of all cuts, predicted", "this plan"
MOST_ERROR = 2.0  # what lies above is no video any more
SPAN = 1e-6  # of the axis of errors
INK, FAINT, GRID = "#1d2733", "#9aa5b1", "#e3e8ed"


@dataclass(frozen=True)
class Curve:
    """One method: what it gives for each number of full evaluations.

    Attributes:
        method: "planned", a rule of `rehash.choose`, or what a benchmark calls it.
        points: (speed-up of the denoising loop, relative error of the final latents), by speed-up.
    """

    method: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Panel:
    """One set of axes.

    Attributes:
        title: above it.
        curves: in it.
        compared: whether the plan's frontier lies behind them; that of another setting says nothing here.
    """

    title: str
    curves: tuple[Curve, ...]
    compared: bool = True


def panels(plan: RehashPlan, book: CalibrationFile | None = None, measured: Sequence[Panel] = ()) -> list[Panel]:
    """What the picture shows: the frontier, then what was measured, then every cut that was learned of.

    Args:
        plan: with its frontier.
        book: lessons of the same setting, by which every method is predicted at every cut.
        measured: of a benchmark.

    Raises:
        BadInput: the lessons are of another model, scheduler or number of steps than the plan.
    """
    frontier = Curve("planned", tuple((p.speedup, p.predicted_error) for p in reversed(plan.frontier())))
    found = [Panel(FRONTIER, (frontier,)), *measured]
    if book is None:
        return found
    known = (book.pipeline, book.setting.structure, book.setting.scheduler, len(book.setting.times))
    if known != (plan.pipeline, plan.structure, plan.scheduler, plan.evaluations):
        raise BadInput(
            f"the lessons are of {book.pipeline}, {book.setting.scheduler}, {len(book.setting.times)} evaluations; the "
            f"plan is for {plan.pipeline}, {plan.scheduler}, {plan.evaluations}, or for another graph"
        )
    return [*found, *(_of_cut(book, lessons) for lessons in book.lessons())]


def _of_cut(book: CalibrationFile, lessons: CutStats) -> Panel:
    """Every way to choose steps, as predicted at one cut."""
    found = {"planned": planned(book.subject, [lessons], "least squares", 2)}
    found |= {rule: by_rule(rule, book.subject, [lessons]) for rule in RULES}
    curves = [Curve(name, _best(plans)) for name, plans in found.items()]
    names = ", ".join(lessons.names[:2]) + (f" and {len(lessons.names) - 2} more" if len(lessons.names) > 2 else "")
    return Panel(
        f"cut at {names}: {format_bytes(lessons.nbytes)}, {lessons.skip_share:.0%} of the time left", tuple(curves)
    )


def _best(plans: Sequence[RehashPlan]) -> tuple[tuple[float, float], ...]:
    """Speed-ups and the least predicted error at each: there is a plan for every order of the predictor."""
    found: dict[float, float] = {}
    for plan in plans:
        found[plan.speedup] = min(plan.predicted_error, found.get(plan.speedup, plan.predicted_error))
    return tuple(sorted(found.items()))


def measured_panels(text: str) -> list[Panel]:
    """A benchmark's result: a panel for each scheduler and number of steps.

    Args:
        text: JSON, a list of objects with `method`, `speedup` and `rel_error`, or an object with such a list as `rows`;
            `scheduler` and `steps` may be missing.

    Raises:
        BadInput: it is none.
    """
    try:
        found: Any = json.loads(text)
        rows = found["rows"] if isinstance(found, dict) else found
        points = [
            (_setting_of(row), str(row["method"]), float(row["speedup"]), float(row["rel_error"])) for row in rows
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(
            "this is no result of the benchmark (rows with method, speedup and rel_error): "
            f"{type(error).__name__}: {error}"
        ) from error
    shown = []
    for setting in dict.fromkeys(row[0] for row in points):
        own = [row[1:] for row in points if row[0] == setting]
        methods = dict.fromkeys(method for method, _, _ in own)
        curves = [Curve(name, tuple(sorted((s, e) for method, s, e in own if method == name))) for name in methods]
        shown.append(Panel(f"measured{setting}", tuple(curves), compared=not setting))
    return shown


def _setting_of(row: Mapping[str, Any]) -> str:
    return f": {row['scheduler']}, {row['steps']} steps" if "scheduler" in row and "steps" in row else ""


def error_picture(path: str | Path, plan: RehashPlan, shown: Sequence[Panel]) -> Path:
    """Draw error against speed-up, all panels on the same scales.

    Args:
        path: of the file to write: PNG, SVG or PDF by its ending.
        plan: drawn as a point of its own.
        shown: as `panels` gives them.

    Raises:
        BadInput: there is nothing to draw, or the ending is of another format.
    """
    target = Path(path)
    if target.suffix.lower() not in FORMATS:
        raise BadInput(f"a picture ends in {', '.join(FORMATS)}, got {target.name!r}")
    errors = [e for panel in shown for curve in panel.curves for _, e in curve.points if 0 < e < math.inf]
    if not errors:
        raise BadInput("there is nothing to draw: the plan knows no others")
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot as plt

    columns = min(len(shown), 2 if len(shown) in (2, 4) else 3)
    rows = math.ceil(len(shown) / columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(1.0 + 4.6 * columns if columns > 1 else 7.5, 1.6 + 3.5 * rows),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    title = f"Step Rehash of {plan.pipeline}: error against speed-up, {plan.evaluations} evaluations"
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
    styles, axes = _styles(shown), list(grid.flat)
    for number, (axis, panel) in enumerate(zip(axes, shown, strict=False)):
        _draw(axis, panel, shown[0].curves[0], styles)
        if number % columns == 0:
            axis.set_ylabel("relative error of the final latents", fontsize=9.5, color=INK)
        if number + columns >= len(shown):
            axis.set_xlabel("speed-up of the denoising loop", fontsize=9.5, color=INK)
            axis.tick_params(labelbottom=True)
    _mark_plan(axes[0], plan)
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    top = min(max(errors), MOST_ERROR)
    axes[0].set_yscale("log")
    axes[0].set_ylim(max(min(errors), top * SPAN) / 1.6, top * 1.6)
    speeds = [speed for panel in shown for curve in panel.curves for speed, _ in curve.points]
    lowest = min(1.0, *speeds)
    axes[0].locator_params(axis="x", nbins=6)
    axes[0].set_xlim(left=lowest - 0.02 * (max(speeds) - lowest))
    labels = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    last = [label for label in labels if label == FRONTIER or label.startswith(THIS)]
    ordered = [label for label in labels if label not in last] + last
    handles = [labels[label] for label in ordered]
    figure.legend(handles, ordered, loc="outside lower left", ncols=min(columns + 1, 3), frameon=False, fontsize=9.5)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=150)
    plt.close(figure)
    return target


def _styles(shown: Sequence[Panel]) -> dict[str, tuple[str, str]]:
    """Colour and mark of every method."""
    methods = dict.fromkeys(curve.method for panel in shown for curve in panel.curves)
    others = [method for method in methods if method not in COLOURS]
    found = {method: (COLOURS[method], MARKS[method]) for method in methods if method in COLOURS}
    for number, method in enumerate(others):
        found[method] = (OTHER_COLOURS[number % len(OTHER_COLOURS)], OTHER_MARKS[number % len(OTHER_MARKS)])
    return found


def _draw(axis: Any, panel: Panel, frontier: Curve, styles: dict[str, tuple[str, str]]) -> None:
    """One panel; the predicted frontier lies faint behind all but its own."""
    if panel.compared and frontier not in panel.curves and frontier.points:
        axis.plot(
            *zip(*frontier.points, strict=True),
            color=FAINT,
            linewidth=4,
            alpha=0.45,
            solid_capstyle="round",
            label=FRONTIER,
        )
    for curve in panel.curves:
        points = [(s, e) for s, e in curve.points if 0 < e < math.inf]
        if not points:
            continue
        colour, mark = styles[curve.method]
        main = curve.method == "planned"
        alone = len(points) == 1 or curve.method in RINGS
        axis.plot(
            *zip(*points, strict=True),
            color=colour,
            marker=mark,
            markersize=8.5 if curve.method in RINGS else 5 if main else 4.2,
            markerfacecolor="none" if curve.method in RINGS else colour,
            linewidth=2.0 if main else 1.2,
            linestyle="none" if alone else "-",
            zorder=4 if main else 3,
            label=NAMES.get(curve.method, curve.method),
        )
    axis.set_title(panel.title, loc="left", fontsize=10, color=INK)
    axis.grid(color=GRID, linewidth=0.8, which="major")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(length=3, color=FAINT, labelsize=9)


def _mark_plan(axis: Any, plan: RehashPlan) -> None:
    """The plan itself, as predicted, and as held-out runs showed it."""
    ring = {"marker": "o", "linestyle": "none", "markersize": 11, "markerfacecolor": "none", "zorder": 5}
    axis.plot([plan.speedup], [plan.predicted_error], markeredgecolor=INK, markeredgewidth=1.6, label=THIS, **ring)
    if plan.verified is not None and plan.verified.rel_error > 0:
        axis.plot(
            [plan.speedup],
            [plan.verified.rel_error],
            color=INK,
            marker="x",
            markersize=8,
            markeredgewidth=2,
            linestyle="none",
            zorder=5,
            label=f"{THIS}, worst of {plan.verified.runs} held-out runs",
        )
