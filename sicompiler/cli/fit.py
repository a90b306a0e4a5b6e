"""`sicompiler fit`: which frames and sizes fit a budget."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sicompiler.cli.files import check_file, save
from sicompiler.cli.grid import Grid
from sicompiler.cli.options import ModelOptions
from sicompiler.cli.output import Progress, note, quiet, show, show_json
from sicompiler.cli.subjects import subject
from sicompiler.errors import BadInput
from sicompiler.units import parse_bytes
from sicompiler.zoo.pipelines import pipeline_named


@dataclass(frozen=True)
class Wanted:
    """The sizes to look at as the user writes them: `14,25` and `576x1024,320x576`; None leaves them to the model."""

    frames: str | None
    size: str | None


def run(options: ModelOptions, gb: str, wanted: Wanted, html: Path | None, *, exact: bool, as_json: bool) -> int:
    """Fill the table and print it; what is there by then, if the user interrupts.

    Raises:
        BadInput: sizes that can't be read, or that the model can't take.
    """
    budget = parse_bytes(gb)
    numbers = (frames_of(wanted.frames), sizes_of(wanted.size))
    first = (next(iter(numbers[0]), None), *next(iter(numbers[1]), (None, None)))
    html = check_file(html, "the page")
    with Progress() as progress, quiet():
        found = subject(options, progress, first)
        grid = Grid(found, found.scale.grid(*numbers), budget, exact)
        grid.fill(progress)
        if found.pipeline:
            grid.notes += [f"{name} is not in it: {why}" for name, why in pipeline_named(options.model).unplanned]
    report = grid.report()
    if as_json:
        show_json(report.to_dict())
    else:
        show(*report.renderables())
    if html is not None:
        from sicompiler.reports.fit_page import fit_page

        save(html, fit_page(report), "the page")
    if grid.interrupted:
        note("interrupted: the table has the sizes that were looked at by then")
    return 0


def frames_of(text: str | None) -> list[int]:
    """`14,25` as numbers."""
    found = [] if text is None else text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in found):
        raise BadInput(f"can't read {text!r} as frames; write whole numbers with commas: --frames 14,25")
    return [int(part) for part in found]


def sizes_of(text: str | None) -> list[tuple[int, int]]:
    """`576x1024,320x576` as heights and widths."""
    found = [] if text is None else [re.fullmatch(r"(\d+)[x×](\d+)", part.strip()) for part in text.split(",")]
    if any(match is None for match in found):
        raise BadInput(f"can't read {text!r} as sizes; write height x width with commas: --size 576x1024,320x576")
    return [(int(match[1]), int(match[2])) for match in found if match is not None]
