"""What is read from files: values are checked against their types, and an error begins with the path of the field."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import sicompiler
from sicompiler import Plan, StalePlan
from sicompiler.codec import Malformed, decode
from sicompiler.demo import pipeline as demo
from sicompiler.rehash.book import CalibrationFile
from sicompiler.rehash.plan import RehashPlan

READY = Path(demo.__file__).parent / "rehash.json"


@dataclass(frozen=True)
class Inside:
    count: int
    share: float = 0.0


@dataclass(frozen=True)
class Outside:
    name: str
    parts: tuple[Inside, ...]
    pair: tuple[int, int] = (0, 0)
    least: int | None = None


GOOD = {"name": "a", "parts": [{"count": 1, "share": 2}], "pair": [1, 2], "least": None}


def test_what_fits_is_read() -> None:
    assert decode(Outside, GOOD) == Outside("a", (Inside(1, 2.0),), (1, 2))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"name": 3}, "name must be a text, got 3"),
        ({"parts": {}}, "parts must be a list, got {}"),
        ({"parts": [{"count": True}]}, r"parts\[0\].count must be a whole number, got True"),
        ({"parts": [{"count": 1.5}]}, r"parts\[0\].count must be a whole number, got 1.5"),
        ({"parts": [{"count": 1, "share": float("nan")}]}, r"parts\[0\].share must be a finite number, got nan"),
        ({"parts": [{"count": 1, "share": "2"}]}, r"parts\[0\].share must be a number, got '2'"),
        ({"parts": [{}]}, r"parts\[0\].count is missing"),
        ({"parts": [{"count": 1, "extra": 1}]}, r"parts\[0\].extra is no field of it"),
        ({"parts": [7]}, r"parts\[0\] must be an object, got 7"),
        ({"pair": [1]}, r"pair\[1\] is missing"),
        ({"pair": [1, 2, 3]}, "pair is wrong: .* at most 2 items"),
        ({"least": "0" * 100}, "least must be a whole number, got '0+..."),
    ],
)
def test_an_error_names_the_field(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(Malformed, match=f"^{says}"):
        decode(Outside, {**GOOD, **changed})


def ready() -> dict[str, Any]:
    return dict(json.loads(READY.read_text(encoding="utf-8"))["plan"])


def test_the_calibration_of_the_demo_is_read_and_written_as_it_was() -> None:
    assert json.loads(RehashPlan.from_json(json.dumps(ready())).to_json()) == ready()


def _set(value: Any, *path: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: Any) -> None:
        for part in path[:-1]:
            data = data[part]
        data[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_set("six", "steps", 8, "sources", 0), r"steps\[8\].sources\[0\] must be a whole number, got 'six'"),
        (_set(None, "cut"), "cut must be a list, got None"),
        (_set([[[["a", "b", "c"]]]], "kinds"), r"kinds\[0\]\[0\]\[0\] is wrong"),
        (lambda data: data.pop("scheduler"), "scheduler is missing"),
        (lambda data: data.pop("version"), "version is missing"),
        (_set(3, "extra"), "extra is no field of it"),
    ],
)
def test_a_rehash_plan_that_was_edited_names_the_field(change: Callable[[dict[str, Any]], None], says: str) -> None:
    data = ready()
    change(data)
    with pytest.raises(StalePlan, match=f"this is not a rehash plan: {says}"):
        RehashPlan.from_json(json.dumps(data))


LESSONS = {
    "version": 2,
    "pipeline": "P",
    "component": "unet",
    "setting": {"structure": "s", "scheduler": "DDIM()", "times": [1.0, 2.0], "guidance": "", "size": [4]},
    "importance": [1.0, 1.0],
    "cuts": [{"positions": [3], "names": ["add"], "nbytes": 64}],
    "runs": [
        {
            "label": "seed 0",
            "final_norm": 2.0,
            "lessons": [
                {
                    "cut": [3],
                    "grams": [[[1.0, 0.5], [0.5, 1.0]]],
                    "gains": [None, 2.0],
                    "full_seconds": 1.0,
                    "skip_seconds": 0.1,
                    "step_seconds": 0.0,
                    "kinds": [[["", ""]], [["", "cfg"]]],
                }
            ],
            "errors": {"1": 0.25},
        }
    ],
}


def test_lessons_are_read_and_written_as_they_were() -> None:
    file = CalibrationFile.from_json(json.dumps(LESSONS))
    assert file.runs[0].errors == {1: 0.25}
    assert file.runs[0].lessons[(3,)].grams[0].shape == (2, 2)
    assert json.loads(file.to_json()) == LESSONS


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_set("x", "runs", 0, "lessons", 0, "grams", 0, 1, 0), r"runs\[0\].lessons\[0\].grams\[0\]\[1\]\[0\] must be"),
        (_set("x", "runs", 0, "errors", "first"), r"runs\[0\].errors.first"),
        (_set(None, "setting"), "setting must be an object"),
    ],
)
def test_lessons_that_were_edited_name_the_field(change: Callable[[dict[str, Any]], None], says: str) -> None:
    data = json.loads(json.dumps(LESSONS))
    change(data)
    with pytest.raises(StalePlan, match=f"this is not a file of lessons: {says}"):
        CalibrationFile.from_json(json.dumps(data))


def test_a_plan_with_a_field_less_names_it() -> None:
    plan = Plan(
        "m", "f", "2", "cpu", "float32", 4, 1, 3, 2, None, "", None, (), 1.0,
        legal_fingerprint="l", rules="r", settings="s", sicompiler_version="0",
    )  # fmt: skip
    for name in json.loads(plan.to_json()):
        if name not in ("checksums", "version"):
            data = json.loads(plan.to_json())
            del data[name]
            with pytest.raises(StalePlan, match=f"this is not a plan: {name} is missing"):
                Plan.from_json(json.dumps(data))
    assert Plan.from_json(replace(plan, planner="mine").to_json()).planner == "mine"


def test_pydantic_is_imported_by_whoever_reads_a_file_only() -> None:
    text = "import sys, sicompiler, sicompiler.api; sys.exit('pydantic' in sys.modules)"
    root = Path(sicompiler.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", text], cwd=root, check=False).returncode == 0
