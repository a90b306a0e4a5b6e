"""Dumps of a program: readable Python with shapes and live bytes, GraphViz dot, JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sicompiler.plan import Plan
from sicompiler.reports.steps import Listing, ReportStep
from sicompiler.units import format_bytes

FORMATS = ("text", "dot", "json")
COMMENT_COLUMN = 96


@dataclass(frozen=True)
class Bracket:
    """A region shown beside the operators that it holds.

    Attributes:
        start, stop: indices into the steps of the listing.
        title: what is said at its start.
    """

    start: int
    stop: int
    title: str


def brackets(plan: Plan, num_placeholders: int) -> tuple[Bracket, ...]:
    """The regions of a plan as brackets for the listing of the graph they were chosen in."""
    return tuple(
        Bracket(
            region.start - num_placeholders,
            region.stop - num_placeholders,
            f"region {number}: {region.axis} of {region.size} in {region.slices} slices of {region.slice_length}, "
            f"peak {format_bytes(plan.region_peak_bytes(region))}",
        )
        for number, region in enumerate(plan.regions)
    )


def text(shown: Listing, title: str, regions: Sequence[Bracket] = (), *, with_bytes: bool = True) -> str:
    """A program as readable Python: one line an operator, loops with their bodies.

    Args:
        shown: the program.
        title: of the first line.
        regions: brackets to draw on the left.
        with_bytes: end each line with live and freed bytes.
    """
    return "\n".join(_lines(shown, title, regions, with_bytes)) + "\n"


def _lines(shown: Listing, title: str, regions: Sequence[Bracket], with_bytes: bool) -> list[str]:
    peak = shown.peak
    lines = [f"# {title}"]
    if with_bytes:
        at = "" if peak is None else f", peak {format_bytes(peak.live_bytes)} of activations at {peak.name}"
        lines.append(f"# {shown.weights} weights of {format_bytes(shown.weights_bytes)} in all{at}")
    lines.append(f"def forward({', '.join(f'{name}: {types}' for name, types in shown.inputs)}):")
    starts, stops = {b.start: b for b in regions}, {b.stop - 1: b for b in regions}
    inside = False
    module, depth = "", 0
    for index, step in enumerate(shown.steps):
        here = starts.get(index)
        gutter = "│ " if inside or here is not None else "  " if regions else ""
        if here is not None:
            inside = True
            lines.append(f"┌ # {here.title}")
        indent = "    " * (step.depth + 1)
        if step.module and (step.module != module or step.depth != depth) and step.loop is None:
            lines.append(f"{gutter}{indent}# {step.module}")
            module, depth = step.module, step.depth
        if index in stops:
            inside, gutter = False, "└ "
        lines += _step_lines(step, gutter + indent, with_bytes)
    lines.append(f"{'  ' if regions else ''}    return {', '.join(shown.outputs)}")
    return lines


def _step_lines(step: ReportStep, indent: str, with_bytes: bool) -> list[str]:
    loop = step.loop
    if loop is not None:
        head = f"{indent}{step.call}  # {loop.name}: {loop.slices} slices" + (
            f" in {step.module}" if step.module else ""
        )
        if with_bytes and step.freed_bytes:
            head += f", frees {format_bytes(step.freed_bytes)} at its end"
        return [head, f"{indent}    {loop.length} = min({loop.slice_length}, {loop.size} - {loop.start})"]
    line = f"{indent}{step.name}: {step.types} = {step.call}" if step.types else f"{indent}{_statement(step)}"
    if with_bytes and step.types:
        freed = f", frees {format_bytes(step.freed_bytes)}" if step.freed_bytes else ""
        line = f"{line:<{COMMENT_COLUMN}}  # live {format_bytes(step.live_bytes)}{freed}"
    elif with_bytes and step.freed_bytes:
        line = f"{line:<{COMMENT_COLUMN}}  # frees {format_bytes(step.freed_bytes)}"
    return [line]


def _statement(step: ReportStep) -> str:
    """A step without tensors: a write has no result worth a name, a number has."""
    return step.call if step.operator.startswith("sicompiler.") else f"{step.name} = {step.call}"


def to_json(shown: Listing, title: str, regions: Sequence[Bracket] = ()) -> dict[str, Any]:
    """A program as one JSON object."""
    peak = shown.peak
    return {
        "title": title,
        "inputs": [{"name": name, "type": types} for name, types in shown.inputs],
        "weights": shown.weights,
        "weights_bytes": shown.weights_bytes,
        "peak_bytes": shown.weights_bytes + (0 if peak is None else peak.live_bytes),
        "peak_operator": None if peak is None else peak.name,
        "regions": [asdict(bracket) for bracket in regions],
        "steps": [asdict(step) for step in shown.steps],
        "outputs": list(shown.outputs),
    }


def dot(shown: Listing, title: str, regions: Sequence[Bracket] = ()) -> str:
    """A program in GraphViz's language: operators as boxes, loops and regions as frames around them.

    Args:
        shown: the program.
        title: of the graph.
        regions: frames to draw; a program has these or loops, not both.
    """
    lines = ["digraph program {", f"  label={_quoted(title)}; labelloc=t; fontname=monospace;"]
    lines.append("  node [shape=box, fontname=monospace, fontsize=10]; edge [color=gray40];")
    known = {name for name, _ in shown.inputs}
    lines += [f"  {_quoted(name)} [label={_quoted(name, types)}, shape=oval];" for name, types in shown.inputs]
    starts, stops = {b.start: b for b in regions}, {b.stop - 1: b for b in regions}
    depth = 0
    for index, step in enumerate(shown.steps):
        while depth > step.depth:
            lines.append("  " * depth + "  }")
            depth -= 1
        indent = "  " * (depth + 1)
        if index in starts:
            lines += [f"{indent}subgraph cluster_{index} {{ label={_quoted(starts[index].title)}; color=steelblue;"]
        if step.loop is not None:
            loop_title = f"{step.loop.name}: {step.loop.size} in {step.loop.slices} slices"
            lines.append(f"{indent}subgraph cluster_{index} {{ label={_quoted(loop_title)}; color=steelblue;")
            depth += 1
            continue
        known.add(step.name)
        lines.append(f"{indent}{_quoted(step.name)} [label={_quoted(step.name, step.operator, step.types)}];")
        if index in stops:
            lines.append(f"{indent}}}")
    lines += ["  " * d + "  }" for d in range(depth, 0, -1)]
    for step in shown.steps:
        if step.loop is None:
            sources = [source for source in dict.fromkeys(step.sources) if source in known]
            lines += [f"  {_quoted(source)} -> {_quoted(step.name)};" for source in sources]
    lines += [f"  {_quoted(name)} [penwidth=2];" for name in shown.outputs]
    return "\n".join([*lines, "}"]) + "\n"


def _quoted(*parts: str) -> str:
    """Text lines as one quoted dot string; a JSON string is one, its newlines included."""
    return json.dumps("\n".join(part for part in parts if part), ensure_ascii=False)
