"""Which components are on the device when: idle ones leave only when the budget asks, and come back when called.

There is no accelerator to move away from here, so weights are put aside by hand: what is away has no bytes.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

import sicompiler
from sicompiler.pipelines.pipeline import pipeline_state
from sicompiler.pipelines.residency import Residency
from sicompiler.pipelines.weights import weights_of
from tests.mini_pipeline import MiniPipeline, MiniText, MiniUNet, MiniVae, mini, picture

pytestmark = pytest.mark.usefixtures("cached")

CPU = torch.device("cpu")


class Aside(Residency):
    """Moves weights nowhere, but away."""

    def __init__(self) -> None:
        super().__init__()
        self.data: dict[int, list[torch.Tensor]] = {}
        self.moves: list[str] = []

    def movable(self, part: nn.Module, device: torch.device) -> bool:
        return bool(sum(weights_of(part, device).values()))

    def send(self, part: nn.Module, device: torch.device) -> None:
        self.moves.append(f"-{type(part).__name__}")
        self.data[id(part)] = [parameter.data for parameter in part.parameters()]
        for parameter in part.parameters():
            parameter.data = torch.empty(0, dtype=parameter.dtype)

    def fetch(self, part: nn.Module, device: torch.device, offloaded: Collection[str]) -> None:
        self.moves.append(f"+{type(part).__name__}")
        for parameter, data in zip(part.parameters(), self.data.pop(id(part)), strict=True):
            parameter.data = data


def compiled(pipe: Any, budget_bytes: int) -> Aside:
    sicompiler.compile_for_budget(pipe, f"{budget_bytes}B", offload="none")
    state, aside = pipeline_state(pipe, "test"), Aside()
    state.residency = aside
    return aside


@pytest.fixture
def floor_bytes() -> int:
    pipe = sicompiler.compile_for_budget(mini(), 1)
    pipe(picture())
    return int(sicompiler.report(pipe).floor_bytes)


def test_nothing_moves_where_everything_fits() -> None:
    pipe = sicompiler.compile_for_budget(mini(), 1)
    pipe(picture())
    unsliced_bytes = max(row.unsliced_peak_bytes or 0 for row in sicompiler.report(pipe).phases)
    pipe = mini()
    aside = compiled(pipe, unsliced_bytes)
    pipe(picture())
    assert aside.moves == []


def test_idle_components_leave_below_the_floor_and_come_back_when_called(floor_bytes: int) -> None:
    pipe = mini()
    reference = pipe(picture())
    weights = {name: part.clone() for name, part in pipe.unet.state_dict().items()}
    aside = compiled(pipe, floor_bytes - 2000)
    for _ in range(2):
        assert bool((pipe(picture()) - reference).abs().max() <= 1e-12)
    assert "-MiniText" in aside.moves  # its phase is over: it goes before the VAE, which is needed again
    assert "+MiniText" in aside.moves  # for the second run
    rows = {row.component: row for row in sicompiler.report(pipe).phases}
    assert "text_encoder" not in rows["unet"].resident
    assert all(row.fits for row in rows.values())
    sicompiler.release(pipe)
    assert aside.data == {}
    assert all(torch.equal(part, weights[name]) for name, part in pipe.unet.state_dict().items())


def test_the_untouched_peak_has_what_was_away_before(floor_bytes: int) -> None:
    pipe = mini()
    call: tuple[tuple[Any, ...], dict[str, Any]] = ((picture(),), {})
    wanted = sicompiler.verify(sicompiler.compile_for_budget(pipe, 1), call).untouched_peak_bytes
    sicompiler.compile_for_budget(pipe, f"{floor_bytes - 2000}B")
    pipe(picture())
    residency = pipeline_state(pipe, "look").residency
    assert any(residency.is_away(part) for part in (pipe.text_encoder, pipe.unet, pipe.vae))
    found = sicompiler.verify(pipe, call)
    assert found.fits, str(found)
    assert found.untouched_peak_bytes == wanted


class Spare(MiniText):
    """What a pipeline registers and never calls, as AnimateDiff its motion adapter."""


class SparePipeline(MiniPipeline):
    """A pipeline with such a component."""

    def __init__(
        self,
        text_encoder: MiniText,
        unet: MiniUNet,
        vae: MiniVae,
        scheduler: DDIMScheduler,
        motion_adapter: Spare,
        image_encoder: MiniText | None = None,
    ) -> None:
        super().__init__(text_encoder, unet, vae, scheduler, image_encoder)
        self.register_modules(motion_adapter=motion_adapter)


def test_what_never_runs_leaves_first(floor_bytes: int) -> None:
    pipe = SparePipeline(**mini().components, motion_adapter=Spare().double())
    pipe.set_progress_bar_config(disable=True)
    reference = pipe(picture())
    aside = compiled(pipe, floor_bytes)
    assert bool((pipe(picture()) - reference).abs().max() <= 1e-12)
    assert aside.moves[0] == "-Spare"
    assert "+Spare" not in aside.moves


def test_below_every_move_is_over_budget_and_names_what_is_left(floor_bytes: int) -> None:
    pipe = mini()
    compiled(pipe, floor_bytes - 6000)
    with pytest.raises(sicompiler.OverBudget, match="denoise: unet needs") as caught:
        pipe(picture())
    assert "of other weights" not in str(caught.value)


def test_a_move_that_fails_is_made_by_the_next_call(floor_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the device is full of somebody else's tensors just then."""
    pipe = mini()
    reference = pipe(picture())
    aside = compiled(pipe, floor_bytes - 2000)
    pipe(picture())

    def full(self: Aside, part: nn.Module, device: torch.device, offloaded: Collection[str]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Aside, "fetch", full)
    with pytest.raises(torch.OutOfMemoryError):
        pipe(picture())
    monkeypatch.undo()
    assert bool((pipe(picture()) - reference).abs().max() <= 1e-12)
    sicompiler.release(pipe)
    assert aside.data == {}
