"""The command line under bad conditions: full disks, foreign files, interrupts, terminals without a size."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sicompiler
import sicompiler.cli
import sicompiler.cli.demo_clip
import sicompiler.cli.fit
import sicompiler.cli.plan
import sicompiler.cli.rehash.calibrate
from sicompiler.cli import files, output
from sicompiler.ops.mapped import FOLDER_VARIABLE, offload_folder, offloaded_tensor
from sicompiler.plan import Plan
from sicompiler.rehash.plan import RehashPlan
from tests.cli_models import untraceable
from tests.command_line import Cli, Result, command_line
from tests.source_tree import ROOT

MLP = "tests.cli_models:mlp"


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return command_line(capsys, monkeypatch)


def refused(said: Result) -> str:
    """The one line of a command that refuses."""
    status, out, err = said
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("sicompiler: ")
    return err


# Outputs


def _places(folder: Path) -> dict[str, tuple[Path, str]]:
    (folder / "file").write_text("x")
    places = {
        "missing": (folder / "none" / "x.json", "in a folder that does not exist"),
        "below a file": (folder / "file" / "x.json", "in a folder that does not exist"),
        "long": (folder / ("x" * 300), "name too long"),
        "nobody": (Path("~nobody-of-that-name/x.json"), "home directory"),
    }
    if Path("/dev/full").exists():
        places["full"] = (Path("/dev/full"), "No space left")
    if os.geteuid():
        (folder / "locked").mkdir(mode=0o555)
        places["locked"] = (folder / "locked" / "x.json", "Permission denied")
        (folder / "protected").touch(mode=0o444)
        places["protected"] = (folder / "protected", "Permission denied")
    return places


@pytest.mark.pure
@pytest.mark.parametrize("command", ["plan", "fit", "calibrate"])
def test_outputs_are_looked_at_before_any_work(
    cli: Cli, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reached(*_: object, **__: object) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr(sicompiler.cli.plan, "find", reached)
    monkeypatch.setattr(sicompiler.cli.fit, "subject", reached)
    monkeypatch.setattr(sicompiler.cli.rehash.calibrate, "load_pipeline", reached)
    arguments = {
        "plan": ("plan", MLP, "--output"),
        "fit": ("fit", MLP, "--gb", "1", "--html"),
        "calibrate": ("rehash", "calibrate", "demo", "--gb", "1", "--speedup", "1.5", "--output"),
    }[command]
    for path, says in {**_places(tmp_path), "folder": (tmp_path, "is a folder")}.values():
        assert says in refused(cli(*arguments, path)), path
    before = sorted(tmp_path.iterdir())
    with pytest.raises(AssertionError, match="work began"):
        cli(*arguments, tmp_path / "good.json")
    assert sorted(tmp_path.iterdir()) == before, "looking leaves nothing behind"


@pytest.mark.pure
def test_the_folder_of_the_demo_is_looked_at_before_any_work(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sicompiler.cli.demo_clip, "demo_pipeline", None)
    (tmp_path / "file").write_text("x")
    assert "is a file, not a folder" in refused(cli("demo", "--output", tmp_path / "file"))
    assert "can't save" in refused(cli("demo", "--output", tmp_path / "file" / "below"))


def test_what_was_computed_is_not_lost_with_the_disk(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, path = files.write, tmp_path / "plan.json"

    def full(target: Path, text: str) -> None:
        if target == path:
            raise OSError(28, os.strerror(28))
        own(target, text)

    monkeypatch.setattr(files, "write", full)
    status, out, err = cli("plan", MLP, "--gb", "1", "--output", path)
    assert status == 2
    assert "predicted peak" in out
    assert "No space left on device; it is in " in err
    rescued = Path(err.rsplit("it is in ", 1)[1].strip())
    assert Plan.from_json(rescued.read_text()).model == "Mlp" or rescued.exists()
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **_: str(tmp_path / "none"))
    status, out, err = cli("plan", MLP, "--gb", "1", "--output", path)
    assert "it was printed instead" in err
    assert Plan.from_json(out[out.index("{") :]).fits


@pytest.mark.pure
def test_a_file_is_written_in_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, link = tmp_path / "plan.json", tmp_path / "link"
    path.write_text("before")
    path.chmod(0o640)
    link.symlink_to(path)
    files.write(link, "after")
    assert (path.read_text(), link.is_symlink(), stat.S_IMODE(path.stat().st_mode)) == ("after", True, 0o640)

    def interrupted(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write(path, "half")
    assert path.read_text() == "after"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "plan.json"]


# Files of another kind


@pytest.fixture(scope="module")
def some_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan, the summary of one, and files that are neither."""
    folder = tmp_path_factory.mktemp("files")
    here = Path.cwd()
    os.chdir(ROOT)
    try:
        assert sicompiler.cli.run(["plan", MLP, "--gb", "1", "--output", str(folder / "plan.json")]) == 0
    finally:
        os.chdir(here)
    (folder / "rehash.json").write_text(json.dumps({"pipeline": "P", "steps": [], "cut": [0], "version": 3}))
    (folder / "summary.json").write_text(json.dumps({"unsliced_peak_bytes": 1, "predicted_seconds": 1.0}))
    (folder / "empty.json").write_text("")
    (folder / "binary.json").write_bytes(bytes(range(128, 256)))
    (folder / "cut.json").write_text((folder / "plan.json").read_text()[:200])
    (folder / "old.json").write_text((folder / "plan.json").read_text().replace('"version": 3', '"version": 2'))
    (folder / "folder.json").mkdir()
    return folder


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("rehash", "it is a rehash plan"),
        ("summary", "plan --json prints"),
        ("empty", "it is empty"),
        ("binary", "can't read the plan"),
        ("cut", "it is no JSON"),
        ("old", "has format 2, this version reads format 3"),
        ("folder", "Is a directory"),
        ("missing", "No such file"),
    ],
)
def test_diff_says_which_file_is_broken_and_what_it_is(cli: Cli, some_files: Path, name: str, says: str) -> None:
    good, bad = some_files / "plan.json", some_files / f"{name}.json"
    for pair in ((good, bad), (bad, good)):
        line = refused(cli("diff", *pair))
        assert says in line
        assert str(bad) in line
        assert str(good) not in line
    assert cli("diff", good, good)[:2] == (0, "the plans are the same\n")


