"""`sicompiler explain`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sicompiler.cli.grid import peak_form
from sicompiler.cli.options import ModelOptions
from sicompiler.cli.output import Progress, json_rows, quiet, show, show_json
from sicompiler.cli.subjects import subject
from sicompiler.cli.work import Target, find, legal_program, prepare
from sicompiler.compiler.analyzed_graph import analyze_graph
from sicompiler.compiler.planner import Planner
from sicompiler.errors import BadInput
from sicompiler.facts.modules import describe
from sicompiler.planners.dp import floor
from sicompiler.reports.explain import Alive, alike, alive, missing, rule_rows, verdicts
from sicompiler.reports.fit import form_lines
from sicompiler.reports.summary import table
from sicompiler.scaling.points import choose_points
from sicompiler.units import format_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

MOST_ROWS = 12


def run(options: ModelOptions, node: str | None, axis: int | None, *, rules: bool, form: bool, as_json: bool) -> int:
    """Explain a model, one of its operators, the rules of all, or its peak as a formula.

    Raises:
        BadInput: no such node or dim.
    """
    if axis is not None and node is None:
        raise BadInput("--axis is a dim of the operator that --node names; give both")
    with Progress() as progress:
        target = find(options)
        if node is not None:
            return _node(target, node, axis, progress, as_json=as_json)
        if rules:
            return _rules(target, progress, as_json=as_json)
        if form:
            return _form(options, progress, as_json=as_json)
        _, planner = prepare(target, progress)
    return _model(planner, as_json=as_json)


def _form(options: ModelOptions, progress: Progress, *, as_json: bool) -> int:
    """The unsliced peak in frames, height and width: from four captures, so no search is needed."""
    video = (options.frames, options.height, options.width)
    with quiet():
        found = subject(options, progress, video)
        point, steps = found.scale.point(video), found.scale.steps([video])
        points = choose_points([point], steps)
        if points is None:
            raise BadInput(
                f"{options.model} has no smaller sizes to compare with; give larger frames, height and width"
            )
        model = found.models[0].model
        peak = peak_form("", model.learn(points), [point], steps)
    progress.__exit__(None, None, None)
    if as_json:
        show_json({"model": options.model, "units": found.scale.units(), "peak": asdict(peak)})
    else:
        show(*form_lines([peak], found.scale.units()))
    return 0


def _node(target: Target, name: str, axis: int | None, progress: Progress, *, as_json: bool) -> int:
    view = analyze_graph(legal_program(target, progress), target.device).view
    head, found = verdicts(view, name, axis)
    progress.__exit__(None, None, None)
    if as_json:
        show_json({"node": head, "dims": json_rows(found)})
    else:
        rows = [(str(v.dim), str(v.size), "yes" if v.sliceable else "no", v.reason) for v in found]
        show(head, table("", ("dim>", "size>", "sliceable", "why"), rows))
    return 0


def _rules(target: Target, progress: Progress, *, as_json: bool) -> int:
    rows = rule_rows(analyze_graph(legal_program(target, progress), target.device).view)
    progress.__exit__(None, None, None)
    if as_json:
        show_json({"operators": json_rows(rows), "missing": [row.operator for row in missing(rows)]})
        return 0
    cells = [(row.operator, str(row.count), "yes" if row.has_rule else "NO", row.example) for row in rows]
    title = f"{sum(row.has_rule for row in rows)} of {len(rows)} operators have a rule"
    show(table(title, ("operator", "count>", "rule", "of its first occurrence"), cells))
    return 0


@dataclass(frozen=True)
class Site:
    """Where a peak is.

    Attributes:
        peak_bytes: weights included.
        operator: which operator, or which loop.
        whole: what is alive as a whole.
        held_bytes: what an outer loop holds as a whole beside that.
        rest_bytes: slices, results of the loop, workspace.
    """

    peak_bytes: int
    operator: str
    whole: tuple[Alive, ...]
    held_bytes: int
    rest_bytes: int


def peak_site(planner: Planner) -> Site:
    """Where the unsliced graph has its peak."""
    graph = planner.graph
    found = tuple(alive(graph.view, graph.line.peak_position))
    operator = describe(graph.facts.nodes[graph.line.peak_position])
    return Site(planner.unsliced_bytes, operator, found, 0, graph.line.peak_bytes - sum(a.nbytes for a in found))


def floor_site(planner: Planner) -> Site:
    """Where the plan with the lowest peak has it."""
    solutions = [(floor(search.problem), search) for search in planner.searches]
    best, search = min(solutions, key=lambda row: row[0].peak_bytes + row[1].graph.extra_bytes)
    nodes = search.graph.facts.nodes
    choice = next((c for c in best.choices if c.candidate.start == best.culprit), None)
    found = tuple(alive(search.graph.view, best.culprit, crossing=choice is not None))
    operator = describe(nodes[best.culprit])
    if choice is not None:
        slices = -(-choice.candidate.seed.size // choice.slice_length)
        first, last = nodes[choice.candidate.start].name, nodes[choice.candidate.stop - 1].name
        axis = search.graph.axes.of(choice.candidate.start, choice.candidate.seed)
        operator = f"the loop {first} .. {last} along {axis} in {slices} slices, at {operator}"
    if search.outer is not None:
        operator += (
            f", {search.outer.loop.slice_length} of {search.outer.loop.size} of {search.outer.loop.axis} at a time"
        )
    return Site(
        planner.floor()[0], operator, found, search.graph.extra_bytes, best.peak_bytes - sum(a.nbytes for a in found)
    )


def _model(planner: Planner, *, as_json: bool) -> int:
    peak, lowest = peak_site(planner), floor_site(planner)
    without = missing(rule_rows(planner.graph.view))
    if as_json:
        found: dict[str, Any] = {"model": planner.model, "weights_bytes": planner.weights_bytes}
        found |= {"peak": asdict(peak), "floor": asdict(lowest), "missing_rules": json_rows(without)}
        show_json(found)
        return 0
    show(*_site("peak of the unsliced graph", peak, planner), *_site("floor", lowest, planner))
    if without:
        rows = [(row.operator, str(row.count)) for row in without]
        show(table("operators without a rule are never sliced", ("operator", "count>"), rows))
    else:
        show("every operator has an axis rule")
    return 0


def _site(what: str, site: Site, planner: Planner) -> list[RenderableType]:
    from rich.text import Text

    kinds = alike(site.whole)
    rows = [
        (format_bytes(a.nbytes * count), f"x {count}" if count > 1 else "", a.name, a.type, a.module, a.until)
        for a, count in kinds[:MOST_ROWS]
    ]
    more = kinds[MOST_ROWS:]
    others = (
        (sum(a.nbytes * count for a, count in more), f"{sum(count for _, count in more)} more"),
        (planner.weights_bytes, "weights"),
        (site.held_bytes, "held whole by the outer loop"),
        (site.rest_bytes, "slices, results and workspace"),
    )
    rows += [(format_bytes(nbytes), "", what, "", "", "") for nbytes, what in others if nbytes]
    head = Text(f"{what}: {format_bytes(site.peak_bytes)}, set by {site.operator}", style="bold")
    return [head, table("", ("bytes>", "times>", "alive", "type", "made in", "needed until"), rows)]
