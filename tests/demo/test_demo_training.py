"""The training script: it ends with a pipeline, and a run that was interrupted ends with the same one."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sicompiler.cli.output import Progress
from sicompiler.cli.stages import Stages
from sicompiler.demo import parts
from sicompiler.demo.words import check_caption
from sicompiler.errors import BadInput
from tests.mini_rehash import skipping_is_fast, told_clock
from tests.source_tree import ROOT

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

STAGES = {"vae": 2, "latents": 3, "images": 2, "clips": 2}  # steps of each in a run that is short enough for a test


class _Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def script() -> Any:
    path = ROOT / "examples" / "train_demo.py"
    spec = importlib.util.spec_from_file_location("train_demo", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_demo"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def _train(
    script: Any, output: Path, told: list[str], *, resume: bool = False, stop: tuple[str, int] | None = None
) -> None:
    """Train a little; stop after some step of some stage. The stages that did something are told, once a step."""

    def tell(stage: str, done: int, total: int, loss: float) -> None:
        assert total == STAGES[stage]
        told.append(stage)
        if (stage, done) == stop:
            raise _Interrupted

    script.train(
        script.Settings(
            seed=3,
            output=output,
            resume=resume,
            clips=STAGES["latents"],
            vae_steps=STAGES["vae"],
            vae_batch=2,
            image_steps=STAGES["images"],
            image_batch=3,
            clip_steps=STAGES["clips"],
            clip_batch=1,
        ),
        tell,
    )


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    pipe = diffusers.AnimateDiffPipeline.from_pretrained(folder)
    modules = {"unet": pipe.unet, "vae": pipe.vae, "text": pipe.text_encoder}
    return {f"{name}.{key}": value for name, part in modules.items() for key, value in part.state_dict().items()}


@pytest.fixture(scope="module")
def whole(script: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without interruption."""
    output: Path = tmp_path_factory.mktemp("whole")
    told: list[str] = []
    _train(script, output, told)
    assert told == [stage for stage, steps in STAGES.items() for _ in range(steps)]
    return output


def test_training_ends_with_a_pipeline_that_runs(whole: Path) -> None:
    pipe = diffusers.AnimateDiffPipeline.from_pretrained(whole)
    pipe.set_progress_bar_config(disable=True)
    frames = pipe("a red circle moving left", num_inference_steps=1, num_frames=2, output_type="pt").frames
    assert bool(frames.isfinite().all())


def test_a_run_interrupted_in_every_stage_ends_with_the_same_weights(script: Any, whole: Path, tmp_path: Path) -> None:
    stops = [("vae", 1), ("latents", 2), ("images", 1), ("clips", 1)]
    for number, stop in enumerate([*stops, None]):
        told: list[str] = []
        interrupted: contextlib.AbstractContextManager[Any] = (
            pytest.raises(_Interrupted) if stop else contextlib.nullcontext()
        )
        with interrupted:
            _train(script, tmp_path, told, resume=number > 0, stop=stop)
        if number:  # goes on in the stage that was interrupted; latents are cheap and made anew
            before, _ = stops[number - 1]
            assert told.count(before) == (STAGES["latents"] if before == "latents" else 1)
            assert not set(told) & {stage for stage, _ in stops[: number - 1]}
    expected, found = _weights(whole), _weights(tmp_path)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


@pytest.mark.slow
def test_the_demo_makes_its_clips(
    whole: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With weights that were hardly trained: what is tested is that all three ways run, fit and are shown."""
    import sicompiler.cli.demo_clip as demo

    told_clock(monkeypatch, skipping_is_fast)
    monkeypatch.setattr(demo, "STEPS", 4)
    monkeypatch.setattr(demo, "SPEEDUPS", (1.01,))
    monkeypatch.setattr(demo, "ROUNDS", 1)
    monkeypatch.setattr(demo, "LEARNED", demo.LEARNED[:2])
    stages = Stages("", Progress())
    assert demo.run("a red circle moving left", whole, tmp_path, stages, seed=0, full=False, as_json=True) == 0
    said = capsys.readouterr()
    assert "for other weights than these; calibrating anew" in said.err
    untouched, exact, rehashed = json.loads(said.out)["rows"]
    assert exact["peak_bytes"] <= exact["budget_bytes"] < untouched["peak_bytes"]
    assert exact["max_abs_error"] < 1e-4
    assert rehashed["peak_bytes"] <= rehashed["budget_bytes"]
    assert rehashed["full"] < exact["full"] == 4
    assert (tmp_path / "clips.gif").read_bytes().startswith(b"GIF")
    assert (tmp_path / "clips.mp4").stat().st_size > 1000


def test_a_demo_without_a_pipeline_or_of_unknown_words_is_refused(tmp_path: Path) -> None:
    import sicompiler.cli.demo_clip as demo

    stages = Stages("", Progress())
    with pytest.raises(BadInput, match="no pipeline in"):
        demo.run("a red circle moving left", tmp_path, tmp_path, stages, seed=0, full=False, as_json=True)
    with pytest.raises(BadInput, match=r"'a purple dog'; it knows .* red, .* ring, .* left"):
        check_caption("a purple dog")


def test_another_seed_gives_other_weights(script: Any) -> None:
    numbers = [script.generator(script.Settings(seed, Path()), "vae", 0).initial_seed() for seed in (0, 1)]
    assert numbers[0] != numbers[1]


def test_standardizing_keeps_pictures_and_makes_unit_latents() -> None:
    torch.manual_seed(0)
    vae = parts.vae().eval()
    pictures = torch.randn(4, 3, 48, 48)
    with torch.no_grad():
        before = vae.encode(pictures).latent_dist
        shown = vae.decode(before.mean).sample
        parts.standardize_(vae, before.mean)
        after = vae.encode(pictures).latent_dist
        torch.testing.assert_close(vae.decode(after.mean).sample, shown, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after.mean.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(after.mean.std((0, 2, 3)), torch.ones(4), rtol=1e-4, atol=0)
    torch.testing.assert_close(
        after.std / before.std, (1 / before.mean.std((0, 2, 3)))[None, :, None, None].expand_as(after.std)
    )


def test_motion_modules_begin_by_changing_nothing() -> None:
    torch.manual_seed(0)
    images = parts.image_unet().eval()
    video = parts.video_unet(images).eval()
    noise, text = torch.randn(1, 4, 3, 12, 12), torch.randn(1, 12, parts.TEXT_WIDTH)
    with torch.no_grad():
        together = video(noise, 10, encoder_hidden_states=text.repeat_interleave(3, 0)).sample
        alone = [images(noise[:, :, frame], 10, encoder_hidden_states=text).sample for frame in range(3)]
    torch.testing.assert_close(together, torch.stack(alone, 2), rtol=1e-4, atol=1e-5)
