"""`sicompiler fit`: the table of what fits, for people, machines and browsers; and pipelines without a budget."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sicompiler.cli
from sicompiler.cli import grid
from sicompiler.cli.fit import frames_of, sizes_of
from sicompiler.cli.options import ModelOptions
from sicompiler.cli.output import Progress
from sicompiler.cli.subjects import subject
from sicompiler.errors import BadInput
from sicompiler.reports.fit import Cell, CellSource, FitReport, PeakForm, cell_text
from sicompiler.reports.fit_page import fit_page
from sicompiler.scaling.form import Point
from sicompiler.scaling.peak import closed_peak, evaluate
from sicompiler.scaling.points import choose_points
from sicompiler.zoo import known_presets
from sicompiler.zoo.pipelines import PIPELINE_PRESETS
from tests.source_tree import ROOT

MLP = "tests.cli_models:mlp"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(ROOT)

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        status = sicompiler.cli.run([str(a) for a in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_every_cell_is_what_a_plan_there_says(run: Run) -> None:
    frames = (64, 128, 200, 256, 512)
    arguments = ("fit", MLP, "--gb", "150KiB", "--frames", ",".join(map(str, frames)), "--json")
    status, out, _ = run(*arguments)
    assert status == 0
    found = json.loads(out)
    assert [cell["frames"] for cell in found["cells"]] == list(frames)
    for cell in found["cells"]:
        plan = json.loads(run("plan", MLP, "--gb", "150KiB", "--frames", str(cell["frames"]), "--json")[1])
        assert cell["unsliced_peak_bytes"] == plan["unsliced_peak_bytes"]
        assert cell["fits"] == plan["fits"]
        assert cell["predicted_peak_bytes"] <= 150 * 1024 or not cell["fits"]
        if cell["known"] == "planned":
            assert cell["predicted_peak_bytes"] in (plan["predicted_peak_bytes"], plan["unsliced_peak_bytes"])
    assert {cell["known"] for cell in found["cells"]} == {"planned", "closed form", "known regions"}
    (form,) = found["forms"]
    assert form["expression"] == "1152*F + 8512"
    exact = json.loads(run(*arguments, "--exact")[1])
    assert {cell["known"] for cell in exact["cells"]} == {"planned"}
    assert [c["fits"] for c in exact["cells"]] == [c["fits"] for c in found["cells"]]
    assert exact["forms"] == []


def test_what_does_not_fit_is_planned_where_it_is_close_and_a_bound_elsewhere(run: Run) -> None:
    found = json.loads(run("fit", MLP, "--gb", "60KiB", "--frames", "32,64,128,256,512", "--json")[1])
    for cell in found["cells"]:
        close = cell["predicted_peak_bytes"] <= grid.BORDERLINE * 60 * 1024
        assert cell["fits"] or cell["known"] == "planned" or not close
        assert cell["fits"] == (cell["predicted_peak_bytes"] <= 60 * 1024)


def test_for_people_and_as_a_page(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "fit.html"
    status, out, _ = run("fit", MLP, "--gb", "100KiB", "--frames", "64,128,192,256", "--html", page)
    assert status == 0
    for text in ("64 frames", "any size", "what fits 100 KiB", "1152*F + 8512", "gelu"):
        assert text in out
    text = page.read_text()
    assert text.count("<td") == 4
    assert "http" not in text
    assert "1152*F + 8512" in text


def test_an_interrupt_prints_what_is_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Any] = []
    whole = grid.Grid.cell

    def interrupted(self: grid.Grid, *where: Any) -> Cell:
        if looked:
            raise KeyboardInterrupt
        looked.append(where)
        return whole(self, *where)

    monkeypatch.setattr(grid.Grid, "cell", interrupted)
    status, out, _ = run("fit", MLP, "--gb", "1MiB", "--frames", "64,128")
    assert status == 0
    assert "interrupted: 1 of 2 sizes" in out
    status, out, _ = run("fit", MLP, "--gb", "1MiB", "--frames", "64,128")  # before anything is there
    assert (status, out) == (sicompiler.cli.INTERRUPTED, "")


@pytest.mark.pure
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["fit", MLP], "Missing option '--gb'"),
        (["fit", MLP, "--gb", "1", "--frames", "few"], "can't read 'few' as frames"),
        (["fit", MLP, "--gb", "1", "--frames", "0"], "can't read '0' as frames"),
        (["fit", "svd", "--gb", "1", "--size", "576"], "can't read '576' as sizes"),
        (["fit", "svd", "--gb", "1", "--size", "570x1024"], "multiple of 8, got 570"),
        (["fit", "wan2.1-1.3b", "--gb", "1", "--frames", "80"], "frames = 4 * k + 1, got 80; try 77 or 81"),
        (["fit", "wan2.1-1.3b-pipeline", "--gb", "1", "--frames", "80"], "frames = 4 * k + 1, got 80"),
        (["fit", "svdd", "--gb", "1"], "unknown preset 'svdd'; did you mean 'svd'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_status_2(run: Run, arguments: list[str], says: str) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1


@pytest.mark.pure
def test_sizes_are_read_as_people_write_them() -> None:
    assert frames_of("14, 25") == [14, 25]
    assert sizes_of("576x1024, 320×576") == [(576, 1024), (320, 576)]
    assert frames_of(None) == []
    assert sizes_of(None) == []
    with pytest.raises(BadInput, match="height x width"):
        sizes_of("576x")


@pytest.mark.parametrize("name", [*known_presets(), *PIPELINE_PRESETS])
def test_a_preset_takes_every_size_of_its_own_table(name: str) -> None:
    found = subject(ModelOptions(name), Progress(), (None, None, None))
    videos = found.scale.grid([], [])
    assert len(videos) >= 6
    points = [found.scale.point(video) for video in videos]
    default = found.scale.default
    assert (default.frames, default.height, default.width) in videos
    for video, point in zip(videos, points, strict=True):
        pixels = found.scale.pixels(point)
        assert (pixels.frames, pixels.height, pixels.width) == video


@pytest.mark.pure
def test_the_text_of_a_cell_says_how_sure_it_is() -> None:
    cell = Cell(14, 576, 1024, True, 2**30, 2**30, 1.0, CellSource.FORM)
    assert cell_text(cell) == "1.00 GiB"
    rows = {
        "1.00 GiB*": Cell(14, 576, 1024, True, 2**30, 2**30, 1.0, CellSource.PLANNED),
        "1.00 GiB, 1.20x": Cell(14, 576, 1024, True, 2**31, 2**30, 1.2, CellSource.REGIONS),
        "1.00 GiB, 1.20x*": Cell(14, 576, 1024, True, 2**31, 2**30, 1.2, CellSource.PLANNED),
        "x <= 1.00 GiB": Cell(14, 576, 1024, False, 2**31, 2**30, 1.2, CellSource.REGIONS),
        "x 1.00 GiB*": Cell(14, 576, 1024, False, 2**31, 2**30, 1.2, CellSource.PLANNED),
    }
    assert {text: cell_text(found) for text, found in rows.items()} == {text: text for text in rows}
    assert cell_text(None) == ""


@pytest.mark.pure
def test_a_table_has_its_sizes_in_order_and_names_are_escaped_in_the_page() -> None:
    cells = tuple(Cell(f, h, w, True, 9, 9, 1.0, CellSource.FORM) for h, w in ((64, 64), (32, 64)) for f in (9, 5))
    forms = (PeakForm("unet", "F*H", ("conv",), 3),)
    report = FitReport("<b>", "cuda", "float16", 10, cells, forms, "F frames", ("a note",))
    assert report.columns() == [5, 9]
    assert [size for size, _ in report.rows()] == ["32x64", "64x64"]
    page = fit_page(report)
    assert "&lt;b&gt;" in page
    assert "a note" in page


def test_explain_prints_the_formula_alone(run: Run) -> None:
    status, out, _ = run("explain", MLP, "--form", "--frames", "128", "--json")
    assert status == 0
    assert json.loads(out)["peak"]["expression"] == "1152*F + 8512"
    assert "1152*F + 8512" in run("explain", MLP, "--form", "--frames", "128")[1]
    assert run("explain", MLP, "--form", "--frames", "1")[0] == 2


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fresh"), [("svd", (18, 48, 88)), ("cogvideox-2b", (9, 44, 74))])
def test_at_full_size_a_size_that_was_not_captured_is_what_a_plan_there_says(name: str, fresh: Point) -> None:
    found = subject(ModelOptions(name), Progress(), (None, None, None))
    videos = found.scale.grid([], [])
    steps = found.scale.steps(videos)
    points = choose_points([found.scale.point(video) for video in videos], steps)
    assert points is not None
    assert fresh not in points
    model = found.models[0].model
    learned = model.learn(points)
    sized, planner = learned.sized(fresh), model.planned(fresh)
    assert sized is not None
    carried = learned.planner_at(fresh, sized)
    assert carried.unsliced_bytes == planner.unsliced_bytes
    assert evaluate(closed_peak(learned, [], steps).expression, fresh) == planner.unsliced_bytes
    floor, bound = planner.floor()[0], carried.floor()[0]
    assert floor <= bound <= 1.1 * floor
    plan = carried.plan(bound)
    assert planner.plan(plan.predicted_peak_bytes).seconds <= plan.seconds * (1 + 1e-9)
