"""Encoders that run untouched: within the budget or not at all, and part of every floor."""

from __future__ import annotations

import logging
from typing import Any

import numpy
import pytest
import torch
from torch import nn

import sicompiler
from sicompiler.pipelines.rehearsal import Limit, RehearsalStopped, rehearse
from sicompiler.runtime.measure import measure_peak
from tests.mini_pipeline import MiniText, close, mini, picture

pytestmark = pytest.mark.usefixtures("cached")

KIB = 1024


class Untraceable(MiniText):
    """Looks at the numbers it is given from outside of torch, and may be heavy or hold much while it runs."""

    def __init__(self, rows: int = 0, scratch_bytes: int = 0) -> None:
        super().__init__()
        self.ballast = nn.Buffer(torch.zeros(rows, 128))  # 1 KiB a row in float64
        self.scratch_bytes, self.entered = scratch_bytes, 0

    def look(self, ids: torch.Tensor) -> bool:
        return bool(numpy.asarray(ids).sum() < 0)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        self.entered += 1
        found: torch.Tensor = super().forward(ids)
        if self.look(ids):
            return -found
        scratch = torch.zeros(self.scratch_bytes, dtype=torch.uint8)
        return found + scratch[:1].sum() * 0.0 if self.scratch_bytes else found


class Branching(Untraceable):
    """Decides by a value within torch."""

    def look(self, ids: torch.Tensor) -> bool:
        return bool(ids.sum() < 0)


class Opaque(Untraceable):
    """Looks at what it has computed from outside of torch: not even a rehearsal gets past that."""

    def look(self, ids: torch.Tensor) -> bool:
        return bool(numpy.isnan(self.words(ids).numpy()).any())


def over_budget(pipe: Any, budget: str, offload: Any) -> sicompiler.OverBudget:
    sicompiler.compile_for_budget(pipe, budget, offload=offload)
    with pytest.raises(sicompiler.OverBudget) as caught:
        pipe(picture())
    return caught.value


@pytest.mark.parametrize("offload", ["auto", "none"])
def test_weights_that_pass_the_budget_are_over_budget_before_the_encoder_runs(offload: Any) -> None:
    encoder = Untraceable(rows=900)
    pipe = mini(text_encoder=encoder)
    reference = pipe(picture())
    encoder.entered = 0
    error = over_budget(pipe, "800KiB", offload)
    assert encoder.entered == 0
    for words in (
        "phase encode: text_encoder needs 902 KiB at least, set by its weights",
        "It runs untouched",
        "numpy",
    ):
        assert words in str(error)
    assert error.floor_bytes > 900 * KIB
    sicompiler.release(pipe)
    assert torch.equal(pipe(picture()), reference)


@pytest.mark.parametrize("offload", ["auto", "none"])
@pytest.mark.parametrize("kind", [Untraceable, Branching])
def test_a_peak_is_told_before_and_the_budget_of_the_message_works(kind: type[Untraceable], offload: Any) -> None:
    encoder = kind(scratch_bytes=2**20)
    pipe = mini(text_encoder=encoder)
    reference = pipe(picture())
    encoder.entered = 0
    error = over_budget(pipe, "1MiB", offload)
    assert encoder.entered == 0
    assert "set by its weights and the peak of a rehearsal" in str(error)
    sicompiler.compile_for_budget(pipe, f"{error.floor_bytes}B", offload=offload)
    assert close(pipe(picture()), reference)
    found = sicompiler.verify(pipe, ((picture(),), {}))
    assert found.fits, str(found)
    assert found.measured_peak_bytes <= error.floor_bytes


def test_a_call_that_cannot_be_rehearsed_is_stopped_before_it_passes_the_budget() -> None:
    encoder = Opaque(scratch_bytes=2**20)
    pipe = mini(text_encoder=encoder)
    error = over_budget(pipe, "1MiB", "auto")
    assert "aten.zeros.default, before which a call was stopped" in str(error)
    assert error.floor_bytes > 2**20
    encoder.entered = 0
    with pytest.raises(sicompiler.OverBudget):
        pipe(picture())
    assert encoder.entered == 0  # it is known now


