"""`sicompiler rehash show` and `sicompiler rehash frontier`."""

from __future__ import annotations

from pathlib import Path

from sicompiler.cli.files import check_file, check_folder
from sicompiler.cli.output import note, show_json
from sicompiler.cli.output import show as show_tables
from sicompiler.errors import BadInput, StalePlan
from sicompiler.rehash.book import CalibrationFile
from sicompiler.rehash.plan import RehashPlan
from sicompiler.reports.rehash_tables import plan_json, plan_tables, points_json, points_table


def show(path: Path, *, as_json: bool) -> int:
    """Print a plan.

    Raises:
        BadInput: the file can't be read.
        StalePlan: it holds no rehash plan.
    """
    plan = read_plan(path)
    if as_json:
        show_json(plan_json(plan))
    else:
        show_tables(*plan_tables(plan))
    return 0


def frontier(path: Path, plot: Path | None, lessons: Path | None, measured: Path | None, *, as_json: bool) -> int:
    """Print what could be had, and draw it if asked.

    Raises:
        BadInput: a file can't be read, is of something else, or there is nothing to draw.
        StalePlan: a file holds no rehash plan, or no lessons.
    """
    plan = read_plan(path)
    if plot is not None:  # the folder of a picture is made, as that of a page
        plot = check_file(check_folder(plot.parent, "the picture") / plot.name, "the picture")
    if plot is None and (lessons is not None or measured is not None):
        raise BadInput("--lessons and --measured are for the picture: add --plot FILE")
    if plot is not None:
        from sicompiler.reports.rehash_plot import error_picture, measured_panels, panels

        book = None if lessons is None else CalibrationFile.load(lessons)
        shown = [] if measured is None else measured_panels(read(measured, "measurements"))
        error_picture(plot, plan, panels(plan, book, shown))
    if as_json:
        show_json({"points": points_json(plan), "picture": None if plot is None else str(plot)})
    else:
        show_tables(points_table(plan))
        if plot is not None:
            note(f"drew {plot}")
    return 0


def read_plan(path: Path) -> RehashPlan:
    """Read a plan.

    Raises:
        BadInput: the file can't be read.
        StalePlan: it holds no rehash plan; names the file.
    """
    try:
        return RehashPlan.from_json(read(path, "plan"))
    except StalePlan as error:
        raise StalePlan(f"{path}: {error}") from error


def read(path: Path, what: str) -> str:
    """The text of a file.

    Raises:
        BadInput: it can't be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"can't read the {what} {path}: {getattr(error, 'strerror', None) or error}") from error