@pytest.mark.pure
def test_a_plan_in_the_place_of_a_rehash_plan_is_called_that(cli: Cli, some_files: Path) -> None:
    good = some_files / "plan.json"
    for command in (("rehash", "show"), ("rehash", "frontier")):
        line = refused(cli(*command, good))
        assert "this is not a rehash plan: it is a plan (sicompiler plan --output)" in line
        assert str(good) in line
    with pytest.raises(sicompiler.StalePlan, match="it is a plan"):
        RehashPlan.load(good)


# Sizes


@pytest.mark.pure
@pytest.mark.parametrize("option", ["--frames", "--batch"])
@pytest.mark.parametrize("value", ["-1", "0"])
def test_a_function_is_not_called_with_sizes_that_are_none(cli: Cli, option: str, value: str) -> None:
    for command in (("plan", MLP), ("explain", MLP), ("dump", MLP), ("verify", MLP, "--gb", "1")):
        assert f"must be a positive whole number, got {value}" in refused(cli(*command, option, value))


def test_sizes_beyond_all_numbers_are_one_line(cli: Cli) -> None:
    line = refused(cli("plan", MLP, "--frames", "9" * 30))
    assert len(line) < 400
    assert "frame #" not in line
    assert "no model is named" in refused(cli("plan", ""))


# Torch's own screens


class WrongShape(nn.Module):
    """Says something, then multiplies matrices that don't fit."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Fail."""
        print("the model's own words")
        y: torch.Tensor = self.inner(x)
        return y


def _capture_fails(make: Callable[[], tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]) -> None:
    model, args, kwargs = make()
    with pytest.raises(sicompiler.CaptureError):
        sicompiler.compile_for_budget(model, 1, example_inputs=(args, kwargs))


