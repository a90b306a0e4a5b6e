"""The trained pipeline that ships: it loads as diffusers loads any, it is small, and it makes what is asked for."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
import torch

import sicompiler
from sicompiler.demo.pipeline import MODEL_FOLDER
from sicompiler.demo.quality import held_out_cases, judge, make_clips
from sicompiler.demo.shapes import FRAMES, SIZE
from sicompiler.demo.words import all_scenes, training_scenes
from sicompiler.errors import BadInput
from tests.source_tree import files

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

if not MODEL_FOLDER.exists():
    pytest.skip("the trained weights are not in this checkout: examples/train_demo.py", allow_module_level=True)

MAX_BYTES = 10_000_000


@pytest.fixture(scope="module")
def pipe() -> Any:
    loaded = sicompiler.demo_pipeline()
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_it_is_a_real_pipeline_in_a_real_folder(pipe: Any) -> None:
    loaded = diffusers.AnimateDiffPipeline.from_pretrained(MODEL_FOLDER)
    assert type(pipe) is diffusers.AnimateDiffPipeline
    assert type(pipe.unet) is diffusers.UNetMotionModel
    assert type(pipe.vae) is diffusers.AutoencoderKL
    assert type(pipe.text_encoder).__name__ == "CLIPTextModel"
    for name in ("unet", "vae", "text_encoder"):
        mine, plain = getattr(pipe, name).state_dict(), getattr(loaded, name).state_dict()
        assert mine.keys() == plain.keys()
        assert all(torch.equal(mine[key], plain[key]) for key in mine)
        assert not getattr(pipe, name).training


def test_it_is_small_and_in_safetensors() -> None:
    found = list(files(MODEL_FOLDER))
    assert sum(path.stat().st_size for path in found) <= MAX_BYTES
    assert {path.suffix for path in found} == {".json", ".safetensors", ".txt"}


def test_its_configurations_name_no_folder() -> None:
    for path in files(MODEL_FOLDER, "*.json"):
        assert "_name_or_path" not in path.read_text(encoding="utf-8"), path


def test_it_loads_in_another_precision() -> None:
    assert sicompiler.demo_pipeline(dtype=torch.bfloat16).unet.dtype == torch.bfloat16


def test_every_word_is_one_token_and_other_words_are_read(pipe: Any) -> None:
    words = pipe.tokenizer
    for scene in all_scenes():
        assert words.tokenize(scene.caption) == [f"{word}</w>" for word in scene.caption.split()]
    assert len(words.tokenize("purple")) > 1
    assert words.unk_token_id not in words("purple", add_special_tokens=False).input_ids


def test_defaults_are_what_it_was_trained_for(pipe: Any) -> None:
    frames = pipe("a red circle moving left", num_inference_steps=1, output_type="pt").frames
    assert frames.shape == (1, FRAMES, 3, SIZE, SIZE)


def test_a_clip_is_its_seed(pipe: Any) -> None:
    (case,) = held_out_cases(1)
    first, again = (make_clips(pipe, [case], steps=2) for _ in range(2))
    assert torch.equal(first, again)


def test_it_makes_what_was_never_trained_on(pipe: Any) -> None:
    cases = held_out_cases(64)[::9]
    assert not {case.scene for case in cases} & set(training_scenes())
    judged = judge(cases, make_clips(pipe, cases, steps=6))
    assert sum(one.right for one in judged) >= len(cases) - 1, [one for one in judged if not one.right]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheduler", "steps"),
    [("DDIMScheduler", 25), ("EulerDiscreteScheduler", 25), ("DPMSolverMultistepScheduler", 25), ("DDIMScheduler", 50)],
)
def test_nine_of_ten_held_out_clips_are_right(scheduler: str, steps: int) -> None:
    pipe = sicompiler.demo_pipeline()
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    cases = held_out_cases(64)
    judged = []
    for start in range(0, len(cases), 8):
        some = cases[start : start + 8]
        judged += judge(some, make_clips(pipe, some, steps=steps))
    right = sum(one.right for one in judged)
    assert right >= 0.9 * len(cases), [one for one in judged if not one.right]


def test_without_diffusers_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(BadInput, match=re.escape("pip install 'sicompiler[diffusers]'")):
        sicompiler.demo_pipeline()


def test_sicompiler_is_imported_without_diffusers() -> None:
    code = (
        "import sys, sicompiler, sicompiler.demo.shapes, sicompiler.demo.detect; sicompiler.demo_pipeline; "
        "sys.exit(bool({'diffusers', 'transformers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
