"""Lessons in a file: a calibration that was interrupted goes on, and files of something else are refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import sicompiler
from sicompiler import Rehash, RehashPlan
from sicompiler.pipelines.rehash import hooks
from sicompiler.pipelines.rehash.labels import label_of
from sicompiler.rehash.book import CalibrationFile, LearnedRun, WatchedCut
from sicompiler.rehash.lessons import RunStats
from sicompiler.rehash.setting import Setting
from tests.mini_pipeline import MiniUNet, mini, picture
from tests.mini_rehash import skipping_is_fast, told_clock

pytestmark = pytest.mark.usefixtures("cached")

STEPS = 6
Calls = list[dict[str, Any]]
Progress = Callable[[str, int, int], None]


def calls(count: int, steps: int = STEPS, size: int = 24) -> Calls:
    return [{"image": picture(size) + 0.1 * number, "steps": steps} for number in range(count)]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """Evaluations take as long as they are told, so that plans can be compared."""
    return told_clock(monkeypatch, skipping_is_fast)


def calibrated(
    wanted: Sequence[dict[str, Any]], lessons: Path | None, progress: Progress | None = None, **others: Any
) -> RehashPlan:
    target = {"speedup": 1.3, "held_out": 1} | others.pop("target", {})
    pipe = others.pop("pipe", None) or mini()
    request = Rehash(calls=wanted, lessons=lessons, **target)
    sicompiler.compile_for_budget(pipe, "4MiB", rehash=request, progress=progress)
    plan = sicompiler.rehash_report(pipe).plan
    assert plan is not None
    return plan


class Interrupted(Exception):
    """Somebody pulled the plug."""


def timeless(plan: RehashPlan) -> RehashPlan:
    """A plan without what it says of seconds, which are measured anew each time."""
    return replace(plan, outside_seconds=0.0, points=())


def stop_at(number: int) -> Progress:
    def progress(what: str, done: int, total: int) -> None:
        if what == "Step Rehash: learning" and done == number:
            raise Interrupted

    return progress


class Told:
    """What was told of the calibration."""

    def __init__(self) -> None:
        self.learned: list[int] = []

    def __call__(self, what: str, done: int, total: int) -> None:
        if what == "Step Rehash: learning":
            self.learned.append(done)


def test_an_interrupted_calibration_goes_on_and_gives_the_same_plan(tmp_path: Path) -> None:
    whole = calibrated(calls(4), None)
    path, told = tmp_path / "lessons.json", Told()
    with pytest.raises(Interrupted):
        calibrated(calls(4), path, stop_at(1))
    assert len(CalibrationFile.load(path).runs) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["lessons.json"]
    assert timeless(calibrated(calls(4), path, told)) == timeless(whole)
    assert told.learned == [1, 2]
    again = Told()
    assert timeless(calibrated(calls(4), path, again)) == timeless(whole), "all runs are known"
    assert again.learned == []
    assert len(CalibrationFile.load(path).runs) == 3


def test_the_first_run_says_what_the_others_say(clock: Callable[[], float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Capturing the graph, which only the first run does, is no part of a step."""
    resolve, seconds = hooks.PipelineRehash._resolve, 0.0

    def slow(self: hooks.PipelineRehash, *args: Any) -> None:
        nonlocal seconds
        seconds += 1000.0
        resolve(self, *args)

    monkeypatch.setattr(hooks.PipelineRehash, "_resolve", slow)
    monkeypatch.setattr(hooks, "time", SimpleNamespace(perf_counter=lambda: clock() + seconds))
    assert calibrated(calls(1), None, target={"held_out": 0}).step_seconds == 0.0


def test_only_lessons_of_the_calls_that_are_asked_for_count(tmp_path: Path) -> None:
    path, told = tmp_path / "lessons.json", Told()
    calibrated(calls(4), path)
    few = calibrated(calls(4)[2:], path, told)
    assert told.learned == []
    fresh = calibrated(calls(4)[2:], None)
    assert timeless(few) == timeless(fresh), "the held-out call of before, and that of now, were not learned from"
    more = Told()
    calibrated(calls(6), path, more)
    assert more.learned == [3, 4]