@pytest.mark.parametrize("make", [untraceable, lambda: (WrongShape(), (torch.ones(3, 5),), {})], ids=["branch", "op"])
def test_what_torch_prints_and_logs_before_it_raises_is_not_shown(
    make: Callable[[], Any], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    capfd.readouterr()
    _capture_fails(make)
    out, err = capfd.readouterr()
    assert out.replace("the model's own words\n", "") == ""
    assert err == ""
    assert not [record for record in caplog.records if record.name.split(".")[0] == "torch"]


def test_with_torch_logs_everything_is_shown(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_LOGS", "+export")
    _capture_fails(lambda: (WrongShape(), (torch.ones(3, 5),), {}))
    out, err = capfd.readouterr()
    shown = err + caplog.text
    assert "failed while attempting to run meta" in shown
    assert "the model's own words" in out


def test_the_command_line_says_one_line_where_torch_says_many(cli: Cli) -> None:
    assert "can't be captured" in refused(cli("plan", "tests.cli_models:untraceable"))


# Interrupts


@pytest.mark.parametrize("stage", ["find", "prepare", "save"])
def test_ctrl_c_says_interrupted_and_leaves_nothing(
    cli: Cli, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sicompiler.cli.plan, stage, interrupted)
    status, _, err = cli("plan", MLP, "--gb", "1", "--output", tmp_path / "plan.json")
    assert (status, err) == (130, "sicompiler: interrupted\n")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_table_is_printed_and_said_to_be(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from sicompiler.cli.grid import Grid

    own = Grid.cell
    monkeypatch.setattr(Grid, "cell", lambda self, *a: own(self, *a) if not self.cells else _interrupt())
    status, out, err = cli("fit", MLP, "--gb", "1", "--frames", "8,16,24")
    assert status == 0, "what it prints is right, and says how far it came"
    assert err.startswith("sicompiler: interrupted")
    assert "interrupted: 1 of 3 sizes" in out


def _interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.slow
def test_a_stdout_that_is_full_or_closed_is_no_traceback() -> None:
    command = [sys.executable, "-m", "sicompiler.cli", "dump", MLP, "--stage", "legal"]
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "sicompiler: can't write to stdout: No space left on device\n")
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert (process.wait(), process.stderr.read()) == (141, "")
    process.stderr.close()


# Terminals and folders


class Terminal(io.StringIO):
    """A terminal of no size."""

    def isatty(self) -> bool:
        """It is one."""
        return True


@pytest.mark.pure
@pytest.mark.parametrize("columns", ["0", "1", ""])
def test_a_terminal_without_a_size_shows_the_table(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sicompiler.reports.summary import table

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", columns)
    output.show(table("a table", ("name", "bytes>"), [("conv2d", "12 MiB")]))
    assert "conv2d" in screen.getvalue()
    assert "12 MiB" in screen.getvalue()


@pytest.mark.pure
def test_a_table_after_a_progress_bar_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar starts while `quiet` has replaced stdout, and ends after it."""
    screen, bar = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", bar)
    monkeypatch.setattr(output, "SHOW_AFTER_SECONDS", 0.0)
    with output.Progress() as progress:
        with output.quiet():
            while progress._bar is None or not progress._bar.live.is_started:
                progress("working", 0, 1)
        assert sys.stdout is screen
    assert sys.stdout is screen
    output.show_text("the table")
    assert screen.getvalue() == "the table"


def test_the_offload_folder_is_expanded_and_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "offloaded").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(FOLDER_VARIABLE, "~/offloaded")
    assert offload_folder() == str(tmp_path / "offloaded")
    offloaded_tensor((4,), (1,), torch.float32, torch.device("cpu"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(FOLDER_VARIABLE, "offloaded")
    sicompiler.compile_for_budget(nn.Linear(2, 2), 1)
    monkeypatch.chdir("/")
    assert offload_folder() == str(tmp_path / "offloaded"), "as it was when the model was compiled"
    offloaded_tensor((4,), (1,), torch.float32, torch.device("cpu"))
    monkeypatch.setenv(FOLDER_VARIABLE, "nowhere")
    with pytest.raises(sicompiler.OffloadError, match="in /nowhere: No such file"):
        offloaded_tensor((4,), (1,), torch.float32, torch.device("cpu"))
