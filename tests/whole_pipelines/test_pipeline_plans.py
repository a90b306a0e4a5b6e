"""Whole pipelines from configuration: what budgets cost, phase by phase, and which sizes fit."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import torch

import sicompiler.cli
from sicompiler.cli import pipelines, subjects
from sicompiler.compiler.planner import Planner
from sicompiler.zoo.build import ModelCall
from sicompiler.zoo.geometry import Sizes
from sicompiler.zoo.pipelines import PIPELINE_PRESETS, PartCall, PartSpec, build_pipeline, part_specs
from tests.mini_pipeline import MiniText, MiniUNet, MiniVae

pytestmark = pytest.mark.usefixtures("cached")

NAME = "svd-pipeline"  # its place is taken by a pipeline of a few layers


class Stubborn(torch.nn.Module):
    """An encoder that can't be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(100))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_exporting():
            raise RuntimeError("not to be traced")
        return ids + 1


def text(_: Sizes) -> ModelCall:
    return ModelCall(MiniText().half().eval(), (torch.zeros(2, 3).long(),), {}, "text")


def stubborn(_: Sizes) -> ModelCall:
    return ModelCall(Stubborn(), (torch.zeros(2, 3).long(),), {}, "stubborn")


def unet(pixels: Sizes) -> ModelCall:
    sample = torch.zeros(2 * pixels.frames, 4, pixels.height // 8, pixels.width // 8).half()
    kwargs = {"encoder_hidden_states": torch.zeros(2 * pixels.frames, 3, 8).half(), "return_dict": False}
    return ModelCall(MiniUNet().half().eval(), (sample, torch.tensor(5)), kwargs, "unet")


def decode(pixels: Sizes) -> ModelCall:
    sample = torch.zeros(pixels.frames, 4, pixels.height // 8, pixels.width // 8).half()
    return ModelCall(MiniVae().half().eval(), (sample,), {"return_dict": False}, "vae", method="decode")


SPECS = (
    PartSpec("encode", "text_encoder", "forward", False, text),
    PartSpec("encode", "image_encoder", "forward", False, stubborn),
    PartSpec("denoise", "unet", "forward", True, unet),
    PartSpec("decode", "vae", "decode", True, decode),
)


def mini_calls(name: str, *, dtype: str, **sizes: Any) -> tuple[PartCall, ...]:
    given = {size: value for size, value in sizes.items() if value is not None}
    return tuple(
        spec.build(Sizes(**{"batch": 2, "frames": 14, "height": 576, "width": 1024} | given)) for spec in SPECS
    )


@pytest.fixture(autouse=True)
def mini(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines, "build_pipeline", mini_calls)
    monkeypatch.setattr(pipelines, "idle_weights", lambda *options: {})
    monkeypatch.setattr(subjects, "part_specs", lambda name, dtype: SPECS)
    monkeypatch.setattr(subjects, "idle_weights", lambda *options: {})


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    status = sicompiler.cli.run(arguments)
    return status, capsys.readouterr().out


def test_seconds_are_told_by_stage_over_all_phases(capsys: pytest.CaptureFixture[str]) -> None:
    began = time.perf_counter()
    _, out = run(capsys, "plan", NAME, "--json", "--frames", "8", "--gb", "2")
    elapsed = time.perf_counter() - began
    seconds = json.loads(out)["seconds"]
    assert seconds.keys() - {"regions", "regions with offloading"} == {
        "build",
        "capture",
        "analyse",
        "choose",
        "untouched",
    }
    assert min(seconds.values()) >= 0
    assert 0 < sum(seconds.values()) <= elapsed, "a second is counted once"


def test_without_a_budget_every_phase_and_the_whole_have_a_frontier(capsys: pytest.CaptureFixture[str]) -> None:
    status, out = run(capsys, "plan", NAME, "--json", "--frames", "8", "--offload", "none")
    assert status == 0
    found = json.loads(out)
    phases = {row["component"]: row for row in found["phases"]}
    assert phases["image_encoder"]["predicted_peak_bytes"] is None
    assert "can't be captured" in phases["image_encoder"]["note"]
    assert phases.pop("image_encoder")["frontier"] == []
    for row in (*phases.values(), found):
        ratios = [step["time_ratio"] for step in row["frontier"]]
        assert ratios == sorted(ratios, reverse=True), "a bigger budget is never slower"
        assert all(step["predicted_peak_bytes"] <= step["budget_bytes"] for step in row["frontier"])
        assert row["frontier"][0]["budget_bytes"] == row["floor_bytes"]
    assert found["floor_bytes"] == max(row["floor_bytes"] for row in phases.values())
    assert found["frontier"][-1]["budget_bytes"] == found["budget_bytes"]
    offloaded = json.loads(run(capsys, "plan", NAME, "--json", "--frames", "8")[1])
    assert offloaded["floor_bytes"] == found["floor_bytes"], "the plan shown needs no offloading"
    assert offloaded["frontier"][0]["budget_bytes"] < offloaded["floor_bytes"]
    untouched = {row["component"]: row["untouched_peak_bytes"] for row in offloaded["phases"]}
    assert untouched.pop("image_encoder") is None
    assert all(nbytes > 0 for nbytes in untouched.values())
    status, out = run(capsys, "plan", NAME, "--frames", "8")
    assert "budget against time, the whole pipeline (25 denoising steps)" in out
    assert "budget against time, vae.decode" in out


def test_which_sizes_of_a_pipeline_fit_is_what_its_plans_say(capsys: pytest.CaptureFixture[str]) -> None:
    frames, sizes, budget = (4, 8, 14), ("256x448", "320x576", "576x1024"), "44MiB"
    arguments = ("--frames", ",".join(map(str, frames)), "--size", ",".join(sizes), "--json")
    status, out = run(capsys, "fit", NAME, "--gb", budget, *arguments)
    assert status == 0
    found = json.loads(out)
    assert {cell["known"] for cell in found["cells"]} >= {"closed form", "known regions"}
    assert {form["label"] for form in found["forms"]} == {"unet", "vae.decode"}
    assert any("image_encoder runs untouched" in note for note in found["notes"])
    fits = 0
    for cell in found["cells"]:
        where = ("--frames", str(cell["frames"]), "--height", str(cell["height"]), "--width", str(cell["width"]))
        plan = json.loads(run(capsys, "plan", NAME, "--gb", budget, *where, "--json")[1])
        assert cell["unsliced_peak_bytes"] == max(row["unsliced_peak_bytes"] or 0 for row in plan["phases"])
        assert plan["fits"] or not cell["fits"], "what is said to fit does"
        fits += cell["fits"]
    assert fits > 0


@pytest.mark.pure
@pytest.mark.parametrize("name", PIPELINE_PRESETS)
def test_the_calls_of_a_pipeline_are_in_the_order_of_its_phases(name: str) -> None:
    specs = part_specs(name, "float16")
    phases = [spec.phase for spec in specs]
    assert phases == sorted(phases, key=["encode", "denoise", "decode"].index)
    assert {spec.label for spec in specs if spec.sized} >= {PIPELINE_PRESETS[name].component, "vae.decode"}


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINE_PRESETS)
def test_the_components_of_a_pipeline_are_built_without_memory(name: str) -> None:
    for part in build_pipeline(name):
        tensors = [*part.call.module.parameters(), *part.call.module.buffers()]
        assert all(type(t).__name__ in ("FakeTensor", "Parameter") for t in tensors)
        assert part.call.fake_mode is not None


def test_no_floor_is_looked_for_while_idle_components_can_leave(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines, "idle_weights", lambda *options: {"large": 2**40})
    asked: list[str] = []
    find = Planner._find_floor

    def told(self: Planner, *args: Any, planned: bool = False) -> tuple[int, str]:
        asked.extend([] if planned else [self.model])  # one beside a plan is of what was searched for it
        return find(self, *args, planned=planned)

    monkeypatch.setattr(Planner, "_find_floor", told)
    code, text = run(capsys, "plan", NAME, "--gb", "1000", "--json", "--frames", "2", "--height", "64", "--width", "64")
    found = json.loads(text)
    assert (code, found["fits"]) == (0, True)
    assert all("large" not in row["resident"] for row in found["phases"])
    assert not asked
