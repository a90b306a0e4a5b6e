"""`sicompiler dump`."""

from __future__ import annotations

from sicompiler.cli.options import Format, ModelOptions, Stage
from sicompiler.cli.output import Progress, show_json, show_text
from sicompiler.cli.work import find, show_stage
from sicompiler.reports import dump
from sicompiler.units import parse_bytes


def run(options: ModelOptions, stage: Stage, written: Format, gb: str | None) -> int:
    """Bring a model to a stage and write it."""
    if gb is not None:
        parse_bytes(gb)  # a typing error must not cost a capture
    with Progress() as progress:
        shown = show_stage(find(options), stage, gb, progress)
    if written is Format.JSON:
        show_json(dump.to_json(shown.listing, shown.title, shown.brackets))
    elif written is Format.DOT:
        show_text(dump.dot(shown.listing, shown.title, shown.brackets))
    else:
        show_text(dump.text(shown.listing, shown.title, shown.brackets))
    return 0
