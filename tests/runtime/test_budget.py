"""Budgets that nobody names: what is free on the device of the model."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sicompiler import BadInput
from sicompiler.pipelines import budget
from sicompiler.pipelines.budget import MARGIN_BYTES, budget_of
from sicompiler.units import GIB, MIB


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Say what is free on a card on which the model lies."""

    def free(nbytes: int) -> None:
        monkeypatch.setattr(budget, "_device_of", lambda model: torch.device("cuda", 0))
        monkeypatch.setattr(budget, "free_bytes", lambda device: nbytes)

    return free


def test_a_cpu_has_the_default() -> None:
    assert budget_of(torch.nn.Linear(2, 2), None) == 11 * GIB
    assert budget_of(torch.nn.Linear(2, 2), 3) == 3 * GIB


def test_what_is_free_on_a_card_less_the_margin_is_the_budget_and_said(
    card: Any, caplog: pytest.LogCaptureFixture
) -> None:
    card(8 * GIB)
    with caplog.at_level(logging.WARNING, logger="sicompiler"):
        assert budget_of(torch.nn.Linear(2, 2), None) == 8 * GIB - MARGIN_BYTES
    assert "a budget of 7.50 GiB: 8.00 GiB is free on cuda:0 for torch, less 512 MiB" in caplog.text
    assert budget_of(torch.nn.Linear(2, 2), "3GiB") == 3 * GIB


def test_a_card_with_less_free_than_the_margin_is_refused(card: Any) -> None:
    card(300 * MIB)
    with pytest.raises(BadInput, match="300 MiB is free for torch on cuda:0, and a margin of 512 MiB"):
        budget_of(torch.nn.Linear(2, 2), None)


def test_a_model_runs_where_its_weights_are_or_where_accelerate_takes_them() -> None:
    plain, hooked = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    hooked._hf_hook = SimpleNamespace(execution_device="cuda:1")  # type: ignore[assignment]
    assert budget._device_of(plain) == torch.device("cpu")
    assert budget._device_of(hooked) == torch.device("cuda:1")
    assert budget._device_of(torch.nn.Linear(2, 2, device="meta")) == torch.device("cpu")
    assert budget._device_of(torch.nn.Identity()) == torch.device("cpu")