def test_a_book_is_read_as_it_was_written() -> None:
    gram, gains = np.array([[1.0, 0.1 + 0.2], [0.3, 1 / 3]]), np.array([math.nan, 1e-300])
    cut = WatchedCut((3, 7), ("add", "mul"), 64)
    book = CalibrationFile("Pipe", "unet", Setting("abc", "DDIM()", (0.1, 2.0)), (1.0, 0.5))
    book = book.with_run(LearnedRun("a", 1 / 3, {cut.positions: RunStats((gram, gram.T), gains, 2.0, 1.0, 0.5)}), [cut])
    again = CalibrationFile.from_json(book.to_json())
    assert again.to_json() == book.to_json()
    (rows,), (before,) = again.lessons(), book.lessons()
    assert np.array_equal(rows.gram, before.gram)
    assert np.array_equal(rows.weight, before.weight)
    assert (rows.full_seconds, rows.skip_seconds, rows.step_seconds) == (2.0, 1.0, 0.5)
    assert (rows.final_norm, again.subject.branches) == (1 / 3, 2)
    with pytest.raises(sicompiler.BadInput, match="has 64 bytes, but here it has 32"):
        book.with_run(book.runs[0], [replace(cut, nbytes=32)])
    assert [run.label for run in book.of(["a", "a", "b"]).runs] == ["a"], "one run stands for one call"


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The lessons of one run."""
    path = tmp_path_factory.mktemp("lessons") / "lessons.json"
    request = Rehash(rel_error=0.9, calls=calls(1), lessons=path)
    with pytest.MonkeyPatch.context() as patch:
        told_clock(patch, skipping_is_fast)
        sicompiler.compile_for_budget(mini(), "4MiB", rehash=request)
    return path.read_text()


class Deeper(MiniUNet):
    """Another graph."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        found = super().forward(*args, **kwargs)
        return type(found)(sample=found.sample.tanh())


def _others() -> dict[str, tuple[Calls, Callable[[], Any], str]]:
    return {
        "scheduler": (calls(1), lambda: mini(scheduler=diffusers.EulerDiscreteScheduler()), "of scheduler DDIM"),
        "steps": (calls(1, STEPS + 2), mini, "of 6 evaluations, but this is one of 8"),
        "graph": (calls(1), lambda: mini(unet=Deeper()), "the graph of its denoiser has other operators"),
        "size": (calls(1, size=32), mini, "another size or dtype"),
    }


@pytest.mark.parametrize("what", _others())
def test_lessons_of_another_setting_are_refused(known: str, tmp_path: Path, what: str) -> None:
    path = tmp_path / "lessons.json"
    path.write_text(known)
    wanted, make, message = _others()[what]
    wanted = [{**call, "image": call["image"] + 0.5} for call in wanted]
    pipe = make()
    with pytest.raises(sicompiler.BadInput, match=message) as caught:
        calibrated(wanted, path, pipe=pipe, target={"held_out": 0})
    assert "another file" in str(caught.value)
    assert path.read_text() == known
    with pytest.raises(sicompiler.NotCompiled):
        sicompiler.report(pipe)


def test_a_graph_is_looked_at_even_where_every_run_is_known(known: str, tmp_path: Path) -> None:
    path = tmp_path / "lessons.json"
    path.write_text(known)
    with pytest.raises(sicompiler.BadInput, match="other operators"):
        calibrated(calls(2), path, pipe=mini(unet=Deeper()))


def test_files_that_hold_no_lessons_are_refused(known: str, tmp_path: Path) -> None:
    path = tmp_path / "lessons.json"
    for text, message in (
        ("{}", "not a file of lessons: version is missing"),
        ("[1]", "not a file of lessons"),
        ("lessons", "not a file of lessons: it is no JSON"),
        (json.dumps(json.loads(known) | {"version": 99}), "have format 99, this version reads 2"),
    ):
        path.write_text(text)
        with pytest.raises(sicompiler.StalePlan, match=message):
            calibrated(calls(2), path)
        assert path.read_text() == text
    with pytest.raises(sicompiler.BadInput, match="there is no such folder"):
        calibrated(calls(2), tmp_path / "no" / "lessons.json")
    with pytest.raises(sicompiler.BadInput, match="can't read the lessons"):
        calibrated(calls(2), tmp_path)
    with pytest.raises(sicompiler.BadInput, match="give the calls too"):
        Rehash(speedup=2, lessons=path)


def test_calls_are_known_again_by_what_they_ask_for() -> None:
    def call(seed: int, **others: Any) -> dict[str, Any]:
        return {"prompt": "a cat", "generator": torch.Generator().manual_seed(seed), "height": 16, **others}

    assert label_of(call(1)) == label_of(dict(reversed(call(1).items())))
    labels = [
        label_of(c)
        for c in (call(1), call(2), call(1, height=8), call(1, image=picture()), call(1, image=picture() + 1))
    ]
    assert len(set(labels)) == len(labels)
    assert label_of({"prompt": "a cat", "scale": torch.tensor(1.0)}) == "fdabf42d35fe33fa", "in every process"
