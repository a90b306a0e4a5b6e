"""What a pipeline is refused for, by name and with advice; what runs untouched; what the report tells."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

import sicompiler
from tests.mini_pipeline import MiniPipeline, MiniText, MiniUNet, MiniVae, close, mini, picture

pytestmark = pytest.mark.usefixtures("cached")

ROOMY = "2MiB"


def test_an_encoder_that_cannot_be_captured_runs_untouched_and_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    pipe = mini(text_encoder=MiniText(untraceable=True))
    reference = pipe(picture())
    with caplog.at_level(logging.WARNING, "sicompiler"):
        sicompiler.compile_for_budget(pipe, ROOMY)
        assert close(pipe(picture()), reference)
    assert "text_encoder runs untouched" in caplog.text
    row = sicompiler.report(pipe).phases[0]
    assert row.predicted_peak_bytes is None
    assert row.measured_peak_bytes is not None
    assert row.measured_peak_bytes >= row.weights_bytes
    assert "can't be captured" in row.note
    assert "runs untouched" in str(sicompiler.report(pipe))


class Untraceable(MiniUNet):
    """Declines to be traced."""

    def forward(self, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_exporting():
            raise RuntimeError("not to be traced")
        return super().forward(sample, *args, **kwargs)


class Undecided(MiniUNet):
    """Decides by values."""

    def forward(self, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().forward(-sample if sample.sum() > 0 else sample, *args, **kwargs)


def test_a_denoiser_that_decides_by_values_is_planned_for_each_outcome() -> None:
    pipe = mini(unet=Undecided())
    pictures = [picture(), -picture()]
    references = [pipe(each) for each in pictures]
    sicompiler.compile_for_budget(pipe, ROOMY)
    for which in (0, 1, 0):
        assert close(pipe(pictures[which]), references[which])


def test_a_denoiser_that_cannot_be_captured_is_an_error_at_the_first_call() -> None:
    pipe = mini(unet=Untraceable())
    sicompiler.compile_for_budget(pipe, ROOMY)
    with pytest.raises(sicompiler.CaptureError, match="Untraceable can't be captured"):
        pipe(picture())


class NoDenoiser(MiniPipeline):
    """A pipeline that has nothing to denoise with."""

    def __init__(self, text_encoder: Any, vae: Any) -> None:
        super(MiniPipeline, self).__init__()
        self.register_modules(text_encoder=text_encoder, vae=vae)


def _tiled(pipe: Any) -> None:
    pipe.vae.use_tiling = True


def _sequential(pipe: Any) -> None:
    pipe.unet.to("meta")


def _torch_compiled(pipe: Any) -> None:
    pipe.unet = torch.compile(pipe.unet)


def _cached(pipe: Any) -> None:
    from diffusers.hooks import HookRegistry, ModelHook

    HookRegistry.check_if_exists_or_initialize(pipe.unet).register_hook(ModelHook(), "some_cache")


@pytest.mark.parametrize(
    ("switch", "words"),
    [
        (_tiled, r"tiling is on in MiniPipeline\.vae.*disable_tiling"),
        (_sequential, r"MiniPipeline\.unet are on the meta device.*enable_model_cpu_offload"),
        (_torch_compiled, r"MiniPipeline\.unet is wrapped by torch\.compile"),
        (_cached, r"diffusers hooks are registered on MiniPipeline\.unet \(some_cache\)"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(switch: Callable[[Any], None], words: str) -> None:
    pipe = mini()
    switch(pipe)
    with pytest.raises(sicompiler.BadInput, match=words):
        sicompiler.compile_for_budget(pipe, ROOMY)
    assert "check_inputs" not in vars(pipe)
    assert "_sicompiler" not in vars(pipe)


def test_tiling_switched_on_later_is_refused_at_the_call() -> None:
    pipe = mini()
    sicompiler.compile_for_budget(pipe, ROOMY)
    pipe.vae.use_tiling = True
    with pytest.raises(sicompiler.BadInput, match="tiling is on"):
        pipe(picture())


def test_what_is_no_pipeline_to_us_is_refused() -> None:
    with pytest.raises(sicompiler.BadInput, match="NoDenoiser has no unet, transformer or prior"):
        sicompiler.compile_for_budget(NoDenoiser(MiniText(), MiniVae()), ROOMY)
    with pytest.raises(sicompiler.BadInput, match="or a diffusers pipeline, got str"):
        sicompiler.compile_for_budget("svd", ROOMY)  # type: ignore[type-var]
    with pytest.raises(sicompiler.BadInput, match="component by component"):
        sicompiler.compile_for_budget(mini(), ROOMY, example_inputs=((), {}))
    with pytest.raises(sicompiler.BadInput, match="gb"):
        sicompiler.compile_for_budget(mini(), 0)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickle.dumps], ids=["copied", "pickled"])
def test_a_compiled_pipeline_is_not_duplicated(duplicate: Callable[[Any], Any]) -> None:
    pipe = sicompiler.compile_for_budget(mini(), ROOMY)
    with pytest.raises(sicompiler.BadInput, match="release"):
        duplicate(pipe)


def test_the_report_tells_phases_to_people_and_machines() -> None:
    pipe = sicompiler.compile_for_budget(mini(), ROOMY)
    assert "nothing is planned yet within 2 MiB" in str(sicompiler.report(pipe))
    with pytest.raises(sicompiler.BadInput, match="nothing is planned yet"):
        sicompiler.verify(pipe)
    pipe(picture())
    report = sicompiler.report(pipe)
    found = json.loads(report.to_json())
    assert [row["phase"] for row in found["phases"]] == ["encode", "encode", "denoise", "decode"]
    for row in found["phases"]:
        assert sorted(row["resident"]) == ["text_encoder", "unet", "vae"]
        assert row["floor_bytes"] <= row["predicted_peak_bytes"] <= row["unsliced_peak_bytes"]
        assert row["weights_bytes"] + row["held_bytes"] + row["activations_bytes"] == row["predicted_peak_bytes"]
        assert row["fits"] is True
    assert found["predicted_peak_bytes"] == max(row["predicted_peak_bytes"] for row in found["phases"])
    assert set(report.components) == {"text_encoder", "vae.encode", "unet", "vae.decode"}
    assert "vae.decode" in str(report)


def test_a_whole_pipeline_is_planned_from_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every phase with what stays resident: all where that fits, else the idle go; the floor counts without."""
    from sicompiler.cli import pipelines
    from sicompiler.cli.options import ModelOptions, Offload
    from sicompiler.zoo.build import ModelCall
    from sicompiler.zoo.pipelines import PartCall

    unet, text = MiniUNet().double(), MiniText().double()
    inputs = {"encoder_hidden_states": torch.zeros(2, 3, 8).double(), "return_dict": False}
    sample = torch.zeros(2, 4, 12, 12).double()
    calls = (
        PartCall("encode", "text_encoder", "forward", ModelCall(text, (torch.zeros(2, 3).long(),), {}, "text")),
        PartCall("denoise", "unet", "forward", ModelCall(unet, (sample, torch.tensor(5)), inputs, "unet")),
    )
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr(pipelines, "build_pipeline", lambda name, **sizes: calls)
    monkeypatch.setattr(pipelines, "idle_weights", lambda *options: {"motion_adapter": 10000})
    monkeypatch.setattr(pipelines, "show_json", shown.append)
    options = ModelOptions("svd-pipeline", offload=Offload.NONE)
    assert pipelines.run(options, None, as_json=True) == 0
    roomy = shown[-1]["phases"][1]
    assert roomy["resident"] == ["unet", "motion_adapter", "text_encoder"]
    floor_bytes = roomy["floor_bytes"]
    assert pipelines.run(options, f"{floor_bytes}B", as_json=True) == 0
    tight = shown[-1]["phases"][1]
    assert tight["resident"] == ["unet"]
    assert tight["predicted_peak_bytes"] <= floor_bytes
    assert roomy["weights_bytes"] - tight["weights_bytes"] == 10000 + 2048  # 1600, as the allocator rounds it
    with pytest.raises(sicompiler.OverBudget, match="svd-pipeline does not fit"):
        pipelines.run(options, f"{floor_bytes - 1}B", as_json=True)
    assert [row["fits"] for row in shown[-1]["phases"]] == [True, False]
