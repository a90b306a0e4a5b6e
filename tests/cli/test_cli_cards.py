"""Cards as budgets, and snapshots of memory, on the command line and in Python."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import sicompiler
from sicompiler.cards import card_named
from sicompiler.errors import BadInput
from tests.command_line import Cli, command_line

MLP = "tests.cli_models:mlp"


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return command_line(capsys, monkeypatch)


@pytest.mark.parametrize("budget", [("--card", "RTX 4090"), ("--gb", "rtx-4090 card")])
def test_a_card_is_a_budget_and_says_what_was_subtracted(cli: Cli, budget: tuple[str, str]) -> None:
    found = cli("plan", MLP, *budget, "--device", "cuda", "--json", "--no-untouched").json
    card = card_named("rtx-4090")
    assert found["budget_bytes"] == found["card"]["budget_bytes"] == card.budget_bytes
    assert found["card"]["source"] == card.source
    said = cli("plan", MLP, *budget, "--device", "cuda", "--no-untouched").err
    assert f"the budget is that of a card: {card}" in said


def test_an_older_card_is_planned_for_by_its_own_kernels_unless_told_otherwise(cli: Cli) -> None:
    older, newer = (cli("plan", MLP, "--card", name, "--json", "--no-untouched") for name in ("t4", "rtx-4090"))
    assert (older.json["device"], newer.json["device"]) == ("cuda-before-ampere", "cpu"), "a function's own device"
    assert cli("plan", MLP, "--card", "t4", "--device", "cuda", "--json", "--no-untouched").json["device"] == "cuda"


def test_cards_that_make_no_sense(cli: Cli) -> None:
    unknown = cli("plan", MLP, "--card", "rtx-9999")
    assert (unknown.status, "rtx-4090" in unknown.err) == (2, True)
    both = cli("plan", MLP, "--card", "t4", "--gb", "8")
    assert (both.status, "two budgets" in both.err) == (2, True)


def test_a_run_is_saved_for_the_viewer_of_torch(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "plan.pickle"
    result = cli("plan", MLP, "--card", "16GB", "--device", "cuda", "--snapshot", path, "--no-untouched")
    assert "device 0 is the plan, device 1 the model unsliced" in result.err
    assert "predicted reserved" in result.out
    assert len(pickle.loads(path.read_bytes())["device_traces"]) == 2  # our own file of a moment ago
    on_cpu = cli("plan", MLP, "--gb", "1", "--device", "cpu", "--snapshot", path)
    assert (on_cpu.status, "keeps none" in on_cpu.err) == (2, True)


def test_reports_have_no_snapshot_before_the_first_call_nor_on_a_cpu(tmp_path: Path) -> None:
    model = sicompiler.compile_for_budget(nn.Linear(4, 4).eval(), gb=1)
    with pytest.raises(BadInput, match="nothing is planned yet"):
        sicompiler.report(model).save_snapshot(tmp_path / "plan.pickle")
    model(torch.randn(2, 4))
    with pytest.raises(BadInput, match="keeps none"):
        sicompiler.report(model).save_snapshot(tmp_path / "plan.pickle")
