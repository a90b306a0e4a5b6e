"""What fits a budget, told to people and to machines: a table of frames against resolution, the peak as a formula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sicompiler.reports.summary import table
from sicompiler.units import format_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType


class CellSource(StrEnum):
    """Where the numbers of a cell come from."""

    PLANNED = "planned"  # captured and searched in full: what `sicompiler plan` says
    FORM = "closed form"  # the unsliced peak, exact
    REGIONS = "known regions"  # a plan of regions that are good at another size: its peak is exact, a better may exist


@dataclass(frozen=True)
class Cell:
    """One size of the video.

    Attributes:
        frames, height, width: in video frames and pixels; None for what the model does not have.
        fits: whether a plan within the budget is known.
        unsliced_peak_bytes: predicted without slicing; of a pipeline, with everything resident.
        predicted_peak_bytes: of the plan that fits; of the one with the lowest peak, where none is known to.
        time_ratio: predicted time over that without slicing.
        known: where the numbers come from.
        phase: what sets the predicted peak of a pipeline.
    """

    frames: int | None
    height: int | None
    width: int | None
    fits: bool
    unsliced_peak_bytes: int
    predicted_peak_bytes: int
    time_ratio: float
    known: CellSource
    phase: str = ""

    @property
    def size(self) -> str:
        """Height and width."""
        return "" if self.height is None else f"{self.height}x{self.width}"


@dataclass(frozen=True)
class PeakForm:
    """A closed form of the unsliced peak.

    Attributes:
        label: of the part of a pipeline; empty for a single model.
        expression: in frames F, rows H and columns W of latents; sympy reads it.
        operators: that set the peak, one for each argument of the maximum.
        checked: at how many sizes it was compared with the sum of all that is alive.
    """

    label: str
    expression: str
    operators: tuple[str, ...]
    checked: int


@dataclass(frozen=True)
class FitReport:
    """The table of a model.

    Attributes:
        model, device, dtype: what was planned.
        budget_bytes: what was asked for.
        cells: one per frames and size.
        forms: of the unsliced peak, where there is one.
        units: what F, H and W are.
        notes: what has no closed form, and why.
    """

    model: str
    device: str
    dtype: str
    budget_bytes: int
    cells: tuple[Cell, ...]
    forms: tuple[PeakForm, ...]
    units: str
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def columns(self) -> list[int | None]:
        """The frames of the table."""
        return sorted({cell.frames for cell in self.cells}, key=lambda n: n or 0)

    def rows(self) -> list[tuple[str, list[Cell | None]]]:
        """The sizes of the table, small ones first, and their cells."""
        sizes = sorted({(c.height, c.width) for c in self.cells}, key=lambda s: ((s[0] or 0) * (s[1] or 0), s[0] or 0))
        found = {(c.height, c.width, c.frames): c for c in self.cells}
        rows = [(size, [found.get((*size, frames)) for frames in self.columns()]) for size in sizes]
        return [("any size" if h is None else f"{h}x{w}", cells) for (h, w), cells in rows]

    def renderables(self) -> list[RenderableType]:
        """For people."""
        from rich.text import Text

        head = Text(f"{self.model}, {self.dtype}, {self.device}: what fits {format_bytes(self.budget_bytes)}", "bold")
        columns = ["height x width", *(f"{n} frames>" for n in self.columns())]
        rows = [[size, *(cell_text(cell) for cell in cells)] for size, cells in self.rows()]
        found: list[RenderableType] = [head, table("", columns, rows), Text(LEGEND, "dim")]
        if self.forms:
            found += form_lines(self.forms, self.units)
        return [*found, *(Text(f" {note}", "dim") for note in self.notes)]


LEGEND = (
    " Predicted peak; where slices are needed, also the time over that without. x: no plan is known to fit, with the\n"
    " lowest peak found, after <= where not every plan was searched. *: planned in full. Others that need slices are\n"
    " exact for a plan whose regions are good at a size that was planned in full: a better plan may exist."
)


def cell_text(cell: Cell | None) -> str:
    """One cell of the table."""
    if cell is None:
        return ""
    star = "*" if cell.known is CellSource.PLANNED else ""
    size = format_bytes(cell.predicted_peak_bytes)
    if not cell.fits:
        return f"x {size}{star}" if star else f"x <= {size}"
    return f"{size}{star}" if sliced(cell) is None else f"{size}, {cell.time_ratio:.2f}x{star}"


def sliced(cell: Cell) -> float | None:
    """The time ratio of a cell that needs slices to fit; None for one that fits without."""
    return None if cell.predicted_peak_bytes == cell.unsliced_peak_bytes else cell.time_ratio


def form_lines(forms: Sequence[PeakForm], units: str) -> list[RenderableType]:
    """The closed forms, for people."""
    from rich.text import Text

    found: list[RenderableType] = [Text(f"\nunsliced peak in bytes; {units}", "bold")]
    for form in forms:
        found.append(Text(f" {form.label}{': ' if form.label else ''}{form.expression}"))
        found.append(Text(f"   at {', '.join(form.operators)}; compared at {form.checked} sizes", "dim"))
    return found
