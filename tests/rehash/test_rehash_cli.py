"""`sicompiler rehash`: plans from the command line, their tables and picture, one line for bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import sicompiler
import sicompiler.cli
from sicompiler import RehashPlan
from sicompiler.cli.rehash.options import SCHEDULERS
from sicompiler.rehash.book import CalibrationFile
from sicompiler.reports.rehash_plot import Curve, Panel, error_picture, measured_panels, panels
from sicompiler.reports.rehash_tables import held_bytes
from tests.command_line import Cli, command_line
from tests.pipeline_parts import image as picture
from tests.rehash_models import PromptedPipeline, prompted

PIPELINE = "tests.rehash_models:prompted"
BASE = ("--gb", "4MiB", "--steps", "8")
pytestmark = pytest.mark.usefixtures("fast_skips", "cached")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return command_line(capsys, monkeypatch, "rehash")


class Saved(NamedTuple):
    """What a calibration left behind."""

    plan: Path
    lessons: Path
    out: Any


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """One calibration, whose files many tests read."""
    folder = tmp_path_factory.mktemp("calibrated")
    prompts, plan, lessons = folder / "prompts.txt", folder / "plan.json", folder / "lessons.json"
    prompts.write_text("a cat\n\n  a dog runs\n")
    arguments = ["rehash", "calibrate", PIPELINE, *BASE, "--rel-error", "0.2", "--prompts", prompts, "--runs", "2"]
    arguments += ["--held-out", "1", "--output", plan, "--save-lessons", lessons]
    assert sicompiler.cli.run([str(a) for a in arguments]) == 0
    return Saved(plan, lessons, None)


def test_calibrate_saves_a_plan_that_runs(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    result = cli(
        "calibrate", PIPELINE, *BASE, "--rel-error", "0.2", "--prompt", "a cat", "--runs", "1", "--held-out", "1",
        "--seed", "7", "--scheduler", "euler", "--set", "height=12", "-o", path, "--json",
    )  # fmt: skip
    assert (result.status, result.err) == (0, "")
    found, plan = result.json, RehashPlan.load(path)
    assert found["plan"] == str(path)
    assert (found["evaluations"], found["full"]) == (8, len(plan.full))
    assert found["verified"]["runs"] == 1
    assert plan.scheduler.startswith("EulerDiscreteScheduler(")
    pipe = prompted()
    pipe.scheduler = sicompiler_scheduler(pipe, "euler")
    sicompiler.compile_for_budget(pipe, "4MiB", rehash=sicompiler.Rehash(plan=path))
    pipe("a cat", height=12)
    assert sicompiler.rehash_report(pipe).full == len(plan.full)


def sicompiler_scheduler(pipe: Any, name: str) -> Any:
    import diffusers

    return getattr(diffusers, SCHEDULERS[name]).from_config(pipe.scheduler.config)


def test_calibrate_for_people(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    result = cli("calibrate", PIPELINE, *BASE, "--psnr", "20", "--prompt", "a cat", "--runs", "1", "-o", path)
    assert result.status == 0
    for label in ("worst of 4 held-out runs", "guard stops above", "this plan", "what could be had"):
        assert label in result.out
    assert f'rehash=Rehash(plan="{path}")' in result.err


def test_a_rule_instead_of_a_plan(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    arguments = ("calibrate", PIPELINE, *BASE, "--rel-error", "0.5", "--prompt", "a cat", "--runs", "1", "-o", path)
    assert cli(*arguments, "--held-out", "0", "--strategy", "deepcache").status == 0
    assert RehashPlan.load(path).strategy == "deepcache"
    assert cli(*arguments, "--held-out", "0", "--order", "0").status == 0
    assert (RehashPlan.load(path).strategy, RehashPlan.load(path).order) == ("planned", 0)
    refused = cli(*arguments, "--strategy", "teacache")
    assert refused.status == 2
    assert "--strategy is one of planned, uniform, taylor, similarity, deepcache, got 'teacache'" in refused.err


def test_prompts_take_turns_and_seeds_count_up(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sicompiler.cli.rehash.calibrate as command

    seen: list[Any] = []

    def calibrate(state: Any) -> Any:
        seen.extend(state.rehash.request.calls)
        raise sicompiler.BadInput("enough")

    monkeypatch.setattr(command, "calibrate", calibrate)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("two\nthree\n")
    picture(3, 2).save(tmp_path / "first.png")
    cli(
        "calibrate", PIPELINE, "--gb", "1", "--rel-error", "0.1", "--prompt", "one", "--prompts", prompts, "--seed",
        "5", "-o", tmp_path / "p.json", "--set", "height=4",
        "--set", f"image=@{tmp_path / 'first.png'}",
    )  # fmt: skip
    assert [c["prompt"] for c in seen] == ["one", "two", "three", "one", "two", "three", "one", "two"]
    assert [c["generator"].initial_seed() for c in seen] == list(range(5, 13))
    assert all((c["height"], c["num_inference_steps"], c["output_type"]) == (4, 25, "pt") for c in seen)
    assert all((c["image"].size, c["image"].mode) == ((3, 2), "RGB") for c in seen)


def test_a_folder_is_loaded(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import diffusers

    monkeypatch.setattr(diffusers, "PromptedPipeline", PromptedPipeline, raising=False)
    prompted().save_pretrained(tmp_path / "model")
    path = tmp_path / "plan.json"
    result = cli(
        "calibrate", tmp_path / "model", *BASE, "--rel-error", "0.2", "--prompt", "a", "--runs", "1", "--held-out", "0",
        "-o", path,
    )  # fmt: skip
    assert (result.status, RehashPlan.load(path).pipeline) == (0, "PromptedPipeline")
    (tmp_path / "model" / "unet" / "config.json").unlink()
    broken = cli("calibrate", tmp_path / "model", *BASE, "--rel-error", "0.2", "--prompt", "a", "-o", path)
    assert broken.status == 2
    assert "diffusers can't load" in broken.err


def test_the_demo_is_used_where_there_is_one(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[Any] = []

    def demo_pipeline(*, dtype: Any = None) -> Any:
        made.append(dtype)
        return prompted()

    monkeypatch.setattr(sicompiler, "demo_pipeline", demo_pipeline, raising=False)
    result = cli("calibrate", "demo", *BASE, "--speedup", "99", "--prompt", "a", "--runs", "1", "-o", tmp_path / "p")
    assert len(made) == 1
    assert result.status == 2
    assert "the nearest target is speedup=" in result.err, "an unreachable target names what can be had"
    assert not (tmp_path / "p").exists()


PROMPTED = (PIPELINE, "--gb", "1", "--prompt", "a", "-o", "p.json")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Missing command"),
        (["shwo"], "No such command 'shwo'"),
        (["calibrate"], "Missing argument 'PIPELINE'"),
        (["calibrate", PIPELINE, "--gb", "1"], "Missing option '--output'"),
        (["calibrate", *PROMPTED], "exactly one of --speedup, --psnr, --rel-error; got none"),
        (["calibrate", *PROMPTED, "--speedup", "2", "--psnr", "30"], "got --speedup and --psnr"),
        (["calibrate", *PROMPTED, "--speedup", "0.5"], "a speed-up is above 1"),
        (["calibrate", *PROMPTED, "--psnr", "30", "--held-out", "0"], "--held-out of at least 1"),
        (["calibrate", *PROMPTED, "--speedup", "2", "--gb", "much"], "can't read 'much' as a size"),
        (
            ["calibrate", *PROMPTED, "--speedup", "2", "--output", "no/such/plan.json"],
            "in a folder that does not exist",
        ),
        (["calibrate", *PROMPTED, "--speedup", "2", "--scheduler", "eula"], "known: ddim, dpm++2m, euler"),
        (["calibrate", *PROMPTED, "--speedup", "2", "--scheduler", "flow-euler"], "can't be turned into"),
        (["calibrate", *PROMPTED, "--speedup", "2", "--set", "height"], "takes name=value, got 'height'"),
        (["calibrate", *PROMPTED, "--speedup", "2", "--set", "hight=3"], "takes no hight; it takes prompt, height"),
        (["calibrate", *PROMPTED, "--speedup", "2", "--set", "image=@no.png"], "can't read the picture no.png"),
        (["calibrate", *PROMPTED, "--speedup", "2", "--set", "height=3"], "refuses the call: height must be even"),
        (["calibrate", *PROMPTED, "--speedup", "2", "--prompts", "no.txt"], "can't read the prompts no.txt"),
        (["calibrate", *PROMPTED, "--speedup", "2", "--device", "cuda"], "no cuda device"),
        (["calibrate", *PROMPTED, "--speedup", "2", "--dtype", "int8"], "unknown dtype 'int8'"),
        (["calibrate", PIPELINE, "--gb", "1", "-o", "p.json", "--speedup", "2"], "PromptedPipeline needs prompts"),
        (["calibrate", "./nowhere", *PROMPTED[1:], "--speedup", "2"], "no such folder"),
        (["calibrate", "docs", *PROMPTED[1:], "--speedup", "2"], "no model_index.json"),
        (["calibrate", "nowhere:make", *PROMPTED[1:], "--speedup", "2"], "there is no module 'nowhere'"),
        (["calibrate", "tests.rehash_models:width", *PROMPTED[1:], "--speedup", "2"], "it returned a int"),
        (["show", "missing.json"], "can't read the plan missing.json: No such file"),
        (["frontier", "README.md"], "README.md: this is not a rehash plan"),
        (["show", "benchmarks/results/coverage.json"], "this is not a rehash plan"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_status_2(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    import torch

    if "cuda" in arguments:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = cli(*arguments)
    assert result.status == 2
    assert result.out == ""
    assert result.err.count("\n") == 1
    assert result.err.startswith("sicompiler: ")
    assert says in result.err
    assert not Path("p.json").exists()


def test_ctrl_c_says_what_is_kept_and_the_same_command_goes_on(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from sicompiler.cli.output import Progress

    path, lessons = tmp_path / "plan.json", tmp_path / "lessons.json"
    command: tuple[str | Path, ...] = (
        "calibrate", PIPELINE, *BASE, "--rel-error", "0.2", "--prompt", "a cat", "--runs", "3", "--held-out", "0",
        "-o", path, "--save-lessons", lessons,
    )  # fmt: skip
    told: list[tuple[str, int]] = []

    def interrupted(self: Progress, what: str, done: int, total: int) -> None:
        if what.startswith("Step Rehash"):
            told.append((what, done))
        if (what, done) == ("Step Rehash: learning", 2) and len(told) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "__call__", interrupted)
    result = cli(*command)
    assert result.status == 130
    known = f"sicompiler: 2 runs are in {lessons}: the same command goes on from there\n"
    assert result.err == f"{known}sicompiler: interrupted\n"
    assert not path.exists()
    assert cli(*command).status == 0
    again = [row for row in told[3:] if row[0] in ("Step Rehash: learning", "Step Rehash: calibrated")]
    assert again == [("Step Rehash: learning", 2), ("Step Rehash: calibrated", 3)]
    assert path.exists()


def test_show(cli: Cli, saved: Saved) -> None:
    plan, found = RehashPlan.load(saved.plan), cli("show", saved.plan, "--json").json
    assert [row["step"] for row in found["steps"] if row["ran"] == "full"] == list(plan.full)
    assert max(row["held_bytes"] for row in found["steps"]) == found["features_bytes"] == plan.snapshots_bytes
    for row, prediction in zip(found["steps"], plan.steps, strict=True):
        assert set(row["sources"]) <= set(row["held"])
        assert row["weights"] == ([] if prediction is None else list(prediction.weights))
    assert found["verified"]["psnr"] > 0
    text = cli("show", saved.plan).out
    assert len(re.findall(r"^ +\d+   (?:full|skip)", text, re.MULTILINE)) == plan.evaluations
    assert "of the final latents" in text


def test_held_bytes_count_every_call_of_a_step(saved: Saved) -> None:
    from dataclasses import replace

    one = RehashPlan.load(saved.plan)
    two = replace(one, branches=2)
    assert max(held_bytes(two, step) for step in range(two.evaluations)) == two.snapshots_bytes
    assert two.snapshots_bytes > one.snapshots_bytes


def test_frontier(cli: Cli, saved: Saved) -> None:
    plan, found = RehashPlan.load(saved.plan), cli("frontier", saved.plan, "--json").json
    speeds, errors = ([p[key] for p in found["points"]] for key in ("speedup", "predicted_error"))
    assert speeds == sorted(speeds, reverse=True)
    assert errors == sorted(errors, reverse=True)
    assert [p["full"] for p in found["points"] if p["chosen"]] == [len(plan.full)]
    assert found["picture"] is None
    assert cli("frontier", saved.plan).out.count("this plan") == 1


ROWS = [
    {"method": m, "speedup": 1.0 + i / 4, "rel_error": 0.001 * 2**i, "x": 1}
    for m in ("planned", "fewer steps")
    for i in range(3)
]


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_picture(cli: Cli, saved: Saved, tmp_path: Path, ending: str) -> None:
    picture, measured = tmp_path / f"new/out.{ending}", tmp_path / "measured.json"
    measured.write_text(json.dumps(ROWS))
    result = cli(
        "frontier", saved.plan, "--plot", picture, "--lessons", saved.lessons, "--measured", measured, "--json"
    )  # fmt: skip
    assert (result.status, result.json["picture"]) == (0, str(picture))
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG" if ending == "png" else b"<?xml")


def test_what_the_picture_shows(saved: Saved) -> None:
    plan, book = RehashPlan.load(saved.plan), CalibrationFile.load(saved.lessons)
    first, second, *cuts = panels(plan, book, measured_panels(json.dumps({"rows": ROWS})))
    assert first.curves[0].points == tuple((p.speedup, p.predicted_error) for p in reversed(plan.frontier()))
    assert (second.title, [c.method for c in second.curves]) == ("measured", ["planned", "fewer steps"])
    assert len(cuts) == len(book.cuts)
    cells = [row | {"scheduler": "ddim", "steps": steps} for row in ROWS for steps in (25, 50)]
    titles = [panel.title for panel in measured_panels(json.dumps(cells))]
    assert titles == ["measured: ddim, 25 steps", "measured: ddim, 50 steps"]
    for panel in cuts:
        best = dict(panel.curves[0].points)
        assert [c.method for c in panel.curves] == ["planned", "uniform", "taylor", "similarity", "deepcache"]
        for curve in panel.curves[1:]:
            for speedup, error in curve.points:
                assert best[speedup] <= 1.05 * error, f"{curve.method} beats the plan at {speedup}"


def test_pictures_that_cannot_be_drawn(cli: Cli, saved: Saved, tmp_path: Path) -> None:
    picture = tmp_path / "out.png"

    def refused(*arguments: str | Path) -> str:
        result = cli("frontier", saved.plan, *arguments)
        assert (result.status, result.out) == (2, "")
        return result.err

    assert "a picture ends in .pdf, .png, .svg, got 'out.gif'" in refused("--plot", "out.gif")
    assert "add --plot" in refused("--lessons", saved.lessons)
    assert "this is not a file of lessons" in refused("--plot", picture, "--lessons", saved.plan)
    assert "no result of the benchmark" in refused("--plot", picture, "--measured", saved.plan)
    other = CalibrationFile.load(saved.lessons)
    CalibrationFile("OtherPipeline", other.component, other.setting, other.importance, other.cuts, other.runs).save(
        picture
    )
    assert "the lessons are of OtherPipeline" in refused("--plot", tmp_path / "a.png", "--lessons", picture)
    with pytest.raises(sicompiler.BadInput, match="nothing to draw"):
        error_picture(picture, RehashPlan.load(saved.plan), [Panel("", (Curve("planned", ()),))])
