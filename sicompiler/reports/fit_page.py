"""What fits a budget as one self-contained page: frames against resolution, each cell a bar against the budget."""

from __future__ import annotations

from dataclasses import dataclass

from sicompiler.reports.fit import Cell, CellSource, FitReport, sliced
from sicompiler.reports.page import rendered
from sicompiler.units import format_bytes


@dataclass(frozen=True)
class Box:
    """A cell as it is drawn.

    Attributes:
        kind: whole, sliced or over.
        peak, detail: text.
        peak_share, unsliced_share: of the width of the cell, in per cent; the budget is at `BUDGET_AT`.
        title: shown on hover.
    """

    kind: str
    peak: str
    detail: str
    peak_share: float
    unsliced_share: float
    title: str


BUDGET_AT = 70.0  # per cent of the width of a cell

LEGEND = (
    "Green fits as it is, blue in slices, at so many times the predicted time. Red: no plan is known to fit; the size "
    "is the lowest peak found, with ≤ where not every plan was searched. Hover to see where the numbers come from."
)


def fit_page(report: FitReport) -> str:
    """The text of the page."""
    rows = [(size, [cell and _box(cell, report.budget_bytes) for cell in cells]) for size, cells in report.rows()]
    values = {"report": report, "rows": rows, "columns": report.columns(), "budget_at": BUDGET_AT, "legend": LEGEND}
    return rendered("fit.html.j2", **values)


def _box(cell: Cell, budget_bytes: int) -> Box:
    ratio = sliced(cell)
    kind = "over" if not cell.fits else "whole" if ratio is None else "sliced"
    sure = cell.known is CellSource.PLANNED
    bound = "" if cell.fits or sure else "≤ "
    over = "no plan fits" if sure else "no plan is known to fit"
    detail = {"over": over, "whole": "without slices", "sliced": f"{cell.time_ratio:.2f}x the time"}[kind]
    title = f"unsliced {format_bytes(cell.unsliced_peak_bytes)}; {cell.known.value}"
    shares = [min(100.0, BUDGET_AT * n / budget_bytes) for n in (cell.predicted_peak_bytes, cell.unsliced_peak_bytes)]
    return Box(kind, bound + format_bytes(cell.predicted_peak_bytes), detail, shares[0], shares[1], title)