@pytest.mark.parametrize("offload", ["auto", "none"])
def test_the_floor_of_the_report_has_the_encoder_in_it(offload: Any) -> None:
    """What the first report says works at once, whatever sets it."""
    pipe = sicompiler.compile_for_budget(mini(text_encoder=Untraceable(rows=900)), 1, offload=offload)
    reference = pipe(picture())
    report = sicompiler.report(pipe)
    row = report.phases[0]
    assert (row.component, row.predicted_peak_bytes) == ("text_encoder", None)
    assert row.floor_bytes is not None
    assert report.floor_bytes is not None
    assert 900 * KIB < row.floor_bytes <= report.floor_bytes
    assert "floor of text_encoder: its weights and the peak of an earlier call" in str(report)
    sicompiler.compile_for_budget(pipe, f"{report.floor_bytes}B", offload=offload)
    assert close(pipe(picture()), reference)
    assert sicompiler.report(pipe).fits
    assert sicompiler.verify(pipe, ((picture(),), {})).fits


def test_what_is_idle_goes_before_an_encoder_runs_untouched() -> None:
    pipe = mini(text_encoder=Untraceable(rows=100), image_encoder=Untraceable(rows=100))
    reference = pipe(picture())
    sicompiler.compile_for_budget(pipe, "190KiB")
    assert close(pipe(picture()), reference)
    rows = {row.component: row for row in sicompiler.report(pipe).phases}
    assert "text_encoder" not in rows["image_encoder"].resident
    assert "image_encoder" not in rows["text_encoder"].resident
    assert all(row.fits for row in rows.values())


class Grows(Untraceable):
    """Needs more at its second call, which its shapes don't tell."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        self.scratch_bytes = 2**20 * (self.entered > 0)
        return super().forward(ids)


def test_a_peak_that_nothing_told_is_told_and_refused_the_next_time(caplog: pytest.LogCaptureFixture) -> None:
    pipe = sicompiler.compile_for_budget(mini(text_encoder=Grows()), "1MiB")
    pipe(picture())
    with caplog.at_level(logging.WARNING, "sicompiler"):
        pipe(picture())
    assert "took the pipeline to 1.05 MiB, above its budget of 1 MiB" in caplog.text
    with pytest.raises(sicompiler.OverBudget, match="set by its weights and the peak of an earlier call"):
        pipe(picture())


class Asks(nn.Module):
    """Selects, and takes a length from a value."""

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        kept = x[(ids > 2).nonzero()[:, 0]]
        return torch.cat([kept[: int(ids.max())].repeat(2, 1), x[ids > 3]])


def test_a_rehearsal_answers_what_shapes_do_not_tell() -> None:
    model, x, ids = Asks(), torch.randn(64, 32), torch.arange(64)
    with torch.no_grad(), measure_peak("cpu") as peak:
        model(x, ids)
    rehearsed = rehearse(model, model.forward, (x, ids), {})
    assert rehearsed is not None
    assert peak.bytes <= rehearsed <= 1.5 * peak.bytes


def test_a_rehearsal_changes_nothing() -> None:
    encoder = Branching()
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    before = {name: id(value) for name, value in encoder.named_parameters()}
    assert rehearse(encoder, encoder.forward, (torch.arange(6),), {}) is not None
    assert encoder.entered == 0
    assert {name: id(value) for name, value in encoder.named_parameters()} == before
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())


def test_a_limit_stops_a_call_before_it_is_passed() -> None:
    x = torch.randn(1000)
    with measure_peak("cpu") as peak, Limit(10000, set()):
        y = x + 1
        y = y * 2
    assert peak.bytes <= 8100
    with measure_peak("cpu") as peak, pytest.raises(RehearsalStopped, match=r"aten\.cat"), Limit(10000, set()):
        torch.cat([x + 1, x]).sum()
    assert peak.bytes <= 4200
