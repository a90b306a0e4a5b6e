"""The benchmark for GPUs: rows that outlive an interrupt, and each kind of row once, on the CPU."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks.gpu.__main__ import summary
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.kernels import KERNELS, measured_workspace
from benchmarks.gpu.models import BUDGETS, REHEARSED, LoadedModel

HERE = {"device": "a card"}


def test_a_row_that_is_there_is_not_run_again_in_another_process_either(tmp_path: Path) -> None:
    path, runs = tmp_path / "rows.json", list[str]()

    def make(name: str) -> dict[str, int]:
        runs.append(name)
        return {"value": len(runs)}

    for _ in range(2):
        journal = Journal(path, HERE, 60)
        found = [journal.row(name, partial(make, name))["value"] for name in "ab"]
    assert runs == ["a", "b"]
    assert found == [1, 2]


def test_a_row_is_on_disk_before_the_next_begins(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "rows.json", HERE, 60)
    journal.row("first", lambda: {"value": 1})
    with pytest.raises(KeyboardInterrupt):
        journal.row("second", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert list(json.loads(journal.path.read_text())["rows"]) == ["first"]


def test_a_row_that_failed_says_why_and_is_tried_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "rows.json", HERE, 60)
    assert "ZeroDivisionError" in journal.row("row", lambda: {"value": 1 / 0})["error"]
    assert Journal(journal.path, HERE, 60).row("row", lambda: {"value": 1})["value"] == 1


def test_rows_of_another_machine_are_dropped_and_none_begins_when_time_is_over(tmp_path: Path) -> None:
    Journal(tmp_path / "rows.json", HERE, 60).row("row", lambda: {"value": 1})
    other = Journal(tmp_path / "rows.json", {"device": "another card"}, -1)
    assert other.rows == {}
    assert other.row("row", lambda: {"value": 1}) is None


def test_workspace_of_each_kernel_is_measured_beside_its_prediction() -> None:
    rows = {name: measured_workspace(name, torch.float32, torch.device("cpu"), 64) for name in KERNELS}
    assert all(row["measured_bytes"] <= row["predicted_bytes"] for row in rows.values())
    assert max(row["measured_bytes"] for row in rows.values()) > 0


def test_a_model_is_measured_eager_and_compiled_and_the_summary_shows_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = Journal(tmp_path / "rows.json", HERE, 600)
    loaded = LoadedModel(REHEARSED["transformer"], torch.device("cpu"))
    journal.row("model transformer eager", loaded.eager)
    for name in ("100 %", "offload"):
        row = journal.row(f"model transformer {name}", lambda name=name: loaded.compiled(BUDGETS[name]))  # type: ignore[misc]
        assert row["holds"]
        assert row["max_rel_error"] < 1e-5
    summary(journal, Console(width=150))
    printed = capsys.readouterr().out
    assert "transformer 100 %" in printed
    assert "NO" not in printed
