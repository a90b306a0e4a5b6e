"""What a command printed before is told again at once, and for nothing but the same question."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sicompiler.cli import answers
from sicompiler.cli.answers import recalled
from sicompiler.cli.options import ModelOptions
from sicompiler.device import Device

pytestmark = pytest.mark.pure


SVD = ModelOptions("svd")


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Asks a question; gives how often the command has run by then."""
    monkeypatch.setenv("SICOMPILER_CACHE", str(tmp_path / "cache"))
    runs: list[None] = []

    def ask(options: ModelOptions = SVD, status: int = 0, **more: Any) -> int:
        def run() -> int:
            runs.append(None)
            print("a table")
            return status

        assert recalled("plan", options, {"gb": "8", **more}, run) == status
        return len(runs)

    return ask


def test_the_same_question_is_answered_at_once(asked: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert asked() == asked() == asked() == 1
    printed = capsys.readouterr()
    assert printed.out == "a table\n" * 3
    assert printed.err.count("SICOMPILER_CACHE=off") == 2


def test_another_question_is_another_answer(asked: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    asked()
    assert asked(gb="9") == 2
    assert asked(replace(SVD, frames=7)) == 3
    monkeypatch.setenv("COLUMNS", "91")
    assert asked() == 4
    monkeypatch.setattr(answers, "installed", lambda: "another version")
    assert asked() == 5
    assert asked() == 5


@pytest.mark.parametrize("options", [ModelOptions("package:function"), replace(SVD, device=Device.CPU)])
def test_what_depends_on_more_than_the_question_is_worked_out(options: ModelOptions, asked: Callable[..., int]) -> None:
    asked(options)
    assert asked(options) == 2


def test_what_did_not_end_well_is_worked_out_again(asked: Callable[..., int]) -> None:
    asked(status=2)
    assert asked(status=2) == 2


def test_packages_that_somebody_works_in_say_nothing(
    asked: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "is_edited", lambda package: package == "diffusers")
    asked()
    assert asked() == 2


def test_a_folder_is_told_by_its_configurations(asked: Callable[..., int], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"layers": 1}')
    options = ModelOptions(str(folder))
    assert asked(options) == asked(options) == 1
    (folder / "config.json").write_text('{"layers": 2}')
    assert asked(options) == 2


def test_a_damaged_answer_is_written_anew(asked: Callable[..., int], tmp_path: Path) -> None:
    asked()
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    assert asked() == 2
    assert asked() == 2


def test_answers_do_not_import_torch() -> None:
    """It takes two seconds, which is what recalling an answer saves."""
    code = "import sys, sicompiler.cli.answers, sicompiler.cli.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
