"""`sicompiler demo`: the first line is early, every stage says what it took, and a ready calibration is checked."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import sicompiler
import sicompiler.cli
from sicompiler import RehashPlan, StalePlan
from sicompiler.cli import demo_clip
from sicompiler.cli.demo_ready import READY, ready_plan, save_ready
from sicompiler.cli.output import Progress
from sicompiler.cli.stages import Stages
from sicompiler.demo.quality import GUIDANCE
from tests.source_tree import ROOT


@pytest.fixture(scope="module")
def pipe() -> Any:
    return sicompiler.demo_pipeline()


@pytest.mark.pure
def test_the_first_line_comes_before_torch(tmp_path: Path) -> None:
    began, command = time.perf_counter(), [sys.executable, "-m", "sicompiler.cli", "demo", "--output", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line, seconds = process.stderr.readline(), time.perf_counter() - began
        process.kill()
    assert line.startswith("sicompiler: a clip untouched")
    assert seconds < 3


@pytest.mark.pure
def test_a_caption_that_it_never_saw_is_refused_at_once(tmp_path: Path) -> None:
    code = f"""
import sys
from sicompiler.cli import run
assert run(["demo", "a purple cow", "--output", {str(tmp_path / "out")!r}]) == 2
assert "torch" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("\n") == 1
    assert "can't show 'a purple cow'" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.pure
def test_every_stage_is_one_line_with_its_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        stages = Stages("what comes", progress)
        with stages.stage("first"):
            progress("something below it", 1, 2)
        with stages.stage("second"):
            pass
    head, *lines = capsys.readouterr().err.splitlines()
    assert head == "sicompiler: what comes"
    assert [line.rpartition(":")[0] for line in lines] == ["sicompiler: first", "sicompiler: second"]
    assert all(line.endswith(" s") for line in lines)
    assert [stage.name for stage in stages.done] == ["first", "second"]


def test_the_calibration_that_comes_along_is_for_the_model_that_comes_along(pipe: Any) -> None:
    plan = ready_plan(pipe)
    assert plan.checked >= 4
    assert plan.verified is not None
    assert plan.verified.runs >= 2
    assert plan.guidance == f"guidance_scale {GUIDANCE:g}"
    assert plan.evaluations == demo_clip.STEPS
    fewer = next(other for other in plan.verified.others if other.method == "fewer steps")
    assert plan.verified.rel_error < fewer.rel_error


@pytest.mark.pure
def test_a_calibration_of_other_weights_is_refused(pipe: Any, tmp_path: Path) -> None:
    bias = pipe.unet.conv_out.bias
    before = bias.detach().clone()
    try:
        bias.data[0] += 1e-3
        with pytest.raises(StalePlan, match="other weights"):
            ready_plan(pipe)
    finally:
        bias.data.copy_(before)
    plan = ready_plan(pipe)
    save_ready(pipe, plan, tmp_path / "ready.json")
    assert ready_plan(pipe, tmp_path / "ready.json") == plan


@pytest.mark.pure
@pytest.mark.parametrize("text", [None, "", "[]", '{"weights": ""}', '{"weights": 1, "plan": {}}'])
def test_a_calibration_that_cannot_be_read_is_refused(text: str | None, pipe: Any, tmp_path: Path) -> None:
    path = tmp_path / "ready.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(StalePlan):
        ready_plan(pipe, path)


@pytest.mark.pure
@pytest.mark.parametrize("how", ["weights", "graph", "guidance"])
def test_what_was_not_calibrated_here_is_calibrated_anew(
    how: str, pipe: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A plan for other weights, for another graph, or for other guidance is said to be no use, and not used."""
    plan, calibrated = ready_plan(pipe), list[str]()

    def ready(_: Any) -> RehashPlan:
        if how == "weights":
            raise StalePlan("the ready calibration is for other weights than these")
        if how == "graph":
            return dataclasses.replace(plan, structure="another")
        return dataclasses.replace(plan, guidance="guidance_scale 7.5")

    def calibrate(pipe: Any, budget: str, *_: Any) -> None:
        calibrated.append(budget)
        raise InterruptedError

    def run_call(*_: Any) -> None:
        if how == "graph":
            raise StalePlan("the rehash plan was made for structure another")

    class Report:
        why = "the plan was checked in a loop with guidance_scale 7.5"

    monkeypatch.setattr(demo_clip, "ready_plan", ready)
    monkeypatch.setattr(demo_clip, "run_call", run_call)
    monkeypatch.setattr(demo_clip, "rehash_report", lambda _: Report)
    monkeypatch.setattr(demo_clip, "_calibrate", calibrate)
    try:
        with Progress() as progress, pytest.raises(InterruptedError):
            demo_clip._compiled(pipe, 2**30, dict, Stages("", progress), full=False)
    finally:
        if how != "weights":
            sicompiler.release(pipe)
    assert calibrated == [f"{2**30}B"]
    assert {"weights": "other weights", "graph": "structure another", "guidance": "guidance_scale 7.5"}[
        how
    ] in capsys.readouterr().err


@pytest.mark.pure
def test_a_promise_is_held_against_the_clip(pipe: Any) -> None:
    plan = dataclasses.replace(ready_plan(pipe), frames_error=0.01)
    assert "as promised" in demo_clip._promise(plan, 0.02)
    assert "MORE than promised" in demo_clip._promise(plan, 0.021)


@pytest.mark.pure
def test_the_calibration_lies_in_the_package() -> None:
    assert READY.is_file()
    assert RehashPlan.from_json(json.dumps(json.loads(READY.read_text())["plan"])).pipeline == "AnimateDiffPipeline"


@pytest.mark.slow
def test_the_whole_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sicompiler.cli.run(["demo", "--output", str(tmp_path), "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    untouched, exact, rehashed = found["rows"]
    assert exact["max_abs_error"] < 1e-5 < rehashed["max_abs_error"]
    assert max(exact["peak_bytes"], rehashed["peak_bytes"]) <= exact["budget_bytes"] < untouched["peak_bytes"]
    assert rehashed["full"] < exact["full"]
    assert "calibrating" not in said.err
    assert sum(stage["seconds"] for stage in found["stages"]) > 0
    assert (tmp_path / "clips.gif").is_file()
