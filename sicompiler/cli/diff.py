"""`sicompiler diff`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sicompiler.cli.options import ModelOptions, Stage
from sicompiler.cli.output import Progress, show, show_json, show_text
from sicompiler.cli.work import find, show_stage
from sicompiler.errors import BadInput
from sicompiler.plan import OuterLoop, Plan, RegionPlan
from sicompiler.reports.diffs import PlanDiff, plan_diff, text_diff
from sicompiler.reports.dump import text
from sicompiler.reports.summary import table
from sicompiler.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType


def run(
    options: ModelOptions, second: str | None, stages: tuple[Stage, Stage] | None, gb: str | None, *, as_json: bool
) -> int:
    """Compare two plans, or two stages of a model.

    Raises:
        BadInput: neither or both were asked for, or a file can't be read.
        StalePlan: a file holds no plan; names the file.
    """
    if stages is not None:
        if second is not None:
            raise BadInput(f"diff takes one model with --stages, got {options.model!r} and {second!r}")
        return _stages(options, stages, gb, as_json=as_json)
    if second is None:
        raise BadInput("diff takes two plan files, or one model and --stages A B")
    found = plan_diff(Plan.load(options.model), Plan.load(second))
    if as_json:
        show_json(found.to_json())
    else:
        show(*_tables(found, options.model, second))
    return 0


def _stages(options: ModelOptions, stages: tuple[Stage, Stage], gb: str | None, *, as_json: bool) -> int:
    if gb is not None:
        parse_bytes(gb)
    with Progress() as progress:
        target = find(options)
        shown = [show_stage(target, stage, gb, progress) for stage in stages]
    texts = [text(s.listing, s.title, s.brackets, with_bytes=False) for s in shown]
    found = text_diff(texts[0], texts[1], stages)
    if as_json:
        show_json({"same": not found, "diff": found})
    else:
        show_text(found or f"{stages[0]} and {stages[1]} are the same\n")
    return 0


def _tables(found: PlanDiff, a: str, b: str) -> list[RenderableType]:
    from rich.text import Text

    if found.same:
        return [Text("the plans are the same")]
    tables: list[RenderableType] = []
    if found.fields:
        rows = [(name, _value(name, x), _value(name, y)) for name, (x, y) in found.fields.items()]
        tables.append(table("fields", ("field", a, b), rows))
    for title, regions in (("removed", found.removed), ("added", found.added)):
        if regions:
            tables.append(
                table(
                    f"regions {title}",
                    ("axis", "size>", "slices>", "first .. last", "module"),
                    [_row(r) for r in regions],
                )
            )
    if found.changed:
        changed = [
            (region, name, _value(name, x), _value(name, y))
            for region, fields in found.changed.items()
            for name, (x, y) in fields.items()
        ]
        tables.append(table("regions changed", ("region", "field", a, b), changed))
    return tables


def _row(region: RegionPlan) -> tuple[str, ...]:
    return (region.axis, str(region.size), str(region.slices), f"{region.first} .. {region.last}", region.module)


def _value(name: str, value: Any) -> str:
    if value is None:
        return "none"
    if name.endswith("_bytes"):
        return format_bytes(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (OuterLoop, dict)) and name == "outer":
        outer = value if isinstance(value, dict) else vars(value)
        return f"{outer['axis']} of {outer['size']}, {outer['slice_length']} at a time"
    return "none" if value is None else str(value)
